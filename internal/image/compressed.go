package image

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// Compressed pages, which criu has since its development branch of 2026 (format v1.2). An entry of a page map may
// have a message "blocks" that tells how the bytes of its run are stored: in blocks of pages_per_block pages, each of
// which is left out when it is all zeros, plain when it did not get smaller, or one LZ4 block. The libraries that
// have criu's messages do not know that one yet, so its fields are taken off the wire here.
const (
	runBlocks protowire.Number = 6

	blocksSizes  protowire.Number = 1 // packed u32: bytes of each block as stored
	blocksTotal  protowire.Number = 2 // u64: bytes of all
	blocksPages  protowire.Number = 3 // u32: pages a block
	blocksPadded protowire.Number = 4 // bool: every block starts on a page boundary
	// blocksCodec is our own: how blocks are compressed that are not LZ4. Sets that have it are asked for by name.
	blocksCodec protowire.Number = 100 // u32: Codec

	// peAligned is a flag of an entry: its bytes start on a page boundary of the pages file.
	peAligned = 1 << 3

	// maxBlock bounds what one block expands to.
	maxBlock = 4 << 20
)

// storage is how the bytes of a run are stored. The zero value is: one page after the other.
type storage struct {
	aligned bool
	blocks  bool
	sizes   []uint32
	total   uint64
	pages   uint64 // a block
	padded  bool
	codec   Codec
}

func (st *storage) plain() bool { return !st.aligned && !st.blocks }

// parse decodes the message blocks.
func (st *storage) parse(b []byte) error {
	st.blocks, st.codec = true, LZ4
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if num == blocksSizes && typ == protowire.BytesType {
			packed, m := protowire.ConsumeBytes(b)
			if m < 0 {
				return protowire.ParseError(m)
			}
			b = b[m:]
			for len(packed) > 0 {
				v, k := protowire.ConsumeVarint(packed)
				if k < 0 {
					return protowire.ParseError(k)
				}
				st.sizes, packed = append(st.sizes, uint32(v)), packed[k:]
			}
			continue
		}
		if typ != protowire.VarintType {
			return fmt.Errorf("blocks has a field %d that no known release of criu writes", num)
		}
		v, m := protowire.ConsumeVarint(b)
		if m < 0 {
			return protowire.ParseError(m)
		}
		b = b[m:]
		switch num {
		case blocksSizes:
			st.sizes = append(st.sizes, uint32(v))
		case blocksTotal:
			st.total = v
		case blocksPages:
			st.pages = v
		case blocksPadded:
			st.padded = v != 0
		case blocksCodec:
			if v != uint64(Zstd) {
				return fmt.Errorf("its blocks are compressed in way %d, which this version does not know", v)
			}
			st.codec = Zstd
		default:
			return fmt.Errorf("blocks has a field %d that no known release of criu writes", num)
		}
	}
	return nil
}

// check compares the blocks with the run they are of.
func (st *storage) check(r Run) error {
	if !st.blocks {
		return nil
	}
	if st.pages == 0 || st.pages*PageSize > maxBlock || st.pages > maxBlock {
		return fmt.Errorf("blocks of %d pages", st.pages)
	}
	if want := (r.Pages + st.pages - 1) / st.pages; uint64(len(st.sizes)) != want {
		return fmt.Errorf("%d blocks where %d pages need %d", len(st.sizes), r.Pages, want)
	}
	var total uint64
	for i, size := range st.sizes {
		if uint64(size) > st.blockBytes(r, i) {
			return fmt.Errorf("block %d has %d bytes, more than its pages", i, size)
		}
		total += st.stored(size)
	}
	if total != st.total {
		return fmt.Errorf("its blocks have %d bytes and not %d", total, st.total)
	}
	return nil
}

// blockBytes is what block i expands to; the last may be shorter.
func (st *storage) blockBytes(r Run, i int) uint64 {
	return min(st.pages, r.Pages-uint64(i)*st.pages) * PageSize
}

// stored is the room a block of that size takes in the pages file.
func (st *storage) stored(size uint32) uint64 {
	if st.padded {
		return uint64(roundUp(int64(size), PageSize))
	}
	return uint64(size)
}

// Expand makes a source whose pages files hold plain pages of one that may have compressed ones: src itself where its
// inventory says that it has none. Page maps are to be read through the source that is returned. An expanded pages
// file is in memory from OpenPages until it is closed.
func Expand(src Source) (Source, error) {
	inv, err := ReadInventory(src)
	if err != nil {
		return nil, err
	}
	if inv.GetImgVersion() == FormatV1_1 {
		if packed, err := packedBelow(src); !packed || err != nil {
			return src, err
		}
	}
	x := Packed(src).(*expanded)
	if inv.GetImgVersion() == FormatShared { // every child reads its parent's pages
		x.keep = true
	}
	return x, nil
}

