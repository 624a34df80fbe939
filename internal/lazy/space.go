package lazy

import (
	"math/bits"
	"slices"
	"sort"
	"sync/atomic"

	"cryo/internal/image"
)

const pageSize = image.PageSize

// Range is a stretch of memory.
type Range struct{ Start, End uint64 }

// span is a stretch of a task's memory whose pages are to come, or have come.
type span struct {
	start, end uint64 // where it is now
	img        uint64 // where it was when it was dumped
	at         int    // number of its first page among those of the space
}

// space is what a task gets late, and what of it has not come yet. The layout (spans) is changed by one goroutine with all
// others kept out; pages are marked by several at a time.
type space struct {
	spans []span   // ascending, not overlapping
	moved bool     // some are not where they were dumped
	in    []uint64 // a bit a page: it is there, or no longer wanted
	left  atomic.Int64
}

func newSpace(ranges []Range) *space {
	s := &space{}
	pages := 0
	for _, r := range ranges {
		s.spans = append(s.spans, span{r.Start, r.End, r.Start, pages})
		pages += int((r.End - r.Start) / pageSize)
	}
	s.in = make([]uint64, (pages+63)/64)
	s.left.Store(int64(pages))
	return s
}

// clone is the space of a child, at the moment of the fork.
func (s *space) clone() *space {
	c := &space{spans: slices.Clone(s.spans), moved: s.moved, in: slices.Clone(s.in)}
	c.left.Store(s.left.Load())
	return c
}

// after is the index of the first span that ends after addr.
func (s *space) after(addr uint64) int {
	return sort.Search(len(s.spans), func(i int) bool { return s.spans[i].end > addr })
}

// missing returns the first stretch of missing pages at or after addr: where it is, where it was dumped, and how many bytes it
// has, at most limit. ok is false when there is none.
func (s *space) missing(addr, limit uint64) (at, img, n uint64, ok bool) {
	for i := s.after(addr); i < len(s.spans); i++ {
		sp := &s.spans[i]
		from := max(addr, sp.start)
		first := sp.at + int((from-sp.start)/pageSize)
		last := sp.at + int((sp.end-sp.start)/pageSize)
		page := s.scan(first, last, false)
		if page == last {
			continue
		}
		end := s.scan(page, min(last, page+int(limit/pageSize)), true)
		off := uint64(page-sp.at) * pageSize
		return sp.start + off, sp.img + off, uint64(end-page) * pageSize, true
	}
	return 0, 0, 0, false
}

// scan returns the first page from first on whose bit is as wanted, last if there is none before it.
func (s *space) scan(first, last int, in bool) int {
	for p := first; p < last; {
		w := atomic.LoadUint64(&s.in[p/64])
		if !in {
			w = ^w
		}
		w >>= p % 64
		if w != 0 {
			return min(p+bits.TrailingZeros64(w), last)
		}
		p = p/64*64 + 64
	}
	return last
}

// mark notes that the pages from addr on need not be brought any more.
func (s *space) mark(addr, n uint64) {
	end := addr + n
	for i := s.after(addr); i < len(s.spans) && s.spans[i].start < end; i++ {
		sp := &s.spans[i]
		from, to := max(addr, sp.start), min(end, sp.end)
		first := sp.at + int((from-sp.start)/pageSize)
		s.set(first, first+int((to-from)/pageSize))
	}
}

func (s *space) set(first, last int) {
	for p := first; p < last; {
		n := min(64-p%64, last-p)
		mask := (^uint64(0) >> (64 - n)) << (p % 64)
		old := atomic.OrUint64(&s.in[p/64], mask)
		s.left.Add(-int64(bits.OnesCount64(mask &^ old)))
		p += n
	}
}

// move follows a mapping of n bytes from one address to another.
func (s *space) move(from, to, n uint64) {
	s.split(from)
	s.split(from + n)
	for i := range s.spans {
		if sp := &s.spans[i]; sp.start >= from && sp.end <= from+n {
			sp.start, sp.end = sp.start-from+to, sp.end-from+to
		}
	}
	s.moved = true
	slices.SortFunc(s.spans, func(a, b span) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
}

// split has no span go over addr.
func (s *space) split(addr uint64) {
	i := s.after(addr)
	if i == len(s.spans) || s.spans[i].start >= addr {
		return
	}
	sp := s.spans[i]
	n := addr - sp.start
	s.spans[i].end = addr
	s.spans = slices.Insert(s.spans, i+1, span{addr, sp.end, sp.img + n, sp.at + int(n/pageSize)})
}

// forget notes that a stretch of memory has been unmapped: whatever is mapped there later has nothing to come.
func (s *space) forget(start, end uint64) {
	s.mark(start, end-start)
	s.split(start)
	s.split(end)
	s.spans = slices.DeleteFunc(s.spans, func(sp span) bool { return sp.start >= start && sp.end <= end })
}

// placed is a stretch of pages as they were dumped and where they belong now.
type placed struct{ img, at, n uint64 }

// places says where the pages dumped at img belong that are still missing.
func (s *space) places(img, n uint64) []placed {
	if !s.moved {
		return s.within(img, img+n, 0, nil)
	}
	var list []placed
	for _, sp := range s.spans {
		from, to := max(img, sp.img), min(img+n, sp.img+sp.end-sp.start)
		if from < to {
			shift := sp.start - sp.img // wraps around, and back again
			list = s.within(from+shift, to+shift, shift, list)
		}
	}
	return list
}

// within appends the missing pages between two addresses, whose dumped address is shift less.
func (s *space) within(from, to, shift uint64, list []placed) []placed {
	for from < to {
		at, _, n, ok := s.missing(from, to-from)
		if !ok || at >= to {
			break
		}
		n = min(n, to-at)
		list = append(list, placed{at - shift, at, n})
		from = at + n
	}
	return list
}
