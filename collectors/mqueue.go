package collectors

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Mqueue collects POSIX message queues (mq_open(3), Linux 2.6.6). A queue that has a name stays in its IPC namespace with
// all messages when its last user goes, and is opened again by name: where the filesystem of queues is mounted it is an
// ordinary file to a restore (restorers/regfile.go), criu's as well. The name that the kernel shows, "/name", is no path.
type Mqueue struct{}

const mqueueMagic = 0x19800202 // linux/magic.h

// Match takes files of the filesystem of queues, however they were opened.
func (Mqueue) Match(p *Probe) bool {
	return p.FSType == mqueueMagic && p.mode() == unix.S_IFREG && p.Flags&unix.O_PATH == 0
}

// Collect makes a reg_file_entry.
func (Mqueue) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	link, err := p.Link()
	if err != nil {
		return nil, err
	}
	if name, gone := deleted(link); gone || p.Stat.Nlink == 0 {
		return nil, p.Obstacle(fmt.Sprintf("the POSIX message queue %s, which has no name any more (mq_unlink)", name), "close it before the dump")
	}
	if err := f.notified(p, link); err != nil {
		return nil, err
	}
	path, err := f.mqueuePath(p, filepath.Base(link))
	if err != nil {
		return nil, err
	}
	if path == "" {
		return nil, p.Obstacle(fmt.Sprintf("the POSIX message queue %s, which no path leads to", link), "mount -t mqueue mqueue /dev/mqueue")
	}
	e := &regfile.RegFileEntry{Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags), Pos: proto.Uint64(uint64(p.Info.Pos)),
		Fown: p.Owner, Mode: proto.Uint32(p.Stat.Mode), Name: proto.String(path)}
	return &fdinfo.FileEntry{Reg: e}, f.validation(e, p)
}

// mqueuePath finds where the task sees the queue; empty if it does not.
func (f *Files) mqueuePath(p *Probe, name string) (string, error) {
	mounts, err := f.mountsOf(p.Task)
	if err != nil {
		return "", err
	}
	for _, m := range mounts {
		if m.FSType != "mqueue" {
			continue
		}
		var st unix.Stat_t
		path := filepath.Join(m.Mountpoint, name)
		if err := unix.Lstat(p.Task.Proc.Path("root")+path, &st); err == nil && st.Dev == p.Stat.Dev && st.Ino == p.Stat.Ino {
			return path, nil
		}
	}
	return "", nil
}

// notified refuses a queue that is to tell a task of the tree when a message comes (mq_notify): with what value it does the
// kernel does not show.
func (f *Files) notified(p *Probe, name string) error {
	text, err := os.ReadFile(p.Task.Proc.Path("fd/" + strconv.Itoa(p.FD)))
	if err != nil {
		return fmt.Errorf("state of a POSIX message queue: %w", err)
	}
	for _, field := range strings.Fields(string(text)) {
		var pid int
		if n, _ := fmt.Sscanf(field, "NOTIFY_PID:%d", &pid); n == 1 && pid != 0 && f.env.InTree(pid) {
			return p.Obstacle(fmt.Sprintf("the POSIX message queue %s, which is to tell task %d when a message comes (mq_notify)", name, pid),
				"let the program take that back before the dump")
		}
	}
	return nil
}
