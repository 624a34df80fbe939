package pipeline

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"strings"
)

// StageError says where a run failed: "graph: stage: item: cause".
type StageError struct {
	Graph string
	Stage string
	Item  string // name of the item that was being worked on, if it has one
	Err   error
}

func (e *StageError) Error() string {
	parts := []string{e.Graph, e.Stage, e.Item, e.Err.Error()}
	if e.Item == "" {
		parts = []string{e.Graph, e.Stage, e.Err.Error()}
	}
	return strings.Join(parts, ": ")
}

func (e *StageError) Unwrap() error { return e.Err }

// PanicError is a panic in a body. With %+v it prints the stack as well.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Format prints the stack for %+v.
func (e *PanicError) Format(f fmt.State, verb rune) {
	fmt.Fprint(f, e.Error())
	if verb == 'v' && f.Flag('+') {
		fmt.Fprintf(f, "\n%s", e.Stack)
	}
}

// Unwrap returns the value of the panic if that is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// protect makes a panic of body an error.
func protect(body func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
	}()
	return body()
}

// errStopped is what stages return when they stop because the run is over. It is never the first error of a run.
var errStopped = fmt.Errorf("the run is over: %w", context.Canceled)

// fail makes err the error of the stage.
func (s *Stage) fail(item string, err error) error {
	if errors.Is(err, errStopped) {
		return errStopped
	}
	var p *PanicError
	if errors.As(err, &p) {
		s.log.Error(p.Error(), "item", item, "stack", string(p.Stack))
	}
	return &StageError{s.n.g.name, s.n.name, item, err}
}

func (s *Stage) overLimit() error {
	return s.fail("", fmt.Errorf("more than %d items would have to be held", s.n.limit))
}

// nameOf is what errors and traces call an item: what its TraceName or String method returns, the value itself if it is
// a string or a number, else nothing.
func nameOf[T any](v T) string {
	switch v := any(v).(type) {
	case interface{ TraceName() string }:
		return v.TraceName()
	case fmt.Stringer:
		return v.String()
	}
	switch r := reflect.ValueOf(v); r.Kind() {
	case reflect.String:
		return r.String()
	case reflect.Slice:
		return fmt.Sprintf("%d items", r.Len())
	default:
		if r.CanInt() || r.CanUint() {
			return fmt.Sprint(v)
		}
	}
	return ""
}
