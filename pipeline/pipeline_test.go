package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// count is the body of a source of the numbers below n.
func count(n int) func(*Stage, func(int) error) error {
	return func(_ *Stage, emit func(int) error) error {
		for i := range n {
			if err := emit(i); err != nil {
				return err
			}
		}
		return nil
	}
}

// same is the body of a map that changes nothing.
func same[T any](_ *Stage, v T) (T, error) { return v, nil }

// ignore is the body of a sink for what a test does not look at.
func ignore[T any](*Stage, T) error { return nil }

// collect declares a sink that appends to the slice it returns; look at it after the run.
func collect[T any](g *Graph, in Stream[T]) *[]T {
	var all []T
	Sink(g, "collect", in, func(_ *Stage, v T) error {
		all = append(all, v)
		return nil
	})
	return &all
}

// mustRun runs g and fails the test if that fails or does not come to an end.
func mustRun(t *testing.T, g *Graph, obs ...Observer) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("deadlock"))
	defer cancel()
	if err := g.Run(ctx, obs...); err != nil {
		t.Fatal(err)
	}
}

func upTo(n int) []int {
	all := make([]int, n)
	for i := range all {
		all[i] = i
	}
	return all
}

func TestInOrder(t *testing.T) {
	const n = 1000
	g := New("t")
	in := Source(g, "count", count(n))
	out := FlatMap(g, "twice", in, func(_ *Stage, v int, emit func(int) error) error {
		if v%7 == 0 {
			time.Sleep(50 * time.Microsecond) // a slow one, which others would overtake
		}
		if v%2 == 1 {
			return nil
		}
		return errors.Join(emit(v), emit(v+1))
	}, Workers(8), InOrder(), Buffer(0))
	got := collect(g, out)
	mustRun(t, g)
	if !slices.Equal(*got, upTo(n)) {
		t.Errorf("got %v", *got)
	}
}

func TestWorkers(t *testing.T) {
	const workers = 3
	g := New("t")
	meet := make(chan struct{})
	var arrived atomic.Int32
	seen := Map(g, "meet", Source(g, "count", count(workers)), func(s *Stage, _ int) (int, error) {
		if arrived.Add(1) == workers {
			close(meet)
		}
		select { // nobody leaves before all are there
		case <-meet:
			return s.Worker(), nil
		case <-s.Context().Done():
			return 0, context.Cause(s.Context())
		}
	}, Workers(workers))
	got := collect(g, seen)
	mustRun(t, g)
	slices.Sort(*got)
	if !slices.Equal(*got, upTo(workers)) {
		t.Errorf("workers %v", *got)
	}
}

// TestDiamonds runs graphs whose branches meet again, all with unbuffered edges and far more items than fit in flight.
func TestDiamonds(t *testing.T) {
	const n = 500
	none := Buffer(0)
	add := func(_ *Stage, a, b int) (int, error) { return a + b, nil }
	first := func(_ *Stage, a int, _ []int) (int, error) { return a, nil }
	spread := func(_ *Stage, all []int, emit func(int) error) error {
		for _, v := range all {
			if err := emit(v); err != nil {
				return err
			}
		}
		return nil
	}
	tests := map[string]func(g *Graph) Stream[int]{
		"value of the same stream": func(g *Graph) Stream[int] {
			b := Broadcast(g, "fork", Source(g, "count", count(n), none), 2, none)
			return With(g, "with", b[1], Gather(g, "gather", b[0], none), first, none)
		},
		"value of the same stream, several workers": func(g *Graph) Stream[int] {
			b := Broadcast(g, "fork", Source(g, "count", count(n), none), 2, none)
			return With(g, "with", b[0], Gather(g, "gather", b[1], none), first, Workers(3), InOrder(), none)
		},
		"pairs around a barrier": func(g *Graph) Stream[int] {
			b := Broadcast(g, "fork", Source(g, "count", count(n), none), 2, none)
			late := FlatMap(g, "spread", Gather(g, "gather", b[0], none), spread, none)
			zero := Map(g, "zero", b[1], func(*Stage, int) (int, error) { return 0, nil }, none)
			return Join(g, "join", zero, late, add, none)
		},
		"two joins between two forks": func(g *Graph) Stream[int] {
			a := Broadcast(g, "fork a", Source(g, "a", count(n), none), 2, none)
			b := Broadcast(g, "fork b", Source(g, "b", func(s *Stage, emit func(int) error) error {
				for range n {
					if err := emit(0); err != nil {
						return err
					}
				}
				return nil
			}, none), 2, none)
			held := With(g, "with", b[1], Gather(g, "gather", a[1], none), first, none)
			return Join(g, "outer", Join(g, "inner", a[0], b[0], add, none), held, add, none)
		},
		"three branches": func(g *Graph) Stream[int] {
			b := Broadcast(g, "fork", Source(g, "count", count(n), none), 3, none)
			w := With(g, "with", b[2], Gather(g, "gather", b[0], none), first, none)
			late := FlatMap(g, "spread", Gather(g, "gather 2", w, none), spread, none)
			zero := Map(g, "zero", b[1], func(*Stage, int) (int, error) { return 0, nil }, none)
			return Join(g, "join", late, zero, add, none)
		},
	}
	for name, declare := range tests {
		t.Run(name, func(t *testing.T) {
			g := New("diamond")
			got := collect(g, declare(g))
			mustRun(t, g)
			if !slices.Equal(*got, upTo(n)) {
				t.Errorf("got %d items: %v", len(*got), *got)
			}
		})
	}
}

