package remote

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"cryo/arch"
)

// Results are what a program that has run left behind.
type Results struct {
	program *Program
	values  []int64
	data    [][]byte // of what is read back; nil before
}

func newResults(p *Program) *Results {
	r := &Results{program: p, values: make([]int64, len(p.ops)), data: make([][]byte, len(p.data))}
	for i := range r.values {
		r.values[i] = notRun
	}
	return r
}

// CallError is a system call of a program that failed, or gave another result than it had to.
type CallError struct {
	Program string
	TID     int
	Op      int    // number in the program's text
	Call    string // call with its arguments
	Result  int64  // what it returned
	Want    string // what it had to return, "" for anything but an error
}

// Errno is the error number, 0 if the call returned a value.
func (e *CallError) Errno() syscall.Errno { return errnoOf(e.Result) }

func (e *CallError) Error() string {
	got := numberText(uint64(e.Result))
	if errno := e.Errno(); errno != 0 {
		got = fmt.Sprintf("%s (%v)", unix.ErrnoName(errno), errno)
	}
	if e.Want != "" {
		got += ", expected " + e.Want
	}
	return fmt.Sprintf("program %q in thread %d, op %d: %s = %s", e.Program, e.TID, e.Op, e.Call, got)
}

// Unwrap gives the error number, so that errors.Is(err, unix.EPERM) works.
func (e *CallError) Unwrap() error {
	if errno := e.Errno(); errno != 0 {
		return errno
	}
	return nil
}

func errnoOf(result int64) syscall.Errno {
	if result < 0 && result >= -4095 {
		return syscall.Errno(-result)
	}
	return 0
}

// Value is the result of a call, or a *CallError if it failed or did not run. For calls whose good results may look
// like errors use Raw.
func (r *Results) Value(o Op) (int64, error) {
	v := r.values[o.index]
	if v == notRun {
		return 0, fmt.Errorf("program %q: op %d, %s, did not run", r.program.name, o.index, r.program.opText(o.index))
	}
	if errnoOf(v) != 0 {
		return 0, r.callError(0, o.index, v)
	}
	return v, nil
}

// Raw is the result word of an operation as it is. ok is false if the operation did not run or its result is discarded.
func (r *Results) Raw(o Op) (v int64, ok bool) {
	v = r.values[o.index]
	return v, v != notRun
}

// Bytes is what memory made by Zero or InOut holds after the program, from r to the end of its piece. For other memory
// it is what went in.
func (r *Results) Bytes(ref Ref) []byte {
	if d := r.data[ref.datum]; d != nil {
		return d[ref.off:]
	}
	d := r.program.data[ref.datum]
	if d.mutable {
		return make([]byte, d.size)[ref.off:]
	}
	return d.bytes[ref.off:]
}

// Uint64 is the 64-bit word at ref, see Bytes.
func (r *Results) Uint64(ref Ref) uint64 { return le.Uint64(r.Bytes(ref)) }

// Uint32 is the 32-bit word at ref, see Bytes.
func (r *Results) Uint32(ref Ref) uint32 { return le.Uint32(r.Bytes(ref)) }

func (r *Results) callError(tid, i int, result int64) *CallError {
	o := &r.program.ops[i]
	e := &CallError{Program: r.program.name, TID: tid, Op: i, Call: r.program.opText(i), Result: result}
	if o.kind == arch.KindCall {
		e.Call = arch.SyscallName(int(o.nr)) + "(" + r.argsResolved(o) + ")"
	}
	if o.flags&arch.FlagExpect != 0 {
		e.Want = numberText(o.expect)
	}
	return e
}

// argsResolved is the arguments of a call as text, results of other operations by their values.
func (r *Results) argsResolved(o *op) string {
	c := *o
	for i, a := range c.args {
		if a.mode == modeResult && r.values[a.index] != notRun {
			c.args[i] = operand{mode: modeImm, value: uint64(r.values[a.index])}
		}
	}
	return r.program.argsText(&c)
}

// collect takes over what a chunk left in its buffer.
func (r *Results) collect(c *chunk, buf []byte) {
	for i := c.first; i < c.end; i++ {
		o := &r.program.ops[i]
		v := int64(le.Uint64(buf[c.opOffset(i)+arch.OpResult:]))
		if o.flags&arch.FlagNoStore == 0 {
			r.values[i] = v
		}
	}
	for i, at := range c.offset {
		if at >= 0 && r.program.data[i].mutable {
			r.data[i] = buf[at:][:r.program.data[i].size:r.program.data[i].size]
		}
	}
}
