// Package spread does many small things on all processors. It knows no process.
package spread

import (
	"runtime"

	"golang.org/x/sync/errgroup"
)

// Range calls do for all of 0 to n-1, in chunks that several goroutines take in turn; a single chunk needs none. It ends
// with the first error.
func Range(n, chunk int, do func(i int) error) error {
	run := func(lo, hi int) error {
		for i := lo; i < hi; i++ {
			if err := do(i); err != nil {
				return err
			}
		}
		return nil
	}
	if n <= chunk {
		return run(0, n)
	}
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	for lo := 0; lo < n; lo += chunk {
		group.Go(func() error { return run(lo, min(lo+chunk, n)) })
	}
	return group.Wait()
}
