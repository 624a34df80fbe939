package collectors

import (
	"fmt"
	"strings"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fsnotify"
	"google.golang.org/protobuf/proto"
)

// Inotify collects inotify instances and what they watch (fdinfo, Linux 3.8). Events that wait to be read are lost.
type Inotify struct{}

// Match takes anonymous inodes named inotify.
func (Inotify) Match(p *Probe) bool { return p.anonymous("inotify") }

// Collect makes an inotify_file_entry, in it the watches in the order of the kernel.
func (Inotify) Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	if err := warnQueued(p); err != nil {
		return nil, err
	}
	e := &fsnotify.InotifyFileEntry{Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags), Fown: p.Owner}
	for line := range p.Info.Lines("inotify wd") {
		var wd, dev, mask, ignored uint32
		var ino uint64
		head, rest, _ := strings.Cut(line, "fhandle-")
		if _, err := fmt.Sscanf(head, "%x ino:%x sdev:%x mask:%x ignored_mask:%x", &wd, &ino, &dev, &mask, &ignored); err != nil {
			return nil, fmt.Errorf("fdinfo of an inotify descriptor has an unknown format: %q", line)
		}
		w, err := parseWatched(dev, ino, "fhandle-"+rest)
		if err == nil {
			err = f.findWatched(p, w)
		}
		if err != nil {
			return nil, err
		}
		e.Wd = append(e.Wd, &fsnotify.InotifyWdEntry{
			Id: proto.Uint32(id), IIno: proto.Uint64(ino), Mask: proto.Uint32(mask), IgnoredMask: proto.Uint32(ignored),
			SDev: proto.Uint32(dev), Wd: proto.Uint32(wd), FHandle: w.handle,
		})
	}
	return &fdinfo.FileEntry{Ify: e}, nil
}
