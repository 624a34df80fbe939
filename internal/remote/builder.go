package remote

import (
	"fmt"
	"slices"
	"sync"
	"syscall"

	"cryo/arch"
)

// Conditions of JumpIf.
const (
	Eq    Cond = arch.CondEq
	Ne    Cond = arch.CondNe
	Below Cond = arch.CondBelow // unsigned
	Less  Cond = arch.CondLess  // signed
)

var condNames = [...]string{arch.CondEq: "==", arch.CondNe: "!=", arch.CondBelow: "<u", arch.CondLess: "<"}

// Builder collects the operations of a program. Its methods do not fail; what is wrong with a program (a label that
// stands nowhere) is a mistake of the caller and panics in Program.
type Builder struct {
	name   string
	ops    []op
	data   []datum
	labels []int // operation each label stands before, -1 for nowhere yet
}

// op is one operation in symbolic form.
type op struct {
	kind   uint8
	flags  uint8
	nr     uint16
	errno  uint16
	nargs  uint8
	args   [arch.OpArgs]operand
	expect uint64
}

// datum is one piece of program memory.
type datum struct {
	bytes   []byte // initial contents; nil: zeroes
	size    int
	align   int
	mutable bool // read back when the program has run
	str     bool // made by String
}

// text is the piece of memory in a program's text.
func (d *datum) text() string {
	switch {
	case d.str && len(d.bytes) > 48:
		return fmt.Sprintf("%q...", d.bytes[:48])
	case d.str:
		return fmt.Sprintf("%q", d.bytes[:len(d.bytes)-1])
	case d.bytes == nil:
		return fmt.Sprintf("zero[%d]", d.size)
	case d.mutable:
		return fmt.Sprintf("inout[%d]", d.size)
	}
	return fmt.Sprintf("bytes[%d]", d.size)
}

// NewBuilder starts a program. The name is for logs and errors: what the program does, as "collect signals".
func NewBuilder(name string) *Builder { return &Builder{name: name, ops: make([]op, 0, usualOps)} }

// Reset starts the program anew.
func (b *Builder) Reset() { b.ops, b.data, b.labels = b.ops[:0], b.data[:0], b.labels[:0] }

// usualOps is how many operations most programs have room with.
const usualOps = 16

// Zero is n bytes of zeroes the task may write to; Results.Bytes tells what it wrote.
func (b *Builder) Zero(n int) Ref {
	return b.datum(datum{size: n, mutable: true})
}

// Bytes is a copy of p, for the task to read.
func (b *Builder) Bytes(p []byte) Ref {
	return b.datum(datum{bytes: slices.Clone(p), size: len(p)})
}

// InOut is a copy of p the task may change; Results.Bytes tells what it is afterwards.
func (b *Builder) InOut(p []byte) Ref {
	return b.datum(datum{bytes: slices.Clone(p), size: len(p), mutable: true})
}

// String is s with a terminating zero byte, for the task to read.
func (b *Builder) String(s string) Ref {
	return b.datum(datum{bytes: append([]byte(s), 0), size: len(s) + 1, align: 1, str: true})
}

// Aligned makes the piece of memory r lies in start at a multiple of n bytes, a power of two up to 64. Pieces are
// aligned to 16 bytes otherwise.
func (b *Builder) Aligned(r Ref, n int) Ref {
	b.data[r.datum].align = n
	return r
}

func (b *Builder) datum(d datum) Ref {
	if d.align == 0 {
		d.align = 16
	}
	b.data = append(b.data, d)
	return Ref{datum: len(b.data) - 1}
}

// Call adds a system call. Its result, negative error numbers included, is the operation's value; nothing is checked
// unless Must, Allow or Expect say so.
func (b *Builder) Call(nr int, args ...Arg) Op {
	if len(args) > arch.OpArgs {
		panic(fmt.Sprintf("program %q: a call has %d arguments", b.name, len(args)))
	}
	o := b.add(arch.KindCall, args...)
	b.ops[o.index].nr = uint16(nr)
	return o
}

// CallNumbers is Call with nothing but numbers for arguments: for programs with many calls, because it costs a tenth.
func (b *Builder) CallNumbers(nr int, args ...uint64) Op {
	n := op{kind: arch.KindCall, nr: uint16(nr), nargs: uint8(len(args))}
	for i, v := range args {
		n.args[i].value = v
	}
	b.ops = append(b.ops, n)
	return Op{b, len(b.ops) - 1}
}

// Must ends the program with an error if the call fails.
func (o Op) Must() Op { return o.flag(arch.FlagMust) }

// Allow is Must that lets one error number through.
func (o Op) Allow(errno syscall.Errno) Op {
	o.b.ops[o.index].errno = uint16(errno)
	return o.flag(arch.FlagMust)
}

// Expect ends the program with an error if the result is another than v.
func (o Op) Expect(v uint64) Op {
	o.b.ops[o.index].expect = v
	return o.flag(arch.FlagExpect)
}

// Discard does not store the result.
func (o Op) Discard() Op { return o.flag(arch.FlagNoStore) }

func (o Op) flag(f uint8) Op {
	o.b.ops[o.index].flags |= f
	return o
}

func (b *Builder) add(kind uint8, args ...Arg) Op {
	n := op{kind: kind, nargs: uint8(len(args))}
	for i, a := range args {
		n.args[i] = a.operand()
		if n.args[i].mode == modeResult && int(n.args[i].index) >= len(b.ops) {
			panic(fmt.Sprintf("program %q: operation %d uses the result of operation %d", b.name, len(b.ops), n.args[i].index))
		}
	}
	b.ops = append(b.ops, n)
	return Op{b, len(b.ops) - 1}
}

