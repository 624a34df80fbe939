package pipeline

import "fmt"

// Source declares a stage that emits a stream. The stream ends when body returns nil. An error from emit means that the
// run is being cancelled: return it.
func Source[T any](g *Graph, name string, body func(s *Stage, emit func(T) error) error, opts ...Option) Stream[T] {
	n := g.declare("source", name, opts)
	out := output[T](n)
	n.run = func(s *Stage) error {
		return process(s, struct{}{}, func() error {
			return body(s, func(v T) error { return push(s, out, v) })
		})
	}
	return out
}

// Map declares a stage that makes one item of each.
func Map[I, O any](g *Graph, name string, in Stream[I], body func(*Stage, I) (O, error), opts ...Option) Stream[O] {
	n := g.declare("map", name, opts)
	input(n, in)
	out := output[O](n)
	n.run = func(s *Stage) error { return serve(s, in, out, one(body)) }
	return out
}

// one makes the body of a Map one of a FlatMap.
func one[I, O any](body func(*Stage, I) (O, error)) func(*Stage, I, func(O) error) error {
	return func(s *Stage, v I, emit func(O) error) error {
		o, err := body(s, v)
		if err != nil {
			return err
		}
		return emit(o)
	}
}

// FlatMap declares a stage that makes any number of items of each. An error from emit means that the run is being
// cancelled: return it.
func FlatMap[I, O any](g *Graph, name string, in Stream[I], body func(s *Stage, v I, emit func(O) error) error, opts ...Option) Stream[O] {
	n := g.declare("flatmap", name, opts)
	input(n, in)
	out := output[O](n)
	n.run = func(s *Stage) error { return serve(s, in, out, body) }
	return out
}

// Sink declares a stage that ends a stream.
func Sink[T any](g *Graph, name string, in Stream[T], body func(*Stage, T) error, opts ...Option) {
	n := g.declare("sink", name, opts)
	input(n, in)
	n.run = func(s *Stage) error {
		return serve(s, in, Stream[struct{}]{}, func(s *Stage, v T, _ func(struct{}) error) error { return body(s, v) })
	}
}

// Gather declares a barrier: it emits one slice, with all items in the order they came, when its input has ended. The
// slice of an empty stream is empty.
func Gather[T any](g *Graph, name string, in Stream[T], opts ...Option) Stream[[]T] {
	n := g.declare("gather", name, opts)
	input(n, in)
	out := output[[]T](n)
	n.run = func(s *Stage) error {
		var all []T
		for {
			v, ok, err := pull(s, in)
			if err != nil {
				return err
			}
			if !ok {
				return push(s, out, all)
			}
			if all = append(all, v); len(all) > n.limit {
				return s.overLimit()
			}
		}
	}
	return out
}

// Broadcast declares a stage that gives every item to each of n streams. Readers share what an item points to.
func Broadcast[T any](g *Graph, name string, in Stream[T], n int, opts ...Option) []Stream[T] {
	d := g.declare("broadcast", name, opts)
	input(d, in)
	outs := make([]Stream[T], n)
	for i := range outs {
		outs[i] = output[T](d)
	}
	d.run = func(s *Stage) error { return pump(s, in, outs...) }
	return outs
}

// Merge declares a stage that mixes streams as their items come.
func Merge[T any](g *Graph, name string, ins ...Stream[T]) Stream[T] {
	n := g.declare("merge", name, nil)
	for _, in := range ins {
		input(n, in)
	}
	out := output[T](n)
	n.run = func(s *Stage) error {
		var pumps []func(*Stage) error
		for _, in := range ins {
			pumps = append(pumps, func(s *Stage) error { return pump(s, in, out) })
		}
		return s.group(pumps...)
	}
	return out
}

