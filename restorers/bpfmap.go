package restorers

import (
	"context"
	"fmt"
	"io"

	"cryo/internal/image"
	"cryo/internal/remote"

	bpfmap_data "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-data"
	bpfmap_file "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/cilium/ebpf"
)

// BPFMap restores BPF maps (bpf(2), Linux 3.18) of the kinds array and hash. The tool makes and fills them, the tasks
// fetch them.
type BPFMap struct{}

// bpfMap is one descriptor of a map; several may be of the same one.
type bpfMap struct {
	*bpfmap_file.BpfmapFileEntry
	data *bpfData
	made *ebpf.Map
}

// bpfData is the contents of a map, and the map when it has been made.
type bpfData struct {
	*bpfmap_data.BpfmapDataEntry
	bytes []byte // all keys, then all values
	made  ebpf.MapID
}

// maxBPFData bounds what is kept of one map.
const maxBPFData = 1 << 30

// bpfContents reads bpfmap-data.img.
func bpfContents(p *FilePlanner) (map[uint32]*bpfData, error) {
	type key struct{}
	return Shared(p, key{}, func() (map[uint32]*bpfData, error) {
		all := map[uint32]*bpfData{}
		d, f, err := image.Open(p.Set.Source, image.BpfmapData, 0)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		for {
			e := &bpfmap_data.BpfmapDataEntry{}
			if err := d.NextInto(e); err == io.EOF {
				return all, nil
			} else if err != nil {
				return nil, err
			}
			b, err := d.PayloadBytes(maxBPFData)
			if err != nil {
				return nil, err
			}
			all[e.GetMapId()] = &bpfData{BpfmapDataEntry: e, bytes: b}
		}
	})
}

// Plan checks that the contents are those of such a map.
func (BPFMap) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	f := e.GetBpf()
	if f == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no bpf", e.GetId())
	}
	if typ := ebpf.MapType(f.GetMapType()); typ != ebpf.Array && typ != ebpf.Hash {
		return nil, fmt.Errorf("a BPF map of type %s, which cannot be restored", typ)
	}
	all, err := bpfContents(p)
	if err != nil {
		return nil, err
	}
	d := all[f.GetMapId()]
	if d == nil {
		return nil, image.Errorf(image.BpfmapData.File(0), -1, "BPF map %d is missing", f.GetMapId())
	}
	n := uint64(d.GetCount())
	if n > uint64(f.GetMaxEntries()) || n*uint64(f.GetKeySize()) != uint64(d.GetKeysBytes()) || n*uint64(f.GetValueSize()) != uint64(d.GetValuesBytes()) {
		return nil, image.Errorf(image.BpfmapData.File(0), -1, "BPF map %d: %d pairs of %d and %d bytes are not what its entry says",
			f.GetMapId(), n, f.GetKeySize(), f.GetValueSize())
	}
	m := &bpfMap{BpfmapFileEntry: f, data: d}
	p.plan.after(Ready, bpfMaker{m})
	p.plan.after(Open, bpfCloser{m})
	return m, nil
}

// Needs is nothing.
func (m *bpfMap) Needs() []uint32 { return nil }

func (m *bpfMap) Emit(lv Level, _ *remote.Builder, s *Slots) error {
	if lv == Open {
		s.FromTool(m.made.FD(), m.GetId())
	}
	return nil
}

// bpfMaker makes a map before the tasks open anything, bpfCloser lets go of it when they have it.
type (
	bpfMaker  struct{ *bpfMap }
	bpfCloser struct{ *bpfMap }
)

func (m bpfCloser) fill(context.Context, func(*Table, int) (int, error)) error { return m.made.Close() }

func (m bpfMaker) fill(context.Context, func(*Table, int) (int, error)) (err error) {
	if m.data.made != 0 {
		m.bpfMap.made, err = ebpf.NewMapFromID(m.data.made)
		return err
	}
	m.bpfMap.made, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: m.GetMapName(), Type: ebpf.MapType(m.GetMapType()), KeySize: m.GetKeySize(), ValueSize: m.GetValueSize(),
		MaxEntries: m.GetMaxEntries(), Flags: m.GetMapFlags(), MapExtra: m.GetMapExtra(),
	})
	if err != nil {
		return fmt.Errorf("BPF map %q: %w", m.GetMapName(), err)
	}
	keys, values := m.data.bytes[:m.data.GetKeysBytes()], m.data.bytes[m.data.GetKeysBytes():]
	for range m.data.GetCount() {
		if err := m.made.Put(keys[:m.GetKeySize()], values[:m.GetValueSize()]); err != nil {
			return fmt.Errorf("BPF map %q: %w", m.GetMapName(), err)
		}
		keys, values = keys[m.GetKeySize():], values[m.GetValueSize():]
	}
	m.data.bytes = nil
	if m.GetFrozen() {
		if err := m.made.Freeze(); err != nil {
			return fmt.Errorf("BPF map %q: %w", m.GetMapName(), err)
		}
	}
	info, err := m.made.Info()
	if err != nil {
		return fmt.Errorf("BPF map %q: %w", m.GetMapName(), err)
	}
	m.data.made, _ = info.ID() // 0 before Linux 4.13, where no map is open twice but by duplicates
	return nil
}
