package pipeline

import (
	"context"
	"sync"
	"testing"
)

// BenchmarkItem is the cost of one item through a source, a map and a sink that do nothing: without observers, with the
// cheapest one, and, to compare, with three bare goroutines that can be cancelled.
func BenchmarkItem(b *testing.B) {
	declare := func(n int) *Graph {
		g := New("bench")
		Sink(g, "sink", Map(g, "map", Source(g, "count", count(n), Buffer(64)), same[int], Buffer(64)), ignore)
		return g
	}
	b.Run("unobserved", func(b *testing.B) {
		b.ReportAllocs()
		if err := declare(b.N).Run(b.Context()); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("observed", func(b *testing.B) {
		b.ReportAllocs()
		if err := declare(b.N).Run(b.Context(), &Stats{}); err != nil {
			b.Fatal(err)
		}
	})
	b.Run("bare", func(b *testing.B) {
		b.ReportAllocs()
		ctx, cancel := context.WithCancel(b.Context())
		defer cancel()
		bare(ctx, b.N)
	})
}

// bare does what the benchmark's graph does.
func bare(ctx context.Context, n int) {
	first, second := make(chan int, 64), make(chan int, 64)
	send := func(ch chan int, v int) bool {
		select {
		case ch <- v:
			return true
		case <-ctx.Done():
			return false
		}
	}
	receive := func(ch chan int) (int, bool) {
		select {
		case v, ok := <-ch:
			return v, ok
		case <-ctx.Done():
			return 0, false
		}
	}
	var group sync.WaitGroup
	group.Go(func() {
		defer close(first)
		for i := range n {
			if !send(first, i) {
				return
			}
		}
	})
	group.Go(func() {
		defer close(second)
		for v, ok := receive(first); ok; v, ok = receive(first) {
			if !send(second, v) {
				return
			}
		}
	})
	group.Go(func() {
		for _, ok := receive(second); ok; _, ok = receive(second) {
		}
	})
	group.Wait()
}

// BenchmarkRun is the cost of declaring and running a graph of ten stages.
func BenchmarkRun(b *testing.B) {
	for b.Loop() {
		g := New("bench")
		s := Source(g, "source", count(1))
		for _, name := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
			s = Map(g, name, s, same[int])
		}
		Sink(g, "sink", s, ignore)
		if err := g.Run(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
