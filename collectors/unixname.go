package collectors

import (
	"fmt"
	"os"
	"path"
	"strings"

	"cryo/internal/image"
	"cryo/internal/sockdiag"

	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// siocUnixFile opens a handle (O_PATH) on the file a unix socket is bound to: SIOCUNIXFILE, Linux 4.10; it takes
// CAP_NET_ADMIN.
const siocUnixFile = 0x89e0

// resolveName adds what an address in the filesystem has beside its text: owner and mode of the file, the directory
// that a relative path began in, whether it is gone, and where it is if it was renamed.
func (s *unixSocket) resolveName(own *ownFD) error {
	if len(s.Name) == 0 || s.Name[0] == 0 {
		return nil
	}
	p := own.probe
	fd, err := own.get()
	if err != nil {
		return err
	}
	file, err := unix.IoctlRetInt(fd, siocUnixFile)
	if err != nil {
		return fmt.Errorf("file of %s: %w", s, err)
	}
	defer unix.Close(file)
	var st unix.Stat_t
	if err := unix.Fstat(file, &st); err != nil {
		return fmt.Errorf("file of %s: %w", s, err)
	}
	s.entry.FilePerms = &sk_unix.FilePermsEntry{Mode: proto.Uint32(st.Mode), Uid: proto.Uint32(st.Uid), Gid: proto.Uint32(st.Gid)}
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file))
	if err != nil {
		return err
	}
	full, gone := deleted(link)
	if gone && st.Nlink > 0 {
		full, gone = otherName(path.Dir(full), &st)
	}
	if gone {
		s.entry.Deleted = proto.Bool(true)
	}
	name := cString(s.Name)
	if moved, err := s.moved(p, name, full, &st); moved || err != nil {
		return err
	}
	if path.IsAbs(name) {
		return nil
	}
	dir, ok := relativeTo(full, name)
	if !ok {
		if dir, ok = s.fromCwd(p, name, &st); !ok {
			return p.Obstacle(fmt.Sprintf("%s, whose relative name does not lead to its file %s", s, full), "")
		}
	}
	s.entry.NameDir = proto.String(dir)
	return nil
}

// otherName looks in a directory for another name of a file, whose own was removed: some programs put a socket in its
// place by link and unlink.
func otherName(dir string, st *unix.Stat_t) (full string, gone bool) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.Type() != os.ModeSocket {
			continue
		}
		full := path.Join(dir, e.Name())
		if sameFile(full, st) {
			return full, false
		}
	}
	return dir, true
}

// sameFile says whether a path leads to a file.
func sameFile(path string, st *unix.Stat_t) bool {
	var there unix.Stat_t
	return unix.Lstat(path, &there) == nil && there.Dev == st.Dev && there.Ino == st.Ino
}

// moved notes where the file is if the name does not lead to it any more, though it is not gone. That of a connection
// leads nowhere: nobody can connect to one.
func (s *unixSocket) moved(p *Probe, name, full string, st *unix.Stat_t) (bool, error) {
	if s.entry.GetDeleted() || path.Clean(name) == full || s.State == sockdiag.Established && s.Type != unix.SOCK_DGRAM {
		return false, nil
	}
	from := ""
	if !path.IsAbs(name) {
		if _, ok := relativeTo(full, name); ok {
			return false, nil
		}
		var err error
		if from, err = p.holder().Proc.Readlink("cwd"); err != nil {
			return false, err
		}
	}
	if sameFile(p.holder().Proc.Path(path.Join("root", from, name)), st) {
		return false, nil
	}
	if from != "" {
		s.entry.NameDir = proto.String(from)
	}
	image.SetPlace(s.entry, full)
	return true, nil
}

// relativeTo is the directory that name has to start from to be full, if there is one by their texts alone.
func relativeTo(full, name string) (string, bool) {
	dir, ok := strings.CutSuffix(full, "/"+path.Clean(name))
	if dir == "" {
		dir = "/"
	}
	return dir, ok
}

// fromCwd is the task's working directory, if name starts from there: as it does for names like "../socket".
func (s *unixSocket) fromCwd(p *Probe, name string, st *unix.Stat_t) (string, bool) {
	dir, err := p.holder().Proc.Readlink("cwd")
	if err != nil {
		return "", false
	}
	return dir, sameFile(path.Join(dir, name), st)
}

// cString is b up to its first NUL.
func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return s
}

// printable is an address for messages; abstract ones begin with @, as everywhere.
func printable(name []byte) string {
	if name[0] == 0 {
		return fmt.Sprintf("@%.107s", strings.ReplaceAll(string(name[1:]), "\x00", "@"))
	}
	return cString(name)
}
