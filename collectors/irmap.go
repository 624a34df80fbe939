package collectors

import (
	"io/fs"
	"path/filepath"
	"slices"

	"cryo/internal/fhandle"

	"golang.org/x/sys/unix"
)

// irmapHints are where files live that programs like to watch: after the paths of the user, these are looked through.
var irmapHints = []string{
	"/etc", "/var/spool", "/var/log", "/usr/share/dbus-1/services", "/usr/share/dbus-1/system-services",
	"/var/lib/polkit-1/localauthority", "/usr/share/polkit-1/actions", "/lib/udev",
}

// irmap finds the path of an inode by looking through directories, of which each is read at most once. Links are not
// followed. It is slow: a last resort.
func (f *Files) irmap(dev uint32, ino uint64) (string, bool) {
	wanted := inode{dev: uint64(dev), ino: ino}
	for {
		if path, ok := f.irmapped[wanted]; ok {
			return path, true
		}
		if f.irmapped == nil {
			f.irmapped = map[inode]string{}
			f.irmapNext = slices.Concat(f.env.Options.IrmapScanPaths, irmapHints)
			f.irmapFile("/")
			continue
		}
		if len(f.irmapNext) == 0 {
			return "", false
		}
		dir := f.irmapNext[0]
		f.irmapNext = f.irmapNext[1:]
		// What cannot be read is passed over.
		filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				f.irmapFile(path)
			}
			return nil
		})
	}
}

// irmapFile notes which inode a path leads to. The first path stays.
func (f *Files) irmapFile(path string) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return
	}
	key := inode{dev: uint64(fhandle.StatDev(st.Dev)), ino: st.Ino}
	if _, known := f.irmapped[key]; !known {
		f.irmapped[key] = path
	}
}