// TestBackPressure shows that a sink that does not go on holds back the source, also through a join on a circle.
func TestBackPressure(t *testing.T) {
	g := New("t")
	var emitted atomic.Int64
	held := make(chan struct{})
	ctx, cancel := context.WithCancelCause(t.Context())
	in := Source(g, "count", func(s *Stage, emit func(int) error) error {
		for i := 0; ; i++ {
			if err := emit(i); err != nil {
				return err
			}
			emitted.Store(int64(i + 1))
		}
	})
	b := Broadcast(g, "fork", in, 2)
	sum := Join(g, "join", Map(g, "left", b[0], same[int]), b[1], func(_ *Stage, a, b int) (int, error) { return a + b, nil })
	Sink(g, "stuck", sum, func(s *Stage, _ int) error {
		close(held)
		<-s.Context().Done()
		return context.Cause(s.Context())
	})
	done := make(chan error)
	go func() { done <- g.Run(ctx) }()
	<-held
	// Everything in flight settles: the source stands when its counter does.
	for last := int64(-1); last != emitted.Load(); time.Sleep(5 * time.Millisecond) {
		last = emitted.Load()
	}
	stop := errors.New("enough")
	cancel(stop)
	if err := <-done; !errors.Is(err, stop) {
		t.Errorf("Run returned %v", err)
	}
	if n := emitted.Load(); n > 20 {
		t.Errorf("the source ran on to %d items", n)
	}
}

func TestMerge(t *testing.T) {
	g := New("t")
	b := Broadcast(g, "fork", Source(g, "count", count(100)), 3)
	all := Gather(g, "gather", Merge(g, "merge", b...))
	got := collect(g, all)
	mustRun(t, g)
	slices.Sort((*got)[0])
	if n := len((*got)[0]); n != 300 {
		t.Errorf("%d items", n)
	}
}

