package collectors

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"

	"cryo/internal/image"
	"cryo/internal/lazy"
	"cryo/internal/pagecopy"
)

// BuildOn has pages that the set before this one stores with the same bytes left to it.
//
// Who writes to shared memory cannot be followed as tasks are with their own: a child that was forked after tracking began, and has
// ended since, has written to it through mappings that nobody watched, and write(2) to a memory file passes by all of them. So the
// bytes are compared. That is right whoever wrote them, and saves the storing and not the reading.
func (s *SharedMemory) BuildOn(set image.Source) { s.before = set }

// storedBefore opens what the set before has of an object; nil for nothing.
func (s *SharedMemory) storedBefore(o *sharedObject) (*lazy.Local, error) {
	if s.before == nil {
		return nil, nil
	}
	l, err := lazy.OpenStored(s.before, image.ShmemPages, o.id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return l, err
}

// comparing is an object whose pages are compared with those stored before.
type comparing struct {
	f      *os.File
	before *lazy.Local
	have   []lazy.Range // what is stored there; those that lie behind are dropped
	put    func(pagecopy.Range) error
	own    []byte
}

// compareStep is how many bytes are compared at a time.
const compareStep = 256 << 10

// Put puts what is not the same, and announces what is. Ranges ascend.
func (c *comparing) Put(r pagecopy.Range) error {
	if r.Flags != 0 { // what is not mapped, and not expected to be anywhere else
		return c.put(r)
	}
	for at, end := r.Addr, r.Addr+r.Len; at < end; {
		for len(c.have) > 0 && c.have[0].End <= at {
			c.have = c.have[1:]
		}
		stop := end
		if len(c.have) > 0 {
			if from := c.have[0].Start; from <= at {
				stop = min(end, c.have[0].End, at+compareStep)
				if err := c.compare(r, at, stop); err != nil {
					return err
				}
				at = stop
				continue
			} else if from < end {
				stop = from
			}
		}
		if err := c.part(r, at, stop, false); err != nil {
			return err
		}
		at = stop
	}
	return nil
}

// compare puts the pages from at to end, all of which are stored before.
func (c *comparing) compare(r pagecopy.Range, at, end uint64) error {
	own := c.own[:end-at]
	n, err := c.f.ReadAt(own, int64(at))
	if err != nil && err != io.EOF {
		return err
	}
	clear(own[n:])
	return c.before.Fetch(at, end-at, func(addr uint64, theirs []byte) error {
		mine := own[addr-at:][:len(theirs)]
		for len(mine) > 0 {
			same, n := samePages(mine, theirs)
			if err := c.part(r, addr, addr+uint64(n), same); err != nil {
				return err
			}
			mine, theirs, addr = mine[n:], theirs[n:], addr+uint64(n)
		}
		return nil
	})
}

// samePages says of how many bytes, from the first page on, all pages are the same, or none is.
func samePages(a, b []byte) (same bool, n int) {
	for n < len(a) {
		equal := bytes.Equal(a[n:n+image.PageSize], b[n:n+image.PageSize])
		if n > 0 && equal != same {
			break
		}
		same, n = equal, n+image.PageSize
	}
	return same, n
}

// part puts a part of a range.
func (c *comparing) part(r pagecopy.Range, at, end uint64, same bool) error {
	r.Addr, r.Len = at, end-at
	if same {
		r.Absent = true
		r.Flags |= image.PEParent
	}
	return c.put(r)
}
