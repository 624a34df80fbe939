package collectors

import (
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/eventfd"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Eventfd collects event counters (eventfd(2), Linux 2.6.22).
type Eventfd struct{}

// Match takes anonymous inodes named eventfd.
func (Eventfd) Match(p *Probe) bool { return p.anonymous("[eventfd]") }

// Collect makes an eventfd_file_entry. The image has no field for EFD_SEMAPHORE; its value is that of O_WRONLY, a flag
// no eventfd has, so it is kept there (and told by Linux 6.5 and newer only). criu ignores that bit.
func (Eventfd) Collect(_ *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	count, err := strconv.ParseUint(p.Info.Field("eventfd-count"), 16, 64)
	if err != nil {
		return nil, err
	}
	flags := p.Flags
	if p.Info.Field("eventfd-semaphore") == "1" {
		flags |= unix.EFD_SEMAPHORE
	}
	return &fdinfo.FileEntry{Efd: &eventfd.EventfdFileEntry{
		Id: proto.Uint32(id), Flags: proto.Uint32(flags), Fown: p.Owner, Counter: proto.Uint64(count),
	}}, nil
}

// anonymous says whether the file is an anonymous inode with this name.
func (p *Probe) anonymous(name string) bool {
	if p.FSType != unix.ANON_INODE_FS_MAGIC {
		return false
	}
	link, err := p.Link()
	return err == nil && (link == "anon_inode:"+name || link == "anon_inode:/"+name)
}
