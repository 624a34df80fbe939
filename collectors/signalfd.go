package collectors

import (
	"fmt"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/signalfd"
	"google.golang.org/protobuf/proto"
)

// Signalfd collects descriptors that read signals (signalfd(2), Linux 2.6.22): the set of signals they wait for. The
// signals themselves belong to tasks.
type Signalfd struct{}

// Match takes anonymous inodes named signalfd.
func (Signalfd) Match(p *Probe) bool { return p.anonymous("[signalfd]") }

// Collect makes a signalfd_entry from fdinfo (Linux 3.8).
func (Signalfd) Collect(_ *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	mask, err := strconv.ParseUint(p.Info.Field("sigmask"), 16, 64)
	if err != nil {
		return nil, fmt.Errorf("fdinfo of a signalfd: %w", err)
	}
	return &fdinfo.FileEntry{Sgfd: &signalfd.SignalfdEntry{
		Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags), Fown: p.Owner, Sigmask: proto.Uint64(mask),
	}}, nil
}
