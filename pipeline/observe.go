package pipeline

import (
	"sync/atomic"
	"time"
)

// Observer watches a run.
type Observer interface {
	// Start is called before the first stage. The view may be looked at by any goroutine, even after the run.
	Start(*View)
	// Event is called by the goroutines of the stages, several at once, and holds them up while it runs.
	Event(Event)
	// End is called when all stages have returned and the undo stack is unwound, with what Run is going to return.
	End(err error)
}

// EventKind says what an Event is about.
type EventKind int

const (
	StageStart EventKind = iota // a stage begins to read its input
	StageEnd                    // a stage has returned
	ItemStart                   // a worker begins with an item; a source has one, its whole run
	ItemEnd                     // a worker has done with an item
	UndoStart                   // an undo step begins
	UndoEnd                     // an undo step is over
)

// Event is something that happened in a run.
type Event struct {
	Kind     EventKind
	At       time.Duration // since the start of the run
	Took     time.Duration // of an ItemEnd or UndoEnd: since its start
	Stage    string
	Worker   int
	Item     string // name of the item or undo step
	Queue    int    // of an ItemStart: items waiting in the stage's inputs
	QueueCap int
	Bytes    int64 // of an ItemEnd: what the stage has counted so far
	Err      error // of an end
}

// State is how far a stage has come.
type State int32

// The states of a stage.
const (
	Waiting State = iota // no item has come yet
	Running
	Done
	Stopped // it failed, or the run was over before it was done
)

func (s State) String() string { return [...]string{"waiting", "running", "done", "stopped"}[s] }

// View looks into a run.
type View struct{ r *run }

// Graph is the name of the graph.
func (v *View) Graph() string { return v.r.g.name }

// Elapsed is the time since the run began.
func (v *View) Elapsed() time.Duration { return v.r.clock() }

// StageView is the state of a stage at one moment.
type StageView struct {
	Name        string
	Kind        string
	Doc         string
	Workers     int
	State       State
	In, Out     int64         // items read and written
	Bytes       int64         // as counted by Stage.Bytes
	Done, Total int64         // as told by Stage.Progress
	Busy        time.Duration // time in bodies, added up over workers
	Blocked     time.Duration // part of it spent waiting for room downstream
	First, Last time.Duration // since the start of the run: first item begun, last item or the stage ended
	Queue       int           // items waiting in its inputs
	QueueCap    int
}

// Stages returns the state of all stages, in the order of their declaration.
func (v *View) Stages() []StageView {
	views := make([]StageView, len(v.r.g.nodes))
	for i, n := range v.r.g.nodes {
		c := &n.stat
		views[i] = StageView{
			Name: n.name, Kind: n.kind, Doc: n.doc, Workers: n.workers, State: State(c.state.Load()),
			In: c.in.Load(), Out: c.out.Load(), Bytes: c.bytes.Load(), Done: c.done.Load(), Total: c.total.Load(),
			Busy: time.Duration(c.busy.Load()), Blocked: time.Duration(c.blocked.Load()),
			First: time.Duration(c.first.Load()), Last: time.Duration(c.last.Load()),
		}
		views[i].Queue, views[i].QueueCap = n.queue()
	}
	return views
}

// counters are what a watched run counts for each stage. Times are in nanoseconds.
type counters struct {
	state          atomic.Int32
	in, out, bytes atomic.Int64
	done, total    atomic.Int64
	busy, blocked  atomic.Int64
	first, last    atomic.Int64
}

func (n *node) queue() (depth, capacity int) {
	for _, e := range n.ins {
		depth += e.depth()
		capacity += e.buffer
	}
	return depth, capacity
}

func (r *run) watched() bool { return len(r.obs) > 0 }

func (r *run) clock() time.Duration { return time.Since(r.start) }

func (r *run) tell(e Event) {
	if e.At == 0 && r.watched() {
		e.At = r.clock()
	}
	for _, o := range r.obs {
		o.Event(e)
	}
}

func (r *run) stageStart(s *Stage) { r.tell(Event{Kind: StageStart, Stage: s.n.name}) }

func (r *run) stageEnd(s *Stage, err error) {
	if !r.watched() {
		return
	}
	state := Done
	if err != nil {
		state = Stopped
	}
	s.n.stat.last.Store(int64(r.clock()))
	s.n.stat.state.Store(int32(state))
	r.tell(Event{Kind: StageEnd, Stage: s.n.name, Err: err})
}

func (r *run) itemStart(s *Stage, item string) time.Duration {
	now := r.clock()
	s.begun(now)
	e := Event{Kind: ItemStart, At: now, Stage: s.n.name, Worker: s.worker, Item: item}
	e.Queue, e.QueueCap = s.n.queue()
	r.tell(e)
	return now
}

func (r *run) itemEnd(s *Stage, item string, began time.Duration, err error) {
	now := r.clock()
	s.n.stat.busy.Add(int64(now - began))
	s.n.stat.last.Store(int64(now))
	r.tell(Event{Kind: ItemEnd, At: now, Took: now - began, Stage: s.n.name, Worker: s.worker, Item: item, Bytes: s.n.stat.bytes.Load(), Err: err})
}

// begun notes that the stage has something to do.
func (s *Stage) begun(now time.Duration) {
	if s.n.stat.state.CompareAndSwap(int32(Waiting), int32(Running)) {
		s.n.stat.first.Store(int64(now))
	}
}

func (s *Stage) countIn() {
	if s.run.watched() {
		s.n.stat.in.Add(1)
		s.begun(s.run.clock())
	}
}

// countOut counts an item that was offered downstream at the time offered and is now taken.
func (s *Stage) countOut(offered time.Duration) {
	s.n.stat.out.Add(1)
	s.n.stat.blocked.Add(int64(s.run.clock() - offered))
}
