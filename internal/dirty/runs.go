package dirty

import (
	"encoding/binary"
	"iter"

	"cryo/internal/pagemap"
)

// Runs is a list of runs of pages in ascending order, in two to four bytes each: between the stop of a task and the time
// its pages are read the list is all there is, and a fragmented task has millions of runs.
type Runs struct {
	buf []byte
	end uint64 // of the last run, in pages
	n   int
}

// runFlags is how many bits of a run are flags.
const runFlags = 2

// Add adds a run of whole pages behind all others. flags is less than 4.
func (r *Runs) Add(start, end uint64, flags uint64) {
	r.buf = binary.AppendUvarint(r.buf, start/pagemap.PageSize-r.end)
	r.buf = binary.AppendUvarint(r.buf, (end-start)/pagemap.PageSize<<runFlags|flags)
	r.end = end / pagemap.PageSize
	r.n++
}

// Len is the number of runs.
func (r *Runs) Len() int { return r.n }

// All goes over the runs.
func (r *Runs) All() iter.Seq2[Span, uint64] {
	return func(yield func(Span, uint64) bool) {
		at := uint64(0)
		for buf := r.buf; len(buf) > 0; {
			gap, n := binary.Uvarint(buf)
			size, m := binary.Uvarint(buf[n:])
			buf = buf[n+m:]
			start := at + gap
			at = start + size>>runFlags
			if !yield(Span{Start: start * pagemap.PageSize, End: at * pagemap.PageSize}, size&(1<<runFlags-1)) {
				return
			}
		}
	}
}