// Packed makes a source of one that may have compressed pages without looking at its inventory, which need not be there yet.
func Packed(src Source) Source { return &expanded{Source: src, maps: map[uint32]pagemapName{}} }

// packedBelow says whether a set that a plain one builds on is compressed.
func packedBelow(src Source) (bool, error) {
	up, err := src.Parent()
	if err != nil || up == nil {
		return false, err
	}
	defer up.Close()
	inv, err := ReadInventory(up)
	if errors.Is(err, ErrNoInventory) {
		return false, nil // one of a page server
	}
	if err != nil || inv.GetImgVersion() != FormatV1_1 {
		return err == nil, err
	}
	return packedBelow(up)
}

type pagemapName struct {
	kind PagemapKind
	id   uint64
}

type expanded struct {
	Source
	mu   sync.Mutex
	maps map[uint32]pagemapName // which page map belongs to a pages file
	keep bool                   // expanded files are read more than once
	kept keptPages
	up   *expanded // the parent, once it has been asked for
	lent bool      // it is a parent, which the set that builds on it closes
}

func (x *expanded) note(pagesID uint32, kind PagemapKind, id uint64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.maps[pagesID] = pagemapName{kind, id}
}

// Parent is expanded too: a parent may be compressed where its child is not, and the other way round, but both say
// so together.
func (x *expanded) Parent() (Source, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.up == nil {
		src, err := x.Source.Parent()
		if err != nil || src == nil {
			return src, err
		}
		x.up = Packed(src).(*expanded)
		x.up.lent = true
	}
	return x.up, nil
}

// OpenPages opens a pages file as if it had been stored plainly.
func (x *expanded) OpenPages(id uint32) (*Pages, error) {
	in, err := x.Source.OpenPages(id)
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	name, ok := x.maps[id]
	x.mu.Unlock()
	if !ok {
		in.Close()
		return nil, fmt.Errorf("%s is opened before its page map", PagesFile(id))
	}
	out, err := x.expandOnce(id, in, name)
	if err != nil {
		in.Close()
		return nil, err
	}
	if out == nil {
		return in, nil
	}
	return out, in.Close()
}

// expandOnce is expand, of a file that may be expanded already. A passing file is given back meanwhile, and its expanded one
// takes its place.
func (x *expanded) expandOnce(id uint32, in *Pages, name pagemapName) (*Pages, error) {
	if !x.keep && !in.Passing {
		return x.expand(in, name)
	}
	return x.kept.get(id, func() (*Pages, error) { return x.expand(in, name) })
}

// Close closes what was kept, too. All who ask for a parent have the same one, which is closed with its child.
func (x *expanded) Close() error {
	if x.lent {
		return nil
	}
	return x.end()
}

func (x *expanded) end() error {
	var err error
	if x.up != nil {
		err = x.up.end()
	}
	x.kept.close()
	return errors.Join(err, x.Source.Close())
}

// expand makes the plain file; nil where it is plain already.
func (x *expanded) expand(in *Pages, name pagemapName) (*Pages, error) {
	if packed, err := x.compressed(name); !packed || err != nil {
		return nil, err
	}
	maps, err := ReadPagemap(x, name.kind, name.id)
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	e := &expander{in: in}
	e.SetLimit(runtime.GOMAXPROCS(0))
	for run, err := range maps.Runs() {
		if err == nil && run.Flags&PEPresent != 0 {
			err = e.run(run, &maps.stored)
		}
		if err != nil {
			e.Wait()
			e.close()
			return nil, maps.dec.fail(maps.dec.Entry(), err)
		}
	}
	if err := e.Wait(); err != nil {
		e.close()
		return nil, err
	}
	if err := e.out.Truncate(e.to); err != nil {
		e.close()
		return nil, err
	}
	return &Pages{File: e.out, Size: e.to, Passing: in.Passing}, nil
}

// compressed says whether a page map has a run that is stored otherwise than plainly.
func (x *expanded) compressed(name pagemapName) (bool, error) {
	maps, err := ReadPagemap(x, name.kind, name.id)
	if err != nil {
		return false, err
	}
	defer maps.Close()
	for run, err := range maps.Runs() {
		if err != nil {
			return false, err
		}
		if run.Flags&PEPresent != 0 && !maps.stored.plain() {
			return true, nil
		}
	}
	return false, nil
}