// Join declares a stage that pairs the first items of two streams, then the second ones, and so on. It is an error if
// one stream is longer than the other.
func Join[A, B, O any](g *Graph, name string, a Stream[A], b Stream[B], body func(*Stage, A, B) (O, error), opts ...Option) Stream[O] {
	n := g.declare("join", name, opts)
	input(n, a)
	input(n, b)
	out := output[O](n)
	n.run = func(s *Stage) error {
		qa, qb := queue[A]{open: true}, queue[B]{open: true}
		for {
			if len(qa.held) > 0 && len(qb.held) > 0 {
				va, vb := qa.take(), qb.take()
				err := process(s, va, func() error {
					o, err := body(s, va, vb)
					if err != nil {
						return err
					}
					return push(s, out, o)
				})
				if err != nil {
					return err
				}
				continue
			}
			if (!qa.open && len(qb.held) > 0) || (!qb.open && len(qa.held) > 0) {
				short, long := a.e.from.name, b.e.from.name
				if qa.open || len(qa.held) > 0 {
					short, long = long, short
				}
				return s.fail("", fmt.Errorf("the stream of %s ended before that of %s", short, long))
			}
			if !qa.open && !qb.open {
				return nil
			}
			var err error
			select {
			case v, ok := <-qa.readable(a.ch, n.holds):
				err = qa.put(s, v, ok)
			case v, ok := <-qb.readable(b.ch, n.holds):
				err = qb.put(s, v, ok)
			case <-s.ctx.Done():
				err = errStopped
			}
			if err != nil {
				return err
			}
		}
	}
	return out
}

// queue is what a join holds of one input.
type queue[T any] struct {
	held []T
	open bool
}

// readable returns the channel to read more from, or nil when enough is held.
func (q *queue[T]) readable(ch chan T, hold bool) chan T {
	if !q.open || (len(q.held) > 0 && !hold) {
		return nil
	}
	return ch
}

func (q *queue[T]) put(s *Stage, v T, ok bool) error {
	if !ok {
		q.open = false
		return nil
	}
	s.countIn()
	if q.held = append(q.held, v); len(q.held) > s.n.limit {
		return s.overLimit()
	}
	return nil
}

func (q *queue[T]) take() T {
	var zero T
	v := q.held[0]
	q.held[0] = zero // let go of what it points to
	q.held = q.held[1:]
	return v
}

// With declares a stage that hands the one item of the stream value to the body along with each item of the stream in.
// Items of in wait for the value. It is an error if value has no item, or more than one.
func With[A, B, O any](g *Graph, name string, in Stream[A], value Stream[B], body func(*Stage, A, B) (O, error), opts ...Option) Stream[O] {
	n := g.declare("with", name, opts)
	input(n, in)
	input(n, value)
	out := output[O](n)
	n.run = func(s *Stage) error {
		held := queue[A]{open: true}
		v, err := await(s, in, value, &held)
		if err != nil {
			return err
		}
		rest := Stream[A]{ch: make(chan A)}
		return s.group(
			func(s *Stage) error { return expectEnd(s, value) },
			func(s *Stage) error { return refill(s, held, in, rest) },
			func(s *Stage) error {
				return serve(s, rest, out, one(func(s *Stage, a A) (O, error) { return body(s, a, v) }))
			})
	}
	return out
}

// await returns the item of value and puts into held what comes of in meanwhile.
func await[A, B any](s *Stage, in Stream[A], value Stream[B], held *queue[A]) (v B, err error) {
	for {
		ch := in.ch
		if !held.open || !s.n.holds {
			ch = nil
		}
		select {
		case a, ok := <-ch:
			if !ok {
				held.open = false
			} else if held.held = append(held.held, a); len(held.held) > s.n.limit {
				return v, s.overLimit()
			}
		case v, ok := <-value.ch:
			if !ok {
				return v, s.fail("", fmt.Errorf("the stream of %s ended without a value", value.e.from.name))
			}
			return v, nil
		case <-s.ctx.Done():
			return v, errStopped
		}
	}
}

func expectEnd[B any](s *Stage, value Stream[B]) error {
	_, ok, err := receive(s, value.ch)
	if ok {
		err = s.fail("", fmt.Errorf("the stream of %s has more than one value", value.e.from.name))
	}
	return err
}

// refill passes on what is held, then what still comes.
func refill[A any](s *Stage, held queue[A], in, rest Stream[A]) error {
	for len(held.held) > 0 {
		if err := send(s, rest.ch, held.take()); err != nil {
			return err
		}
	}
	for held.open {
		v, ok, err := receive(s, in.ch)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := send(s, rest.ch, v); err != nil {
			return err
		}
	}
	close(rest.ch)
	return nil
}
