package image

import (
	"errors"
	"fmt"
	"io"
	"sync"

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
// inventory says that it has none. Page maps are to be read through the source that is returned: they tell where in a
// pages file its blocks are, which are expanded when they are read.
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
	return Packed(src), nil
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
	up   *expanded              // the parent, once it has been asked for
	lent bool                   // it is a parent, which the set that builds on it closes
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
	if err := x.index(in, name); err != nil {
		in.Close()
		return nil, err
	}
	return in, nil
}

// Close closes the parent, too. All who ask for it have the same one, which is closed with its child.
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
	return errors.Join(err, x.Source.Close())
}

// index finds out where the blocks of a pages file are, if it has any.
func (x *expanded) index(in *Pages, name pagemapName) error {
	maps, err := ReadPagemap(x, name.kind, name.id)
	if err != nil {
		return err
	}
	defer maps.Close()
	var b blocks
	var from, to int64 // how far both files are
	packed := false
	for run, err := range maps.Runs() {
		if err == nil && run.Flags&PEPresent == 0 {
			continue
		}
		if err == nil {
			packed = packed || !maps.stored.plain()
			from, err = b.add(run, &maps.stored, from, to)
		}
		if n := len(b.list); err == nil && packed && n > 0 && b.list[n-1].from+int64(b.list[n-1].size) > in.Size {
			err = cut(io.ErrUnexpectedEOF, "the pages of this run")
		}
		if err != nil {
			return maps.dec.fail(maps.dec.Entry(), err)
		}
		to += int64(run.Bytes())
	}
	if packed {
		in.Size, in.blocks = to, &b
	}
	return nil
}

// add appends the blocks of a run and says where they end in the file as stored.
func (b *blocks) add(r Run, st *storage, from, to int64) (end int64, err error) {
	if err := st.check(r); err != nil {
		return from, err
	}
	if st.aligned {
		from = roundUp(from, PageSize)
	}
	if !st.blocks {
		b.addPlain(from, to, int64(r.Bytes()))
		return from + int64(r.Bytes()), nil
	}
	for i, size := range st.sizes {
		n := st.blockBytes(r, i)
		b.list = append(b.list, block{from, to, size, uint32(n), st.codec})
		from, to = from+int64(st.stored(size)), to+int64(n)
	}
	return from, nil
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
