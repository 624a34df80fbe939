package remote

import "fmt"

// Arg is an argument of an operation: Imm, a Ref (its address), an Op (its result), Mem or Deref.
type Arg interface{ operand() operand }

type mode uint8

const (
	modeImm    mode = iota // a number
	modeRef                // the address of program memory
	modeMem                // the value in program memory
	modeResult             // the result of an earlier operation
	modeDeref              // the value at an address of the task
	modeLabel              // where a label stands; jumps only
)

// operand is the form all arguments have inside a program.
type operand struct {
	value uint64 // number, address, or offset in the datum
	index int32  // datum, operation or label
	mode  mode
}

func (o operand) operand() operand { return o }

// Integer is any integer type an argument may come as. Negative numbers are sign-extended, as system calls want them.
type Integer interface {
	~int | ~int8 | ~int16 | ~int32 | ~int64 | ~uint | ~uint8 | ~uint16 | ~uint32 | ~uint64 | ~uintptr
}

// Imm is a number known now.
func Imm[T Integer](v T) Arg { return operand{mode: modeImm, value: uint64(v)} }

// Ref is memory inside the program. As an argument it is that memory's address in the task.
type Ref struct {
	datum int
	off   uint64
}

func (r Ref) operand() operand { return operand{mode: modeRef, index: int32(r.datum), value: r.off} }

// At is the memory off bytes further on in the same piece.
func (r Ref) At(off int) Ref { return Ref{r.datum, r.off + uint64(off)} }

// Mem is the 64-bit value that stands in program memory when the operation runs.
func Mem(r Ref) Arg { return operand{mode: modeMem, index: int32(r.datum), value: r.off} }

// Deref is the 64-bit value that stands at an address of the task when the operation runs.
func Deref(addr uint64) Arg { return operand{mode: modeDeref, value: addr} }

// Op is an operation of the program being built. As an argument it is the result of that operation, which has to be
// an earlier one.
type Op struct {
	b     *Builder
	index int
}

func (o Op) operand() operand { return operand{mode: modeResult, index: int32(o.index)} }

// Index is the operation's number in the program's text.
func (o Op) Index() int { return o.index }

// Label is a place in a program to jump to.
type Label struct{ index int }

// Cond is how a jump compares.
type Cond uint64

func (c Cond) String() string {
	if int(c) < len(condNames) {
		return condNames[c]
	}
	return fmt.Sprintf("cond%d", uint64(c))
}
