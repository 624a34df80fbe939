package stages

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// numberedError says in words what no system call has said; errors.Is knows it by an error number, which RPC clients get.
type numberedError struct {
	errno unix.Errno
	text  string
}

func numbered(errno unix.Errno, format string, args ...any) error {
	return &numberedError{errno, fmt.Sprintf(format, args...)}
}

func (e *numberedError) Error() string { return e.text }

// Is implements what errors.Is asks for.
func (e *numberedError) Is(target error) bool { return target == e.errno }