func TestJoinMismatch(t *testing.T) {
	second := func(_ *Stage, _, b int) (int, error) { return b, nil }
	tests := []struct {
		name    string
		declare func(g *Graph)
		want    string
	}{
		{"short second", func(g *Graph) {
			Sink(g, "sink", Join(g, "join", Source(g, "a", count(3)), Source(g, "b", count(2)), second), ignore)
		}, "t: join: the stream of b ended before that of a"},
		{"short first", func(g *Graph) {
			Sink(g, "sink", Join(g, "join", Source(g, "a", count(2)), Source(g, "b", count(3)), second), ignore)
		}, "t: join: the stream of a ended before that of b"},
		{"no value", func(g *Graph) {
			Sink(g, "sink", With(g, "with", Source(g, "a", count(3)), Source(g, "b", count(0)), second), ignore)
		}, "t: with: the stream of b ended without a value"},
		{"two values", func(g *Graph) {
			Sink(g, "sink", With(g, "with", Source(g, "a", count(3)), Source(g, "b", count(2)), second), ignore)
		}, "t: with: the stream of b has more than one value"},
		{"gather beyond its limit", func(g *Graph) {
			Sink(g, "sink", Gather(g, "gather", Source(g, "a", count(4)), Limit(3)), ignore)
		}, "t: gather: more than 3 items would have to be held"},
		{"join beyond its limit", func(g *Graph) {
			b := Broadcast(g, "fork", Source(g, "a", count(100)), 2)
			w := With(g, "with", b[0], Gather(g, "gather", b[1]), func(_ *Stage, a int, _ []int) (int, error) { return a, nil }, Limit(9))
			Sink(g, "sink", w, ignore)
		}, "t: with: more than 9 items would have to be held"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := New("t")
			test.declare(g)
			if err := g.Run(t.Context()); err == nil || err.Error() != test.want {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestMisdeclared(t *testing.T) {
	tests := []struct {
		name    string
		declare func(g *Graph)
		want    string
	}{
		{"empty", func(*Graph) {}, "it has no stages"},
		{"read twice", func(g *Graph) {
			s := Source(g, "a", count(1))
			Sink(g, "b", s, ignore)
			Sink(g, "c", s, ignore)
		}, "stage c: the stream of a is already read by b; use Broadcast"},
		{"read never", func(g *Graph) { Source(g, "a", count(1)) }, "stage a: its stream of int is read by no stage"},
		{"name twice", func(g *Graph) {
			Sink(g, "a", Source(g, "a", count(1)), ignore)
		}, "stage a: the name is taken by another stage"},
		{"no name", func(g *Graph) { Sink(g, "", Source(g, "a", count(1)), ignore) }, "a sink has no name"},
		{"zero stream", func(g *Graph) { Sink(g, "a", Stream[int]{}, ignore) }, "stage a: an input is the zero Stream, which no stage writes"},
		{"other graph", func(g *Graph) {
			Sink(g, "a", Source(New("u"), "b", count(1)), ignore)
		}, "stage a: an input comes from another graph (u)"},
		{"option of no use", func(g *Graph) {
			Sink(g, "a", Source(g, "b", count(1), Workers(2)), ignore, InOrder())
		}, "stage a: a sink has no option InOrder"},
		{"no workers", func(g *Graph) { Sink(g, "a", Source(g, "b", count(1)), ignore, Workers(0)) }, "Workers(0)"},
		{"pairs out of order", func(g *Graph) {
			b := Broadcast(g, "fork", Source(g, "a", count(1)), 2)
			m := Map(g, "m", b[0], same[int], Workers(2))
			Sink(g, "sink", Join(g, "j", Map(g, "n", m, same[int]), b[1], func(*Stage, int, int) (int, error) { return 0, nil }), ignore)
		}, "stage j: pairs by position, but the order of n's stream is not fixed; use InOrder"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			g := New("t")
			test.declare(g)
			err := g.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.HasPrefix(err.Error(), "graph t is misdeclared: ") {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestRunsOnce(t *testing.T) {
	g := New("t")
	Sink(g, "b", Source(g, "a", count(1)), ignore)
	mustRun(t, g)
	if err := g.Run(t.Context()); err == nil || err.Error() != "graph t has run already" {
		t.Errorf("second run: %v", err)
	}
}

type task int

func (t task) TraceName() string { return fmt.Sprintf("task %d", int(t)) }

func TestError(t *testing.T) {
	cause := errors.New("no such process")
	reached := false
	g := New("dump")
	tasks := Map(g, "seize", Source(g, "count", count(50)), func(_ *Stage, i int) (task, error) { return task(i), nil })
	seen := Map(g, "collect", tasks, func(_ *Stage, v task) (task, error) {
		if v == 7 {
			return 0, cause
		}
		return v, nil
	}, Workers(2))
	Sink(g, "commit", Gather(g, "all", seen), func(*Stage, []task) error {
		reached = true
		return nil
	})
	err := g.Run(t.Context())
	var where *StageError
	if !errors.As(err, &where) || !errors.Is(err, cause) {
		t.Fatalf("got %v", err)
	}
	if want := "dump: collect: task 7: no such process"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if reached {
		t.Error("the broken stream was taken for a finished one")
	}
}

func TestPanic(t *testing.T) {
	cause := errors.New("oops")
	var log strings.Builder
	g := New("t")
	g.SetLogger(slog.New(slog.NewTextHandler(&log, nil)))
	Sink(g, "b", Source(g, "a", count(3)), func(_ *Stage, v int) error { panic(cause) })
	err := g.Run(t.Context())
	var p *PanicError
	if !errors.As(err, &p) || !errors.Is(err, cause) || err.Error() != "t: b: 0: panic: oops" {
		t.Fatalf("got %v", err)
	}
	if long := fmt.Sprintf("%+v", p); !strings.Contains(long, "TestPanic") {
		t.Errorf("no stack in %s", long)
	}
	if !strings.Contains(log.String(), "TestPanic") {
		t.Errorf("no stack in the log: %s", log.String())
	}
}

func TestCancel(t *testing.T) {
	cause := errors.New("interrupted")
	for _, when := range []string{"before", "during"} {
		t.Run(when, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			g := New("t")
			Sink(g, "b", Source(g, "a", count(3)), func(s *Stage, _ int) error {
				cancel(cause)
				<-s.Context().Done()
				return s.Context().Err()
			})
			if when == "before" {
				cancel(cause)
			}
			if err := g.Run(ctx); !errors.Is(err, cause) || err.Error() != "t: interrupted" {
				t.Errorf("got %v", err)
			}
		})
	}
}