// expander writes plain pages into a memory file. Blocks are expanded by several goroutines, each where it belongs.
type expander struct {
	errgroup.Group
	in       *Pages
	out      *os.File
	from, to int64 // how far both files are
}

func (e *expander) close() {
	if e.out != nil {
		e.out.Close()
	}
}

// batch is how many bytes one goroutine expands at a time.
const batch = 1 << 20

func (e *expander) run(r Run, st *storage) error {
	if err := st.check(r); err != nil {
		return err
	}
	if e.out == nil {
		fd, err := unix.MemfdCreate("pages", unix.MFD_CLOEXEC)
		if err != nil {
			return os.NewSyscallError("memfd_create", err)
		}
		e.out = os.NewFile(uintptr(fd), e.in.Name())
	}
	if st.aligned {
		e.from = roundUp(e.from, PageSize)
	}
	if !st.blocks {
		n := int64(r.Bytes())
		if n > e.in.Size-e.from {
			return cut(io.ErrUnexpectedEOF, "the pages of this run")
		}
		_, err := io.Copy(io.NewOffsetWriter(e.out, e.to), io.NewSectionReader(e.in, e.from, n))
		e.in.Release(e.from, n)
		e.from, e.to = e.from+n, e.to+n
		return err
	}
	for first := 0; first < len(st.sizes); {
		// The sizes are valid until the next run is read, which does not wait for the goroutines.
		job := blockJob{codec: st.codec, from: e.from, to: e.to}
		for out := uint64(0); first < len(st.sizes) && out < batch; first++ {
			n := st.blockBytes(r, first)
			job.blocks = append(job.blocks, block{st.sizes[first], uint32(n), uint32(st.stored(st.sizes[first]))})
			out += n
			e.from, e.to = e.from+int64(st.stored(st.sizes[first])), e.to+int64(n)
		}
		e.Go(func() error { return job.do(e.in, e.out) })
	}
	return nil
}

type block struct{ size, bytes, stored uint32 }

type blockJob struct {
	codec    Codec
	from, to int64
	blocks   []block
}

func (j *blockJob) do(in *Pages, out *os.File) error {
	start := j.from
	defer func() { in.Release(start, j.from-start) }()
	var packed, plain []byte
	for _, b := range j.blocks {
		from, to := j.from, j.to
		j.from, j.to = from+int64(b.stored), to+int64(b.bytes)
		if b.size == 0 {
			continue // zeros, and a new memory file is all zeros
		}
		packed = grown(packed, int(b.size))
		if _, err := in.ReadAt(packed, from); err != nil {
			return fmt.Errorf("%s: %w", in.Name(), cut(err, "its blocks"))
		}
		data := packed
		if b.size != b.bytes {
			plain = grown(plain, int(b.bytes))
			if err := j.codec.expand(plain, packed); err != nil {
				return fmt.Errorf("%s: the block at %d: %w", in.Name(), from, err)
			}
			data = plain
		}
		if _, err := out.WriteAt(data, to); err != nil {
			return err
		}
	}
	return nil
}

func grown(b []byte, n int) []byte {
	if cap(b) < n {
		return make([]byte, n)
	}
	return b[:n]
}

// Blocks is how the bytes of a run are stored in compressed form: in blocks of Pages pages, of which the last may be shorter.
type Blocks struct {
	Codec Codec
	Pages uint64
	Sizes []uint32 // bytes of each as stored; 0: all zeros
}

// MaxBlock is how many bytes a block has at most before it is compressed.
const MaxBlock = maxBlock

// appendPackedRun encodes a run whose bytes are stored in blocks.
func appendPackedRun(b []byte, r Run, blocks Blocks) []byte {
	var sizes, m []byte
	total := uint64(0)
	for _, size := range blocks.Sizes {
		sizes = protowire.AppendVarint(sizes, uint64(size))
		total += uint64(size)
	}
	m = protowire.AppendBytes(protowire.AppendTag(m, blocksSizes, protowire.BytesType), sizes)
	m = protowire.AppendVarint(protowire.AppendTag(m, blocksTotal, protowire.VarintType), total)
	m = protowire.AppendVarint(protowire.AppendTag(m, blocksPages, protowire.VarintType), blocks.Pages)
	if blocks.Codec != LZ4 {
		m = protowire.AppendVarint(protowire.AppendTag(m, blocksCodec, protowire.VarintType), uint64(blocks.Codec))
	}
	return protowire.AppendBytes(protowire.AppendTag(appendRun(b, r), runBlocks, protowire.BytesType), m)
}
