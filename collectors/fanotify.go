package collectors

import (
	"bytes"
	"fmt"
	"strings"

	"cryo/internal/fhandle"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"google.golang.org/protobuf/proto"
)

// Fanotify collects fanotify groups and their marks of inodes and mounts (fdinfo, Linux 3.8). Events that wait to be
// read are lost.
type Fanotify struct{}

// Match takes anonymous inodes named fanotify.
func (Fanotify) Match(p *Probe) bool { return p.anonymous("[fanotify]") }

// Collect makes a fanotify_file_entry, in it the marks in the order of the kernel.
func (Fanotify) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	if err := warnQueued(p); err != nil {
		return nil, err
	}
	e := &fsnotify.FanotifyFileEntry{Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags), Fown: p.Owner}
	for line := range bytes.Lines(p.Info.Rest) {
		text := strings.TrimSpace(string(line))
		rest, ok := strings.CutPrefix(text, "fanotify ")
		if !ok {
			continue
		}
		var mark *fsnotify.FanotifyMarkEntry
		var err error
		switch kind, _, _ := strings.Cut(rest, ":"); kind {
		case "flags":
			e.Faflags, e.Evflags = new(uint32), new(uint32)
			_, err = fmt.Sscanf(rest, "flags:%x event-flags:%x", e.Faflags, e.Evflags)
		case "ino":
			mark, err = f.inodeMark(p, rest)
		case "mnt_id":
			mark, err = f.mountMark(p, rest)
		default:
			return nil, p.Obstacle("a fanotify mark of a whole filesystem, which images have no place for ("+text+")", "remove it before the dump")
		}
		if err != nil {
			return nil, err
		}
		if mark != nil {
			mark.Id = proto.Uint32(id)
			e.Mark = append(e.Mark, mark)
		}
	}
	if e.Faflags == nil {
		return nil, fmt.Errorf("fdinfo of a fanotify descriptor does not tell its flags")
	}
	return &fdinfo.FileEntry{Ffy: e}, nil
}

// newMark is a mark whose numbers are yet to be read.
func newMark(typ fsnotify.MarkType) *fsnotify.FanotifyMarkEntry {
	return &fsnotify.FanotifyMarkEntry{Type: typ.Enum(), Mflags: new(uint32), Mask: new(uint32), IgnoredMask: new(uint32), SDev: new(uint32)}
}

func (f *Files) inodeMark(p *Probe, line string) (*fsnotify.FanotifyMarkEntry, error) {
	m := newMark(fsnotify.MarkType_INODE)
	var ino uint64
	head, rest, _ := strings.Cut(line, "fhandle-")
	if _, err := fmt.Sscanf(head, "ino:%x sdev:%x mflags:%x mask:%x ignored_mask:%x", &ino, m.SDev, m.Mflags, m.Mask, m.IgnoredMask); err != nil {
		return nil, fmt.Errorf("fdinfo of a fanotify descriptor has an unknown format: %q", line)
	}
	w, err := parseWatched(m.GetSDev(), ino, "fhandle-"+rest)
	if err == nil {
		err = f.findWatched(p, w)
	}
	if err != nil {
		return nil, err
	}
	m.Ie = &fsnotify.FanotifyInodeMarkEntry{IIno: proto.Uint64(ino), FHandle: w.handle}
	return m, nil
}

func (f *Files) mountMark(p *Probe, line string) (*fsnotify.FanotifyMarkEntry, error) {
	m := newMark(fsnotify.MarkType_MOUNT)
	var id uint32
	if _, err := fmt.Sscanf(line, "mnt_id:%x mflags:%x mask:%x ignored_mask:%x", &id, m.Mflags, m.Mask, m.IgnoredMask); err != nil {
		return nil, fmt.Errorf("fdinfo of a fanotify descriptor has an unknown format: %q", line)
	}
	mounts, err := f.mountsOf(p.holder())
	if err != nil {
		return nil, err
	}
	for _, mount := range mounts {
		if mount.ID == int(id) {
			m.Me = &fsnotify.FanotifyMountMarkEntry{MntId: proto.Uint32(id), Path: proto.String(mount.Mountpoint)}
			*m.SDev = fhandle.KernelDev(mount.Major, mount.Minor)
			return m, nil
		}
	}
	return nil, p.Obstacle(fmt.Sprintf("a fanotify mark of mount %d, which the task does not see", id), "remove it before the dump")
}
