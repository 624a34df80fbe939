package ptrace

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTracerEnds has no tracer on the first thread of the process, which would not end with it.
func TestTracerEnds(t *testing.T) {
	for range 200 {
		tr := NewTracer()
		err := tr.Do(func() error {
			if unix.Gettid() == os.Getpid() {
				return errors.New("the tracer has the first thread")
			}
			return nil
		})
		tr.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
}
