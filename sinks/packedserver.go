package sinks

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"cryo/internal/image"
	"cryo/internal/pagexfer"
)

// packedServerPagemap is one object that is compressed on its way to a page server of this program, which stores the blocks as
// they come. Other servers do not know such messages, and say so by not answering the question for them.
type packedServerPagemap struct {
	packer
	to      *serverPagemap
	present int64  // bytes that the runs announce
	written int64  // of them
	end     uint64 // of the last run
	run     image.Run
	left    int64 // bytes of run that are still to come
	size    int   // of the block that is being filled
}

func newPackedServerPagemap(c *Compressed, s *PageServer, kind image.PagemapKind, id uint64) *packedServerPagemap {
	p := &packedServerPagemap{to: s.pagemap(kind, id)}
	p.to.packed = true
	p.start(c, p.take)
	return p
}

func (p *packedServerPagemap) HasParent() (bool, error) { return p.to.HasParent() }

// Add announces a run. One without bytes goes as it does without compression.
func (p *packedServerPagemap) Add(vaddr, pages uint64, flags uint32) error {
	run := image.Run{Addr: vaddr, Pages: pages, Flags: flags}
	switch {
	case pages == 0:
		return nil
	case p.written != p.present:
		return fmt.Errorf("%s: a run at %#x before all bytes of the one before it", p.to.name, vaddr)
	case vaddr%image.PageSize != 0 || pages > (1<<63)/image.PageSize || run.End() < vaddr || vaddr < p.end:
		return fmt.Errorf("%s: %d pages at %#x are no pages, or come too late", p.to.name, pages, vaddr)
	}
	if err := p.to.begin(); err != nil {
		return err
	}
	p.end = run.End()
	if flags&image.PEPresent == 0 {
		p.blocks <- &packedBlock{run: &run}
		return nil
	}
	p.run = run
	p.present += int64(run.Bytes())
	return nil
}

// Write takes the bytes of the run that was announced. It goes in messages of bounded length.
func (p *packedServerPagemap) Write(b []byte) (int, error) {
	if p.written+int64(len(b)) > p.present {
		return 0, fmt.Errorf("%s: more bytes than the runs announce", p.to.name)
	}
	for rest := b; len(rest) > 0; {
		if p.left == 0 {
			head := p.run
			head.Pages = min(head.Pages, pagexfer.MaxPacked)
			p.run.Addr, p.run.Pages = head.End(), p.run.Pages-head.Pages
			p.left = int64(head.Bytes())
			p.blocks <- &packedBlock{run: &head}
		}
		if p.block == nil {
			p.size = int(min(int64(p.c.block)*image.PageSize, p.left))
		}
		n, err := p.fill(rest, p.size)
		if err != nil {
			return 0, err
		}
		rest = rest[n:]
		if p.left -= int64(n); len(p.block.plain) == p.size {
			p.dispatch(nil)
		}
	}
	p.written += int64(len(b))
	return len(b), nil
}

// take sends a message, or a block of the one before.
func (p *packedServerPagemap) take(b *packedBlock) error {
	s := p.to.s
	if b.run != nil {
		m := pagexfer.Msg{Cmd: pagexfer.AddF, Flags: uint16(b.run.Flags), Pages: b.run.Pages, Addr: b.run.Addr, Object: p.to.object}
		if b.run.Flags&image.PEPresent == 0 {
			return errors.Join(s.put(m), p.to.note(*b.run))
		}
		m.Cmd = pagexfer.AddPacked
		var how [8]byte
		binary.LittleEndian.PutUint32(how[0:], uint32(p.c.codec))
		binary.LittleEndian.PutUint32(how[4:], uint32(p.c.block))
		return errors.Join(s.put(m), s.send(how[:]), p.to.note(*b.run))
	}
	data := b.data()
	var size [4]byte
	binary.LittleEndian.PutUint32(size[:], uint32(len(data)))
	return errors.Join(s.send(size[:]), s.send(data))
}

// Direct, Reserve and Advance: there is no file where pages could be written as they are.
func (p *packedServerPagemap) Direct() (*os.File, int64, bool) { return nil, 0, false }

// Reserve is of no use without Direct.
func (p *packedServerPagemap) Reserve(int64) int64 { return 0 }

// Advance is of no use without Direct.
func (p *packedServerPagemap) Advance(int64) {}

func (p *packedServerPagemap) Close() error {
	err := errors.Join(p.to.begin(), p.wait())
	if p.written != p.present {
		err = errors.Join(err, fmt.Errorf("%s: %d bytes of pages were written where the runs announce %d", p.to.name, p.written, p.present))
	}
	return errors.Join(err, p.to.Close())
}
