package collectors

import (
	"errors"
	"io"
	"io/fs"

	"cryo/internal/image"
)

// ParentPages tells which pages of one object the parent set has. Addresses that are asked for ascend.
type ParentPages interface {
	// Has says of the pages from addr on whether the parent has them (yes), and up to where, which is at most end, that
	// holds.
	Has(addr, end uint64) (upto uint64, yes bool, err error)
	Close() error
}

// OpenParent opens the page map of an object in the parent set; nil when it has none.
func OpenParent(set image.Source, kind image.PagemapKind, id uint64) (ParentPages, error) {
	r, err := image.ReadPagemap(set, kind, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &parentMap{PagemapReader: r}, nil
}

// parentMap walks the parent's page map along with the new one.
type parentMap struct {
	*image.PagemapReader
	run image.Run
	end bool
}

// Has implements ParentPages. Both what the parent stores and what it leaves to its own parent counts.
func (p *parentMap) Has(addr, end uint64) (uint64, bool, error) {
	for !p.end && p.run.End() <= addr {
		run, err := p.Next()
		if err == io.EOF {
			p.end = true
			break
		}
		if err != nil {
			return 0, false, err
		}
		p.run = run
	}
	switch {
	case p.end:
		return end, false, nil
	case p.run.Addr > addr:
		return min(end, p.run.Addr), false, nil
	}
	return min(end, p.run.End()), true, nil
}

// ParentElsewhere stands for a parent set that a page server has: all that is clean is taken to be in it, and the server
// refuses what is not. It asks for every own page to be stored, zero or not.
var ParentElsewhere ParentPages = parentElsewhere{}

type parentElsewhere struct{}

func (parentElsewhere) Has(_, end uint64) (uint64, bool, error) { return end, true, nil }
func (parentElsewhere) Close() error                            { return nil }
