package image

import (
	"errors"
	"fmt"
	"io"
)

// ErrFormat is what every FormatError is, for errors.Is.
var ErrFormat = errors.New("malformed image")

// FormatError says that the bytes of an image are not what they ought to be.
type FormatError struct {
	File  string // file name in the set
	Entry int    // number of the entry, counted from 0; -1 before the first one
	Err   error  // what is wrong, with the field where one is to blame
}

func (e *FormatError) Error() string {
	if e.Entry < 0 {
		return fmt.Sprintf("image %s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("image %s, entry %d: %v", e.File, e.Entry, e.Err)
}

// Unwrap leads to the cause.
func (e *FormatError) Unwrap() error { return e.Err }

// Is makes every FormatError an ErrFormat.
func (e *FormatError) Is(target error) bool { return target == ErrFormat }

// Errorf makes a FormatError for callers that check what a message means: entry n of file has a value that
// cannot be.
func Errorf(file string, n int, format string, args ...any) error {
	return &FormatError{File: file, Entry: n, Err: fmt.Errorf(format, args...)}
}

// cut turns the end of the file where there must be more into a sentence.
func cut(err error, what string) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("file ends in the middle of %s: %w", what, io.ErrUnexpectedEOF)
	}
	return err
}
