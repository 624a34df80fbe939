package pipeline

import "time"

// Stats is an observer that keeps what a run took, stage by stage. Its zero value is ready for use; look at it after
// the run.
type Stats struct {
	view *View
	took time.Duration
}

// Start implements Observer.
func (s *Stats) Start(v *View) { s.view = v }

// Event implements Observer.
func (s *Stats) Event(Event) {}

// End implements Observer.
func (s *Stats) End(error) { s.took = s.view.Elapsed() }

// Elapsed is what the run took as a whole, with its unwinding.
func (s *Stats) Elapsed() time.Duration { return s.took }

// Stages returns the figures of all stages, in the order of their declaration, or nil if nothing has run.
func (s *Stats) Stages() []StageView {
	if s.view == nil {
		return nil
	}
	return s.view.Stages()
}

// Stage returns the figures of one stage, or zeros if there is none of that name.
func (s *Stats) Stage(name string) StageView {
	for _, v := range s.Stages() {
		if v.Name == name {
			return v
		}
	}
	return StageView{Name: name}
}