// Clone adds a call of clone3 with the arguments in r, size bytes long. The parent goes on with the next operation, the
// child at the label. The result is the child's pid.
func (b *Builder) Clone(r Ref, size int, child Label) Op {
	o := b.Call(sysClone3, r, Imm(size))
	n := &b.ops[o.index]
	n.args[5] = operand{mode: modeLabel, index: int32(child.index)}
	return o.flag(arch.FlagChild)
}

// NewLabel makes a label; Label puts it somewhere.
func (b *Builder) NewLabel() Label {
	b.labels = append(b.labels, -1)
	return Label{len(b.labels) - 1}
}

// Label puts l before the next operation.
func (b *Builder) Label(l Label) { b.labels[l.index] = len(b.ops) }

// Jump goes on at l.
func (b *Builder) Jump(l Label) {
	b.add(arch.KindJump, Imm(0), Imm(0), operand{mode: modeLabel, index: int32(l.index)}, Imm(arch.CondAlways))
}

// JumpIf goes on at l if x and y compare so.
func (b *Builder) JumpIf(x Arg, c Cond, y Arg, l Label) {
	b.add(arch.KindJump, x, y, operand{mode: modeLabel, index: int32(l.index)}, Imm(c))
}

// Add is x + y, Sub x - y.
func (b *Builder) Add(x, y Arg) Op { return b.add(arch.KindAdd, x, y) }

// Sub is x - y.
func (b *Builder) Sub(x, y Arg) Op { return b.add(arch.KindSub, x, y) }

// Store writes the 64-bit value v to address addr.
func (b *Builder) Store(addr, v Arg) { b.add(arch.KindStore64, addr, v) }

// Store32 writes the 32-bit value v to address addr.
func (b *Builder) Store32(addr, v Arg) { b.add(arch.KindStore32, addr, v) }

// Load is the 64-bit value at address addr of the task.
func (b *Builder) Load(addr uint64) Op { return b.Add(Deref(addr), Imm(0)) }

// Load32 is the 32-bit value at address addr, zero-extended.
func (b *Builder) Load32(addr Arg) Op { return b.add(arch.KindLoad32, addr) }

// Copy copies n bytes.
func (b *Builder) Copy(dst, src, n Arg) { b.add(arch.KindCopy, dst, src, n) }

// CallEach makes a system call for each of n 64-bit words: the low half of the word is its first argument, and its result
// takes the word's place.
func (b *Builder) CallEach(nr int, words Ref, n int, rest ...Arg) {
	at, again := b.Zero(8), b.NewLabel()
	b.Store(at, words)
	b.Label(again)
	b.Store(Mem(at), b.Call(nr, append([]Arg{b.Load32(Mem(at))}, rest...)...))
	next := b.Add(Mem(at), Imm(8))
	b.Store(at, next)
	b.JumpIf(next, Ne, words.At(8*n), again)
}

// FutexWait sleeps until the 32-bit word at addr has the value v.
func (b *Builder) FutexWait(addr, v Arg) { b.add(arch.KindFutexWait, addr, v) }

// FutexWake adds v to the 32-bit word at addr and wakes everybody who sleeps on it.
func (b *Builder) FutexWake(addr, v Arg) { b.add(arch.KindFutexWake, addr, v) }

// SkipZero is the offset of the first 64-bit word that is not zero in the n bytes at addr, n when all are zero. It
// leaves at that word, so a page of data costs one load.
func (b *Builder) SkipZero(addr, n Arg) Op { return b.add(arch.KindNonZero, addr, n) }

// CRCLanes is how many checksums CRC32C makes side by side: the processor takes several words in the time of one.
const CRCLanes = 4

// CRC32C goes over CRCLanes pieces of n bytes, a multiple of 8 and not 0, one behind the other from addr on, each with a register of a
// CRC-32C (not inverted) of its own: 64-bit words at registers. The processor has to have an instruction for it: arch.HasCRC.
func (b *Builder) CRC32C(addr, n Arg, registers Ref) { b.add(arch.KindCRC, addr, n, registers) }

// Trap stops the program for the tracer; Slot.Continue goes on with the next operation.
func (b *Builder) Trap() Op { return b.add(arch.KindStop) }

// Sigreturn leaves the program through a signal frame.
func (b *Builder) Sigreturn(frame Arg) { b.add(arch.KindSigreturn, frame) }

// Goto goes on in another copy of the interpreter with the program buffer at base, from its first operation.
func (b *Builder) Goto(code, base Arg) { b.add(arch.KindGoto, code, base, Imm(arch.HdrSize)) }

// Grow makes room for n more operations.
func (b *Builder) Grow(n int) { b.ops = slices.Grow(b.ops, n) }

// Len is how many operations there are so far.
func (b *Builder) Len() int { return len(b.ops) }

// Program ends the program and returns it. The builder must not be used any more.
func (b *Builder) Program() *Program {
	b.add(arch.KindStop)
	for i, at := range b.labels {
		if at < 0 {
			panic(fmt.Sprintf("program %q: label %d stands nowhere", b.name, i))
		}
	}
	p := &Program{name: b.name, ops: b.ops, data: b.data, labels: b.labels}
	p.whole = sync.OnceValue(func() *chunk { return p.layout(0, len(p.ops)) })
	p.wholeImage = sync.OnceValue(func() []byte { return p.whole().encodeAll(p, newResults(p)) })
	return p
}
