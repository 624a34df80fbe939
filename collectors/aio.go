package collectors

import (
	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
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
