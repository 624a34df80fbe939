package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// world is what the stages of a test change.
type world struct {
	mu  sync.Mutex
	has map[string]bool
}

func (w *world) set(name string, there bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if there {
		w.has[name] = true
	} else {
		delete(w.has, name)
	}
}

// declareWorld declares a graph whose stages change w in several ways, with steps that are done with on the way.
func declareWorld(w *world) *Graph {
	g := New("world")
	acquire := func(s *Stage, name string) (*UndoStep, error) {
		step, err := s.Undo().Push(name, time.Second, func(context.Context) error {
			w.set(name, false)
			return nil
		})
		if err != nil {
			return nil, err
		}
		w.set(name, true)
		return step, nil
	}
	seized := Map(g, "seize", Source(g, "tasks", count(6)), func(s *Stage, i int) (int, error) {
		_, err := acquire(s, fmt.Sprint("stopped ", i))
		return i, err
	})
	injected := Map(g, "inject", seized, func(s *Stage, i int) (int, error) {
		step, err := acquire(s, fmt.Sprint("blob ", i))
		if err != nil {
			return 0, err
		}
		return i, step.Run(s.Context()) // an acquisition that is given back at once
	}, Workers(3))
	Sink(g, "write", Gather(g, "all", injected), func(s *Stage, all []int) error {
		for _, i := range all {
			if _, err := acquire(s, fmt.Sprint("file ", i)); err != nil {
				return err
			}
		}
		return nil
	})
	return g
}

// TestFailAfterEverything breaks a run off after each single acquisition and item, and finds the world as it was.
func TestFailAfterEverything(t *testing.T) {
	var mu sync.Mutex
	var points []string
	w := &world{has: map[string]bool{}}
	g := declareWorld(w)
	g.FailAfter(func(stage, acquisition string) error {
		mu.Lock()
		defer mu.Unlock()
		points = append(points, stage+": "+acquisition)
		return nil
	})
	mustRun(t, g)
	if len(points) != 6*3+6+6+1+1 || len(w.has) != 12 {
		t.Fatalf("%d points, world %v", len(points), w.has)
	}
	for _, point := range points {
		injected := errors.New("injected after " + point)
		w := &world{has: map[string]bool{}}
		g := declareWorld(w)
		g.FailAfter(func(stage, acquisition string) error {
			if stage+": "+acquisition == point {
				return injected
			}
			return nil
		})
		if err := g.Run(t.Context()); !errors.Is(err, injected) {
			t.Errorf("%s: Run returned %v", point, err)
		}
		if len(w.has) != 0 {
			t.Errorf("%s: left behind: %v", point, w.has)
		}
	}
}

func TestUnwind(t *testing.T) {
	g := New("t")
	var order []string
	push := func(name string, bound time.Duration, err error) *UndoStep {
		step, perr := g.Undo().Push(name, bound, func(ctx context.Context) error {
			order = append(order, name)
			if errors.Is(err, context.DeadlineExceeded) {
				<-ctx.Done()
				return ctx.Err()
			}
			return err
		})
		if perr != nil {
			t.Fatal(perr)
		}
		return step
	}
	stuck := make(chan struct{})
	defer close(stuck)
	push("first", 0, nil)
	push("bad", 0, errors.New("no way"))
	push("gone", 0, nil).Done()
	push("slow", time.Millisecond, context.DeadlineExceeded)
	if _, err := g.Undo().Push("stuck", time.Millisecond, func(context.Context) error { <-stuck; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Undo().Push("panic", 0, func(context.Context) error { panic("at the disco") }); err != nil {
		t.Fatal(err)
	}
	push("last", 0, nil)

	ctx, cancel := context.WithCancel(t.Context())
	cancel() // it unwinds all the same
	err := g.Undo().Unwind(ctx)
	if want := []string{"last", "slow", "bad", "first"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	want := "undo panic: panic: at the disco\nundo stuck: not done within 1ms\nundo slow: context deadline exceeded\nundo bad: no way"
	if err == nil || err.Error() != want {
		t.Errorf("got:\n%v\nwant:\n%s", err, want)
	}
	if err := g.Undo().Unwind(ctx); err != nil {
		t.Errorf("second time: %v", err)
	}
}

func TestUndoErrorsJoinTheCause(t *testing.T) {
	g := New("t")
	Sink(g, "b", Source(g, "a", count(3)), func(s *Stage, v int) error {
		_, err := s.Undo().Push("a door", 0, func(context.Context) error { return errors.New("it is jammed") })
		return errors.Join(err, errors.New("cause"))
	})
	err := g.Run(t.Context())
	if want := "t: b: 0: cause\nundo a door: it is jammed"; err == nil || err.Error() != want {
		t.Errorf("got %v", err)
	}
}

// memo is a journal and its records in one.
type memo struct {
	log  []string
	fail string
}

type door string

func (door) UndoKind() string { return "door" }

func (m *memo) Record(r UndoRecord) (func(), error) {
	name := r.UndoKind() + " " + string(r.(door))
	if name == m.fail {
		return nil, errors.New("full")
	}
	m.log = append(m.log, "+"+name)
	return func() { m.log = append(m.log, "-"+name) }, nil
}

func (m *memo) Commit() error {
	m.log = append(m.log, "commit")
	return nil
}

func TestJournal(t *testing.T) {
	back := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	tests := []struct {
		name string
		fail string
		body func(u *UndoStack) error
		want string
		err  string
	}{
		{"success commits", "", func(u *UndoStack) error {
			a, err1 := u.Push("a", 0, back(nil), door("a1"), door("a2"))
			_, err2 := u.Push("b", 0, back(nil), door("b"))
			a.Done()
			return errors.Join(err1, err2)
		}, "+door a1,+door a2,+door b,-door a2,-door a1,commit", ""},
		{"failure forgets what is undone", "", func(u *UndoStack) error {
			_, err1 := u.Push("a", 0, back(nil), door("a"))
			_, err2 := u.Push("b", 0, back(errors.New("jammed")), door("b"))
			return errors.Join(err1, err2, errors.New("cause"))
		}, "+door a,+door b,-door a", "t: b: cause\nundo b: jammed"},
		{"what cannot be recorded fails", "door a", func(u *UndoStack) error {
			_, err := u.Push("a", 0, back(nil), door("a"))
			return err
		}, "", "t: b: journal a: full"},
		{"steps after a commit are taken back", "", func(u *UndoStack) error {
			_, err1 := u.Push("a", 0, back(errors.New("never called")), door("a"))
			err2 := u.Commit()
			_, err3 := u.Push("b", 0, back(nil), door("b"))
			return errors.Join(err1, err2, err3, errors.New("cause"))
		}, "+door a,commit,+door b,-door b", "t: b: cause"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := New("t")
			m := &memo{fail: test.fail}
			g.SetJournal(m)
			in := Source(g, "a", func(_ *Stage, emit func(struct{}) error) error { return emit(struct{}{}) })
			Sink(g, "b", in, func(s *Stage, _ struct{}) error { return test.body(s.Undo()) })
			err := g.Run(t.Context())
			if (err == nil) != (test.err == "") || err != nil && err.Error() != test.err {
				t.Errorf("got error %v, want %s", err, test.err)
			}
			if got := strings.Join(m.log, ","); got != test.want {
				t.Errorf("journal %s, want %s", got, test.want)
			}
		})
	}
}
