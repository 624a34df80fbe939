package remote

import (
	"encoding/binary"
	"fmt"

	"cryo/arch"
)

var le = binary.LittleEndian

// chunk is the part of a program that is in a task's buffer at one time: whole, or a run of operations with the data
// they use.
type chunk struct {
	first, end int   // operations [first, end); a chunk that is not the last gets a stop added
	offset     []int // of each datum of the program in the buffer, -1: not in this chunk
	readBack   int   // bytes from the start of the buffer that may have changed
	size       int
}

// tooBig is why a program cannot be split to fit a buffer.
type tooBig struct {
	program    string
	need, have int
}

func (e *tooBig) Error() string {
	return fmt.Sprintf("program %q needs %d bytes in one piece, the task has %d", e.program, e.need, e.have)
}

// split cuts the program into chunks of at most limit bytes.
func (p *Program) split(limit int) ([]*chunk, error) {
	if p.Size() <= limit {
		return []*chunk{p.whole()}, nil
	}
	var chunks []*chunk
	cuts := p.cuts()
	usedBy := make([]int, len(p.data)) // number of the chunk that holds a datum, from 1 on
	for first := 0; first < len(p.ops); {
		number := len(chunks) + 1
		end := first // the last place to cut that fits
		size := arch.HdrSize + arch.OpSize
		for i := first; i < len(p.ops) && size <= limit; i++ {
			size += arch.OpSize
			for _, a := range p.ops[i].args {
				if (a.mode == modeRef || a.mode == modeMem) && usedBy[a.index] != number {
					usedBy[a.index] = number
					size += p.data[a.index].size + p.data[a.index].align
				}
			}
			if size <= limit && cuts[i+1] {
				end = i + 1
			}
		}
		if end == first {
			next := first + 1
			for !cuts[next] {
				next++
			}
			return nil, &tooBig{p.name, p.layout(first, next).size + len(p.data)*maxAlign, limit}
		}
		chunks = append(chunks, p.layout(first, end))
		first = end
	}
	return chunks, nil
}

// maxAlign bounds what alignment adds to the size of a datum.
const maxAlign = 64

// cuts tells before which operations the program may be cut: not between a jump and where it leads.
func (p *Program) cuts() []bool {
	reach := make([]int, len(p.ops)) // from operation i on, no cut up to and including reach[i]
	for i, o := range p.ops {
		for _, a := range o.args {
			if a.mode == modeLabel {
				to := min(p.labels[a.index], len(p.ops)-1)
				reach[min(i, to)] = max(reach[min(i, to)], i, to)
			}
		}
	}
	cuts := make([]bool, len(p.ops)+1)
	cuts[0] = true
	held := 0
	for i := range p.ops {
		held = max(held, reach[i])
		cuts[i+1] = held <= i
	}
	return cuts
}

// layout places operations [first, end) and the data they use: operations, then what is read back, then constants.
func (p *Program) layout(first, end int) *chunk {
	c := &chunk{first: first, end: end, offset: make([]int, len(p.data))}
	for i := range c.offset {
		c.offset[i] = -1
	}
	used := make([]bool, len(p.data))
	for _, o := range p.ops[first:end] {
		for _, a := range o.args {
			if a.mode == modeRef || a.mode == modeMem {
				used[a.index] = true
			}
		}
	}
	n := end - first
	if end < len(p.ops) {
		n++ // the stop between chunks
	}
	at := arch.HdrSize + n*arch.OpSize
	place := func(mutable bool) {
		for i, d := range p.data {
			if used[i] && d.mutable == mutable {
				at = alignUp(at, d.align)
				c.offset[i] = at
				at += d.size
			}
		}
	}
	place(true)
	c.readBack = at
	place(false)
	c.size = at
	return c
}

// opOffset is where operation i of the program lies in the chunk's buffer.
func (c *chunk) opOffset(i int) int { return arch.HdrSize + (i-c.first)*arch.OpSize }

// notRun is what the result word of an operation holds before it ran. No system call returns it.
const notRun = -0x7e57_0000_0000_0001

// assemble is the chunk in binary form, not to be changed. Results of operations in earlier chunks, and what those left in
// memory that is read back, come from res.
func (c *chunk) assemble(p *Program, res *Results) []byte {
	if c == p.whole() {
		return p.wholeImage()
	}
	return c.encodeAll(p, res)
}

func (c *chunk) encodeAll(p *Program, res *Results) []byte {
	b := make([]byte, c.size)
	for i := c.first; i < c.end; i++ {
		c.encode(b[c.opOffset(i):][:arch.OpSize], &p.ops[i], p, res)
	}
	if c.end < len(p.ops) {
		b[c.opOffset(c.end)+arch.OpKind] = arch.KindStop
	}
	for i, at := range c.offset {
		switch {
		case at < 0:
		case p.data[i].mutable && res.data[i] != nil:
			copy(b[at:], res.data[i])
		default:
			copy(b[at:], p.data[i].bytes)
		}
	}
	return b
}

func (c *chunk) encode(b []byte, o *op, p *Program, res *Results) {
	le.PutUint16(b[arch.OpNr:], o.nr)
	le.PutUint16(b[arch.OpErrno:], o.errno)
	b[arch.OpKind] = o.kind
	b[arch.OpFlags] = o.flags
	var modes uint16
	for n, a := range o.args {
		v, m := c.resolve(a, p, res)
		le.PutUint64(b[arch.OpArg+8*n:], v)
		modes |= m << (2 * n)
	}
	le.PutUint16(b[arch.OpModes:], modes)
	aux := o.expect
	if o.flags&arch.FlagExpect == 0 {
		sentinel := int64(notRun)
		aux = uint64(sentinel)
	}
	le.PutUint64(b[arch.OpResult:], aux)
}

func (c *chunk) resolve(a operand, p *Program, res *Results) (value uint64, modes uint16) {
	switch a.mode {
	case modeRef:
		return uint64(c.offset[a.index]) + a.value, arch.ModeBase
	case modeMem:
		return uint64(c.offset[a.index]) + a.value, arch.ModeBase | arch.ModeLoad
	case modeDeref:
		return a.value, arch.ModeLoad
	case modeLabel:
		return uint64(c.opOffset(p.labels[a.index])), 0
	case modeResult:
		if int(a.index) < c.first {
			return uint64(res.values[a.index]), 0
		}
		return uint64(c.opOffset(int(a.index)) + arch.OpResult), arch.ModeBase | arch.ModeLoad
	}
	return a.value, 0
}
