package remote

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"cryo/arch"
)

const sysClone3 = unix.SYS_CLONE3

// Program is a finished program: plain data that can be run any number of times, in any task, by several tracers at once.
type Program struct {
	name   string
	ops    []op
	data   []datum
	labels []int

	// In one piece the program is the same for every task.
	whole      func() *chunk
	wholeImage func() []byte
}

// Name is what the program does.
func (p *Program) Name() string { return p.name }

// Len is the number of operations, the final stop included.
func (p *Program) Len() int { return len(p.ops) }

// Size is how many bytes of program buffer the whole program takes in one piece. A smaller buffer does as well: Run
// splits the program then.
func (p *Program) Size() int {
	size := arch.HdrSize + len(p.ops)*arch.OpSize
	for _, d := range p.data {
		size = alignUp(size, d.align) + d.size
	}
	return size
}

// Sleeps says whether the program has an operation that may sleep and so destroys what the kernel remembers of an
// interrupted system call.
func (p *Program) Sleeps() bool {
	return slices.ContainsFunc(p.ops, func(o op) bool { return o.kind == arch.KindFutexWait })
}

// String is the program as text, one line an operation, in the manner of strace.
func (p *Program) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "program %q: %d ops, %d bytes\n", p.name, len(p.ops), p.Size())
	for i := range p.ops {
		for l, at := range p.labels {
			if at == i {
				fmt.Fprintf(&b, "L%d:\n", l)
			}
		}
		fmt.Fprintf(&b, "%5d  %s\n", i, p.opText(i))
	}
	return b.String()
}

// opText is operation i as text.
func (p *Program) opText(i int) string {
	o := &p.ops[i]
	a := func(n int) string { return p.argText(o.args[n]) }
	switch o.kind {
	case arch.KindCall:
		return p.callText(o)
	case arch.KindStop:
		if i == len(p.ops)-1 {
			return "end"
		}
		return "trap"
	case arch.KindJump:
		if o.args[3].value == arch.CondAlways {
			return "goto " + a(2)
		}
		return fmt.Sprintf("if %s %v %s goto %s", a(0), Cond(o.args[3].value), a(1), a(2))
	case arch.KindAdd:
		return a(0) + " + " + a(1)
	case arch.KindSub:
		return a(0) + " - " + a(1)
	case arch.KindStore64:
		return fmt.Sprintf("*(u64 *)%s = %s", a(0), a(1))
	case arch.KindStore32:
		return fmt.Sprintf("*(u32 *)%s = %s", a(0), a(1))
	case arch.KindLoad32:
		return fmt.Sprintf("*(u32 *)%s", a(0))
	}
	return otherNames[o.kind] + "(" + p.argsText(o) + ")"
}

var otherNames = map[uint8]string{
	arch.KindCopy:      "copy",
	arch.KindFutexWait: "futex-wait-until",
	arch.KindFutexWake: "futex-add-and-wake",
	arch.KindSigreturn: "sigreturn",
	arch.KindGoto:      "goto-copy",
	arch.KindNonZero:   "skip-zero",
	arch.KindCRC:       "crc32c",
}

func (p *Program) callText(o *op) string {
	s := arch.SyscallName(int(o.nr)) + "(" + p.argsText(o) + ")"
	switch {
	case o.flags&arch.FlagExpect != 0:
		s += " = " + numberText(o.expect)
	case o.flags&arch.FlagMust != 0 && o.errno != 0:
		s += " must or " + unix.ErrnoName(syscall.Errno(o.errno))
	case o.flags&arch.FlagMust != 0:
		s += " must"
	}
	if o.flags&arch.FlagNoStore != 0 {
		s += ", result discarded"
	}
	if o.flags&arch.FlagChild != 0 {
		s += ", child " + p.argText(o.args[5])
	}
	return s
}

func (p *Program) argsText(o *op) string {
	var args []string
	for _, a := range o.args[:o.nargs] {
		args = append(args, p.argText(a))
	}
	return strings.Join(args, ", ")
}

func (p *Program) argText(o operand) string {
	switch o.mode {
	case modeRef:
		return "&" + p.refText(o)
	case modeMem:
		return p.refText(o)
	case modeResult:
		return fmt.Sprintf("r%d", o.index)
	case modeDeref:
		return fmt.Sprintf("*%#x", o.value)
	case modeLabel:
		return fmt.Sprintf("L%d", o.index)
	}
	return numberText(o.value)
}

func (p *Program) refText(o operand) string {
	s := fmt.Sprintf("d%d:%s", o.index, p.data[o.index].text())
	if o.value != 0 {
		s += fmt.Sprintf("+%d", o.value)
	}
	return s
}

// numberText shows small numbers in decimal and large ones, which are addresses or masks, in hexadecimal.
func numberText(v uint64) string {
	if n := int64(v); n > -4096 && n < 4096 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%#x", v)
}

func alignUp[T Integer](n, align T) T { return (n + align - 1) &^ (align - 1) }
