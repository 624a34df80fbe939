package spread

import (
	"errors"
	"sync/atomic"
	"testing"
)

func TestRangeDoesAllOnce(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 100} {
		done := make([]atomic.Int32, n)
		if err := Range(n, 8, func(i int) error { done[i].Add(1); return nil }); err != nil {
			t.Fatal(err)
		}
		for i := range done {
			if got := done[i].Load(); got != 1 {
				t.Errorf("of %d, %d was done %d times", n, i, got)
			}
		}
	}
}

func TestRangeEndsWithAnError(t *testing.T) {
	broken := errors.New("broken")
	for _, n := range []int{5, 50} {
		err := Range(n, 8, func(i int) error {
			if i == 3 {
				return broken
			}
			return nil
		})
		if !errors.Is(err, broken) {
			t.Errorf("of %d: %v", n, err)
		}
	}
}
