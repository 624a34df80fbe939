package collectors

import (
	"bytes"
	"fmt"
	"strconv"

	"cryo/internal/image"

	bpfmap_data "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-data"
	bpfmap_file "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// BPFMap collects BPF maps (bpf(2), Linux 3.18) of the kinds array and hash, with their contents in bpfmap-data.img.
type BPFMap struct{}

// Match takes anonymous inodes named bpf-map.
func (BPFMap) Match(p *Probe) bool { return p.anonymous("bpf-map") }

// Collect makes a bpfmap_file_entry from fdinfo (Linux 4.16) and stores the contents.
func (BPFMap) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	e := &bpfmap_file.BpfmapFileEntry{
		Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags), Pos: proto.Uint64(0), Fown: p.Owner, Ifindex: proto.Uint32(0),
	}
	numbers := map[string]uint64{}
	for _, name := range []string{"map_type", "key_size", "value_size", "max_entries", "map_flags", "memlock", "map_id", "frozen"} {
		n, err := strconv.ParseUint(p.Info.Field(name), 0, 64)
		if err != nil {
			return nil, fmt.Errorf("fdinfo of a BPF map: %s: %w", name, err)
		}
		numbers[name] = n
	}
	number := func(name string) *uint32 { return proto.Uint32(uint32(numbers[name])) }
	e.MapType, e.KeySize, e.ValueSize, e.MaxEntries = number("map_type"), number("key_size"), number("value_size"), number("max_entries")
	e.MapFlags, e.MapId, e.Memlock, e.Frozen = number("map_flags"), number("map_id"), proto.Uint64(numbers["memlock"]), proto.Bool(numbers["frozen"] != 0)
	if extra, err := strconv.ParseUint(p.Info.Field("map_extra"), 0, 64); err == nil { // Linux 5.16
		e.MapExtra = proto.Uint64(extra)
	}
	typ := ebpf.MapType(e.GetMapType())
	if typ != ebpf.Array && typ != ebpf.Hash {
		return nil, p.Obstacle(fmt.Sprintf("a BPF map of type %s; only arrays and hashes can be dumped", typ), "close it before the dump")
	}
	return &fdinfo.FileEntry{Bpf: e}, f.bpfContents(p, e)
}

// bpfContents fills the name and stores keys and values, once a map however often it is open.
func (f *Files) bpfContents(p *Probe, e *bpfmap_file.BpfmapFileEntry) error {
	fd, err := p.Dup()
	if err != nil {
		return err
	}
	m, err := ebpf.NewMapFromFD(fd)
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("BPF map: %w", err)
	}
	defer m.Close()
	info, err := m.Info()
	if err != nil {
		return fmt.Errorf("BPF map: %w", err)
	}
	e.MapName = proto.String(info.Name)
	if f.bpfStored[e.GetMapId()] {
		return nil
	}
	f.bpfStored[e.GetMapId()] = true
	var keys, values bytes.Buffer
	var key, value []byte
	d := &bpfmap_data.BpfmapDataEntry{MapId: e.MapId, Count: proto.Uint32(0)}
	all := m.Iterate()
	for all.Next(&key, &value) {
		keys.Write(key)
		values.Write(value)
		*d.Count++
	}
	if err := all.Err(); err != nil {
		return p.Obstacle(fmt.Sprintf("a BPF map that cannot be read: %v", err), "")
	}
	d.KeysBytes, d.ValuesBytes = proto.Uint32(uint32(keys.Len())), proto.Uint32(uint32(values.Len()))
	if f.bpfData == nil {
		if f.bpfData, err = image.Create(f.env.Images, image.BpfmapData, 0); err != nil {
			return err
		}
	}
	if err := f.bpfData.Entry(d); err != nil {
		return err
	}
	keys.Write(values.Bytes())
	return f.bpfData.Payload(&keys)
}
