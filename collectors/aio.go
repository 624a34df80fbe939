package collectors

import (
	"slices"
	"syscall"

	"cryo/internal/remote"
	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// The kernel's struct aio_ring: a header, then one io_event for each request that may be in flight.
const (
	aioRingHeader = 32
	aioEvent      = 32
)

// aioRing describes the completion ring of an AIO context, whose id is the ring's address.
//
// io_setup(n) doubles n, adds 2 (after raising it to four a processor) and fills up the last page with events; the
// number that grows to a ring of the same size is what the image has.
func aioRing(m *vma.Mapping) *mm.AioRingEntry {
	events := (m.Len() - aioRingHeader) / aioEvent
	return &mm.AioRingEntry{Id: proto.Uint64(m.Start), NrReq: proto.Uint32(uint32(events-2) / 2), RingLen: proto.Uint32(uint32(m.Len()))}
}

// askRings finds out which rings belong to contexts of this very task: one that was forked off has its parent's rings
// mapped, but no contexts. They are memory like any other to it and must not become contexts by a restore.
func (m *Memory) askRings(t *Task, programs *SelfWriting) error {
	if programs == nil || t.Session == nil || m.deadRings != nil || !slices.Contains(m.kinds, vma.AIORing) {
		return nil
	}
	b := remote.NewBuilder("AIO contexts")
	asked := map[int]remote.Op{}
	for i, kind := range m.kinds {
		if kind == vma.AIORing {
			asked[i] = b.Call(unix.SYS_IO_GETEVENTS, remote.Imm(m.maps[i].Start), remote.Imm(0), remote.Imm(0), remote.Imm(0), remote.Imm(0))
		}
	}
	res, err := programs.run(t.Session, b.Program())
	if err != nil {
		return err
	}
	m.deadRings = map[int]bool{}
	for i, op := range asked {
		answer, ok := res.Raw(op)
		m.deadRings[i] = ok && answer == -int64(syscall.EINVAL)
	}
	return nil
}
