package image

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// A page map has an entry a run and a fragmented task millions of runs, so they are encoded and decoded by hand,
// without a message for each. The numbers of the fields are those of the message.
const (
	runVaddr    protowire.Number = 1
	runCompatNr protowire.Number = 2
	runInParent protowire.Number = 3
	runFlags    protowire.Number = 4
	runNrPages  protowire.Number = 5
)

// appendRun encodes a run as criu 4.2 does: nr_pages counts, the older field, which is required, is 0.
func appendRun(b []byte, r Run) []byte {
	field := func(n protowire.Number, v uint64) {
		b = protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
	}
	field(runVaddr, r.Addr)
	field(runCompatNr, 0)
	field(runFlags, uint64(r.Flags))
	field(runNrPages, r.Pages)
	return b
}

// parseRun decodes an entry as its writer meant it: criu before 4.2 had 32 bits for the number of pages, and very
// old ones in_parent instead of flags. How its bytes are stored, where that is not plainly, goes to st.
func parseRun(b []byte, st *storage) (Run, error) {
	var r Run
	var compat, pages uint64
	var hasVaddr, hasCompat, hasPages, hasFlags, inParent bool
	*st = storage{sizes: st.sizes[:0]}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return r, protowire.ParseError(n)
		}
		b = b[n:]
		if num == runBlocks && typ == protowire.BytesType {
			blocks, m := protowire.ConsumeBytes(b)
			if m < 0 {
				return r, protowire.ParseError(m)
			}
			b = b[m:]
			if err := st.parse(blocks); err != nil {
				return r, err
			}
			continue
		}
		if num < runVaddr || num > runNrPages || typ != protowire.VarintType {
			return r, fmt.Errorf("has a field %d that no known release of criu writes", num)
		}
		v, m := protowire.ConsumeVarint(b)
		if m < 0 {
			return r, protowire.ParseError(m)
		}
		b = b[m:]
		switch num {
		case runVaddr:
			r.Addr, hasVaddr = v, true
		case runCompatNr:
			compat, hasCompat = uint64(uint32(v)), true
		case runInParent:
			inParent = v != 0
		case runFlags:
			r.Flags, hasFlags = uint32(v), true
		case runNrPages:
			pages, hasPages = v, true
		}
	}
	if !hasVaddr || !hasCompat {
		return r, errors.New("vaddr or compat_nr_pages, which are required, is missing")
	}
	if r.Pages = compat; hasPages {
		r.Pages = pages
	}
	switch {
	case inParent:
		r.Flags |= PEParent
	case !hasFlags:
		r.Flags = PEPresent
	}
	st.aligned = r.Flags&peAligned != 0
	r.Flags &^= peAligned
	return r, r.check()
}

// check refuses what cannot be a run.
func (r Run) check() error {
	switch {
	case r.Addr%PageSize != 0:
		return fmt.Errorf("vaddr %#x is not on a page boundary", r.Addr)
	case r.Pages > (1<<63)/PageSize || r.Addr+r.Pages*PageSize < r.Addr:
		return fmt.Errorf("nr_pages %d at %#x goes past the address space", r.Pages, r.Addr)
	case r.Flags&^(PEParent|PELazy|PEPresent|PEShared) != 0:
		return fmt.Errorf("flags %#x has bits that are not known", r.Flags)
	}
	return nil
}
