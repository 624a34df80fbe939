package collectors

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// remap decides how a file whose path does not simply lead to it will be found again, notes that in remap-fpath.img,
// and returns the name for its entry.
//
//   - A file of a dead process' /proc directory: a helper process takes that pid while it is opened (PROCFS).
//   - A file without any name left: its contents go into the set (GHOST).
//   - A file that has other names, but not the one it was opened by: a link beside it (LINKED), if --link-remap allows.
func (f *Files) remap(p *Probe, id uint32, link string) (string, error) {
	switch {
	case p.FSType == unix.PROC_SUPER_MAGIC:
		return f.remapProc(p, id, link)
	case p.FSType == unix.SECRETMEM_MAGIC:
		return "", p.Obstacle("secret memory (memfd_secret), which nobody but the program itself can read", "")
	case p.FSType == unix.DEVPTS_SUPER_MAGIC:
		name, _ := deleted(link)
		return name, nil // the kernel makes these by itself
	case p.Stat.Nlink == 0:
		name, _ := deleted(link)
		return name, f.ghost(p, id, name)
	case sillyRenamed(p, link):
		return link, f.link(p, id, link)
	}
	flags := 0
	if p.mode() == unix.S_IFLNK {
		flags = unix.AT_SYMLINK_NOFOLLOW
	}
	here := inode{dev: p.Stat.Dev, ino: p.Stat.Ino}
	if f.lastPath == link && f.lastInode == here {
		return link, nil // the path led here a moment ago, and nothing moves
	}
	var st unix.Stat_t
	err := unix.Fstatat(unix.AT_FDCWD, link, &st, flags)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		name, _ := deleted(link)
		return name, f.link(p, id, name)
	}
	if err != nil {
		return "", fmt.Errorf("stat %s: %w", link, err)
	}
	if st.Dev == p.Stat.Dev && st.Ino == p.Stat.Ino {
		f.lastPath, f.lastInode = link, here // many descriptors of one file follow each other
		return link, nil
	}
	device := p.mode() == unix.S_IFCHR || p.mode() == unix.S_IFBLK
	if device && f.env.Options.EvasiveDevices && st.Rdev == p.Stat.Rdev {
		return link, nil
	}
	remedy := ""
	if device {
		remedy = "--evasive-devices opens another node of the same device"
	}
	return "", p.Obstacle("file "+link+", whose path leads to another file now", remedy)
}

// remapProc handles files of /proc: those of a process that has ended can only be opened again while a process with
// that pid exists. A thread that has ended is as good as a process with its id.
func (f *Files) remapProc(p *Probe, id uint32, link string) (string, error) {
	name, dead := deleted(link)
	parts := strings.Split(strings.TrimPrefix(name, "/proc/"), "/")
	pid, err := strconv.Atoi(parts[0])
	if err != nil || !strings.HasPrefix(name, "/proc/") {
		return name, nil // /proc itself, /proc/meminfo ...
	}
	if len(parts) > 2 && parts[1] == "task" {
		tid, err := strconv.Atoi(parts[2])
		if err == nil && tid != pid && (dead || endedProc("/proc/"+parts[0]+"/task/"+parts[2])) {
			dead = true
			pid, parts[0] = tid, parts[2]
			name = "/proc/" + strings.Join(parts, "/")
		}
		parts = parts[2:]
	}
	dead = dead || endedProc("/proc/"+parts[0])
	if dead && len(parts) > 2 && (parts[1] == "fd" || parts[1] == "fdinfo" || parts[1] == "map_files") {
		return "", p.Obstacle("file "+link+", of a descriptor or mapping of a process that has ended", "close it before the dump")
	}
	if f.env.PIDNS.Own() {
		if dead {
			pid = f.env.PIDNS.Departed(pid)
		}
		if name, err = f.env.PIDNS.procName(name); err != nil {
			return "", p.Obstacle("file "+link+", "+err.Error(), "close it before the dump")
		}
	}
	if !dead || f.dead[pid] {
		return name, nil
	}
	f.dead[pid] = true
	f.addRemap(id, uint32(pid), remap_file_path.RemapType_PROCFS)
	return name, nil
}

// endedProc says whether the process or thread of a directory of /proc has ended.
func endedProc(dir string) bool { return errors.Is(unix.Access(dir, unix.F_OK), unix.ENOENT) }

// DeadPids are the pids of processes that have ended and whose /proc files are open.
func (f *Files) DeadPids() map[int]bool { return f.dead }

func (f *Files) addRemap(orig, remap uint32, typ remap_file_path.RemapType) {
	f.remaps = append(f.remaps, &remap_file_path.RemapFilePathEntry{
		OrigId: proto.Uint32(orig), RemapId: proto.Uint32(remap), RemapType: typ.Enum(),
	})
}

// sillyRenamed says whether a file is one that NFS keeps under a name of its own until the last user is gone: after the
// dump it would be.
func sillyRenamed(p *Probe, link string) bool {
	return p.FSType == unix.NFS_SUPER_MAGIC && strings.HasPrefix(path.Base(link), ".nfs")
}

// link gives a file another name in the directory it was in, or the next above that still exists.
func (f *Files) link(p *Probe, id uint32, name string) error {
	if !f.env.Options.LinkRemap {
		return p.Obstacle("file "+name+", which has lost this name but has others", "--link-remap")
	}
	fd, err := p.Dup()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	linkID, tries := f.FreshID(), 0
	for dir := path.Dir(name); ; {
		target := fmt.Sprintf("%s/link_remap.%d", strings.TrimSuffix(dir, "/"), linkID)
		err := f.linkAt(fd, target)
		if errors.Is(err, unix.ENOENT) && dir != "/" {
			dir = path.Dir(dir)
			continue
		}
		if errors.Is(err, unix.EEXIST) && tries < maxLinkNames { // of a set that was taken earlier
			linkID, tries = f.FreshID(), tries+1
			continue
		}
		if err != nil {
			return p.Obstacle(fmt.Sprintf("file %s, which has lost this name and cannot be linked to %s: %v", name, target, err), "")
		}
		f.Add(&fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(linkID), Reg: &regfile.RegFileEntry{
			Id: proto.Uint32(linkID), Flags: proto.Uint32(0), Pos: proto.Uint64(0), Fown: noOwner(), Name: proto.String(target),
		}})
		f.addRemap(id, linkID, remap_file_path.RemapType_LINKED)
		return nil
	}
}

// maxLinkNames is how many names of other links are passed over.
const maxLinkNames = 1000

// linkAt makes the link, or takes one of the same file that an earlier set of the running tree has left. Its removal is on the undo stack first, and only a link this call made is ever removed.
func (f *Files) linkAt(fd int, target string) error {
	if f.env.DryRun {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	var there unix.Stat_t
	if err := unix.Lstat(target, &there); err == nil {
		if there.Dev == st.Dev && there.Ino == st.Ino {
			return nil
		}
		return unix.EEXIST
	}
	own := fmt.Sprintf("/proc/self/fd/%d", fd)
	remove := func(context.Context) error { return removeLink(target, st.Dev, st.Ino) }
	if err := f.env.Undo("link "+target, remove); err != nil {
		return err
	}
	return unix.Linkat(unix.AT_FDCWD, own, unix.AT_FDCWD, target, unix.AT_SYMLINK_FOLLOW)
}

// removeLink unlinks a name if it is still the file it was made for.
func removeLink(target string, dev, ino uint64) error {
	var st unix.Stat_t
	if err := unix.Lstat(target, &st); err != nil || st.Dev != dev || st.Ino != ino {
		return nil
	}
	return unix.Unlink(target)
}
