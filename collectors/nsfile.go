package collectors

import (
	"fmt"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/ns"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// NsFile collects open namespaces: descriptors of links in /proc/PID/ns.
type NsFile struct{}

// cloneFlags are the CLONE_NEW* flags of the kinds of namespaces.
var cloneFlags = map[string]uint32{
	"pid": unix.CLONE_NEWPID, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS,
	"time": unix.CLONE_NEWTIME, "mnt": unix.CLONE_NEWNS, "user": unix.CLONE_NEWUSER, "cgroup": unix.CLONE_NEWCGROUP,
}

// Match takes what shows as "net:[4026531840]".
func (NsFile) Match(p *Probe) bool {
	if p.FSType != unix.NSFS_MAGIC {
		return false
	}
	kind, _ := p.nsKind()
	return cloneFlags[kind] != 0
}

func (p *Probe) nsKind() (string, error) {
	link, err := p.Link()
	kind, _, _ := strings.Cut(link, ":[")
	return kind, err
}

// Collect makes a ns_file_entry. Only namespaces that the images know, because a task is in them, can be named.
func (NsFile) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	kind, err := p.nsKind()
	if err != nil {
		return nil, err
	}
	number, ok := f.env.Namespaces.ByInode(kind, p.Stat.Ino)
	if !ok {
		return nil, p.Obstacle(fmt.Sprintf("the %s namespace %d, which no task of the tree is in", kind, p.Stat.Ino), "close it before the dump")
	}
	return &fdinfo.FileEntry{Nsf: &ns.NsFileEntry{
		Id: proto.Uint32(id), NsId: proto.Uint32(number), NsCflag: proto.Uint32(cloneFlags[kind]), Flags: proto.Uint32(p.Flags),
	}}, nil
}
