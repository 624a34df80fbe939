package sinks

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pagemap"
	"google.golang.org/protobuf/proto"
)

// Compressed is a set whose pages are compressed on their way to another sink, on all processors. Its metadata is as it
// was. The format is that of criu's development branch; with image.Zstd an extension of it (see package image).
type Compressed struct {
	Sink
	// Acceleration of LZ4 trades size for speed; 0 and 1 are as usual. It is set before the first page comes.
	Acceleration int

	codec   image.Codec
	block   uint64 // pages
	pagesID atomic.Uint32
	busy    chan struct{} // one for each block that is being compressed, or has yet to be written
}

// DefaultBlock is how many bytes are compressed together: enough to find what repeats, and few enough to be read alone.
const DefaultBlock = 256 << 10

// Compress makes a sink that compresses pages, or with image.Plain only moves them, in blocks of so many bytes, a multiple of
// the page size and at most image.MaxBlock, on their way to another sink.
func Compress(to Sink, codec image.Codec, block int) (*Compressed, error) {
	if block < image.PageSize || block > image.MaxBlock || block%image.PageSize != 0 {
		return nil, fmt.Errorf("blocks of %d bytes: give a multiple of %d up to %d", block, image.PageSize, image.MaxBlock)
	}
	return &Compressed{Sink: to, codec: codec, block: uint64(block / image.PageSize), busy: make(chan struct{}, 4*runtime.GOMAXPROCS(0))}, nil
}

// Commit says in the inventory that pages are compressed.
func (c *Compressed) Commit(inv *inventory.InventoryEntry) error {
	if c.codec != image.Plain && inv.GetImgVersion() == image.FormatV1_1 {
		inv.ImgVersion = proto.Uint32(image.FormatV1_2)
	}
	return c.Sink.Commit(inv)
}

// NameParent hands on which run made the set that this one builds on.
func (c *Compressed) NameParent(id string) { nameParent(c.Sink, id) }

func nameParent(to Sink, id string) {
	if s, ok := to.(chained); ok {
		s.NameParent(id)
	}
}

// chained is a sink whose set may build on another one.
type chained interface {
	// NameParent notes which run made that set. It is called before the first file is created.
	NameParent(id string)
	// base is that set, nil for none.
	base() image.Source
}

func (d *Dir) base() image.Source { return d.parent }

// base implements chained.
func (c *Compressed) base() image.Source {
	if s, ok := c.Sink.(chained); ok {
		return s.base()
	}
	return nil
}

// Pagemap opens both files of an object.
func (c *Compressed) Pagemap(kind image.PagemapKind, id uint64) (Pagemap, error) {
	if server, ok := c.Sink.(*PageServer); ok {
		return newPackedServerPagemap(c, server, kind, id), nil
	}
	p := &packedPagemap{}
	base := c.base()
	if sealed, ok := c.Sink.(*Encrypted); ok && base != nil {
		up, err := image.Unseal(base, sealed.key)
		if err != nil {
			return nil, err
		}
		base = image.Packed(up)
	}
	var err error
	if p.parent, err = openParentRuns(base, kind, id); err != nil {
		return nil, err
	}
	name := kind.Kind().File(id)
	maps, err := c.Create(name)
	if err != nil {
		return nil, err
	}
	pagesID := c.pagesID.Add(1)
	pages, err := c.Create(image.PagesFile(pagesID))
	if err != nil {
		return nil, errors.Join(err, maps.Close())
	}
	p.maps, p.pages = maps, pages
	p.enc = image.NewEncoder(maps, name, kind.Kind().Type)
	p.runs = runs{name: name, emit: p.endRun}
	if err := p.enc.Entry(&pagemap.PagemapHead{PagesId: &pagesID}); err != nil {
		return nil, errors.Join(err, maps.Close(), pages.Close())
	}
	p.start(c, p.take)
	return p, nil
}

// packedPagemap is one object on its way to two files.
type packedPagemap struct {
	runs
	packer
	enc         *image.Encoder
	maps, pages Writer
	parent      *parentRuns
	sizes       []uint32 // of the blocks of the run
	written     int64
}

func (p *packedPagemap) Add(vaddr, pages uint64, flags uint32) error {
	// A page map's reader holds the sizes of one run's blocks.
	if p.last.Pages >= maxPackedRun {
		if err := p.flush(); err != nil {
			return err
		}
	}
	return p.add(vaddr, pages, flags)
}

// maxPackedRun bounds the pages of one entry, though not of one that comes in one piece.
const maxPackedRun = 1 << 18

func (p *packedPagemap) HasParent() (bool, error) { return p.parent != nil, nil }

// Direct: there is no file where pages could be written as they are.
func (p *packedPagemap) Direct() (*os.File, int64, bool) { return nil, 0, false }

func (p *packedPagemap) Reserve(int64) int64 { return 0 }

func (p *packedPagemap) Advance(int64) {}

func (p *packedPagemap) Write(b []byte) (int, error) { return p.write(b, false) }

// WriteLater implements pagecopy.Later: blocks that are whole in b are compressed where they are.
func (p *packedPagemap) WriteLater(b []byte) error {
	_, err := p.write(b, p.c.codec != image.Plain)
	return err
}

// Later implements pagecopy.Later.
func (p *packedPagemap) Later() func() {
	blocks := p.takeLater()
	return func() { p.compress(blocks) }
}

func (p *packedPagemap) write(b []byte, lent bool) (int, error) {
	size := int(p.c.block) * image.PageSize
	for rest := b; len(rest) > 0; {
		if lent && p.block == nil && len(rest) >= size {
			if err := p.lend(rest[:size]); err != nil {
				return 0, err
			}
			rest = rest[size:]
			continue
		}
		n, err := p.fill(rest, size)
		if err != nil {
			return 0, err
		}
		if rest = rest[n:]; len(p.block.plain) == size {
			p.dispatch(nil)
		}
	}
	p.written += int64(len(b))
	return len(b), nil
}

// endRun is told of a run whose bytes have all come.
func (p *packedPagemap) endRun(run image.Run) error {
	if p.block != nil {
		p.dispatch(&run)
		return nil
	}
	p.queue(&packedBlock{run: &run})
	return nil
}

// take writes a block, and the entry of the run that ends with it.
func (p *packedPagemap) take(b *packedBlock) error {
	if b.done != nil {
		data := b.data()
		p.sizes = append(p.sizes, uint32(len(data)))
		if _, err := p.pages.Write(data); err != nil {
			return err
		}
	}
	if b.run == nil {
		return nil
	}
	err := p.store(*b.run, p.sizes)
	p.sizes = p.sizes[:0]
	return err
}

// store writes the entry of a run. What is left to the parent has to be there.
func (p *packedPagemap) store(run image.Run, sizes []uint32) error {
	if run.Flags&image.PEParent != 0 {
		if err := p.parent.covers(run); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if run.Flags&image.PEPresent == 0 || p.c.codec == image.Plain {
		return p.enc.Run(run)
	}
	return p.enc.PackedRun(run, image.Blocks{Codec: p.c.codec, Pages: p.c.block, Sizes: sizes})
}

func (p *packedPagemap) Close() error {
	err := errors.Join(p.finish(p.written), p.wait())
	if p.parent != nil {
		p.parent.Close()
	}
	return errors.Join(err, p.enc.Flush(), p.maps.Close(), p.pages.Close())
}
