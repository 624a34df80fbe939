package pipeline_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"cryo/pipeline"
)

// A graph is declared stage by stage and then run.
func Example() {
	g := pipeline.New("squares")
	numbers := pipeline.Source(g, "count", func(_ *pipeline.Stage, emit func(int) error) error {
		for i := 1; i <= 5; i++ {
			if err := emit(i); err != nil {
				return err
			}
		}
		return nil
	})
	squares := pipeline.Map(g, "square", numbers, func(_ *pipeline.Stage, n int) (int, error) {
		return n * n, nil
	}, pipeline.Workers(4), pipeline.InOrder())
	pipeline.Sink(g, "print", squares, func(_ *pipeline.Stage, n int) error {
		fmt.Println(n)
		return nil
	})
	if err := g.Run(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 1
	// 4
	// 9
	// 16
	// 25
}

// The branches of a diamond may be of unlike length, even when one of them holds a barrier.
func ExampleWith() {
	g := pipeline.New("shares")
	numbers := pipeline.Source(g, "count", func(_ *pipeline.Stage, emit func(int) error) error {
		return errors.Join(emit(10), emit(30), emit(60))
	})
	both := pipeline.Broadcast(g, "fork", numbers, 2)
	sum := pipeline.Map(g, "sum", pipeline.Gather(g, "gather", both[0]), func(_ *pipeline.Stage, all []int) (int, error) {
		sum := 0
		for _, n := range all {
			sum += n
		}
		return sum, nil
	})
	shares := pipeline.With(g, "share", both[1], sum, func(_ *pipeline.Stage, n, sum int) (string, error) {
		return fmt.Sprintf("%d of %d", n, sum), nil
	})
	pipeline.Sink(g, "print", shares, func(_ *pipeline.Stage, s string) error {
		fmt.Println(s)
		return nil
	})
	if err := g.Run(context.Background()); err != nil {
		fmt.Println(err)
	}
	// Output:
	// 10 of 100
	// 30 of 100
	// 60 of 100
}

// What a failed run has done is taken back in reverse order.
func ExampleUndoStack() {
	g := pipeline.New("paint")
	rooms := pipeline.Source(g, "rooms", func(_ *pipeline.Stage, emit func(string) error) error {
		return errors.Join(emit("hall"), emit("attic"), emit("cellar"))
	})
	pipeline.Sink(g, "paint", rooms, func(s *pipeline.Stage, room string) error {
		if room == "cellar" {
			return errors.New("no light")
		}
		_, err := s.Undo().Push("paint "+room, time.Second, func(context.Context) error {
			fmt.Println("scrape", room)
			return nil
		})
		return err
	})
	fmt.Println(g.Run(context.Background()))
	// Output:
	// scrape attic
	// scrape hall
	// paint: paint: cellar: no light
}
