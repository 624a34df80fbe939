package collectors

import (
	"fmt"
	"sort"
	"strings"
	"sync"
)

// Obstacle is one thing that stands in the way of a dump: what it is, where, and what would let it through.
type Obstacle struct {
	Pid int // the task, as the tool sees it; 0 when it is no single task's
	// Where is the place in the task: "fd 5", "mapping 7f00-8000", "timer 3". May be empty.
	Where string
	// What describes the object: "TCP socket 10.0.0.1:80 to 10.0.0.2:4711 in state ESTABLISHED".
	What string
	// Remedy is the option or action that lets the dump go on; empty when there is none.
	Remedy string
	// Passing is set if it may go away by itself in a moment, when the task goes on.
	Passing bool
}

func (o Obstacle) Error() string {
	var b strings.Builder
	if o.Pid != 0 {
		fmt.Fprintf(&b, "task %d", o.Pid)
		if o.Where != "" {
			b.WriteString(", ")
		}
	}
	if o.Where != "" {
		b.WriteString(o.Where)
	}
	if b.Len() > 0 {
		b.WriteString(": ")
	}
	b.WriteString(o.What)
	if o.Remedy != "" {
		fmt.Fprintf(&b, " (%s)", o.Remedy)
	}
	return b.String()
}

// Obstacles gathers all obstacles of a dump, so that a refusal names everything at once. Safe for concurrent use.
type Obstacles struct {
	mu   sync.Mutex
	list []Obstacle
}

// Add notes one more obstacle; the pass goes on.
func (o *Obstacles) Add(ob Obstacle) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.list = append(o.list, ob)
}

// All returns what was noted, in order of task and place.
func (o *Obstacles) All() []Obstacle {
	o.mu.Lock()
	defer o.mu.Unlock()
	list := append([]Obstacle(nil), o.list...)
	sort.SliceStable(list, func(i, j int) bool { return list[i].Pid < list[j].Pid })
	return list
}

// Err is nil when nothing stands in the way, else an *ObstacleError.
func (o *Obstacles) Err() error {
	if list := o.All(); len(list) > 0 {
		return &ObstacleError{list}
	}
	return nil
}

// ObstacleError is the refusal of a dump with everything that stood in its way. Error() is one sentence about the
// first; a front end prints List for the rest.
type ObstacleError struct{ List []Obstacle }

func (e *ObstacleError) Error() string {
	if n := len(e.List) - 1; n > 0 {
		return fmt.Sprintf("%s, and %d more (all are in the log)", e.List[0].Error(), n)
	}
	return e.List[0].Error()
}
