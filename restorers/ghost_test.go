package restorers

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	ghost_file "github.com/checkpoint-restore/go-criu/v8/crit/images/ghost-file"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	img_time "github.com/checkpoint-restore/go-criu/v8/crit/images/time"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// putGhost adds a ghost file to a set: chunks of "x" at the given offsets.
func putGhost(t *testing.T, s *Set, id uint32, g *ghost_file.GhostFileEntry, chunks ...[2]uint64) {
	t.Helper()
	zero := proto.Uint32(0)
	if g.Uid == nil {
		g.Uid, g.Gid = zero, zero
	}
	if len(chunks) > 0 {
		g.Chunks = proto.Bool(true)
	}
	stamp := &img_time.Timeval{TvSec: proto.Uint64(1000000000), TvUsec: proto.Uint64(5)}
	g.Atim, g.Mtim = stamp, stamp
	out, err := image.Create(s.Source.(memorySet), image.GhostFile, uint64(id))
	if err != nil {
		t.Fatal(err)
	}
	if err := out.Entry(g); err != nil {
		t.Fatal(err)
	}
	for _, c := range chunks {
		if err := out.Entry(&ghost_file.GhostChunkEntry{Off: &c[0], Len: &c[1]}); err != nil {
			t.Fatal(err)
		}
		if err := out.Payload(strings.NewReader(strings.Repeat("x", int(c[1])))); err != nil {
			t.Fatal(err)
		}
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// named is a file with a name, remapped.
func named(s *Set, id int, name string, flags int, typ remap_file_path.RemapType, remap uint32) *fdinfo.FileEntry {
	e := null(id, flags, 0)
	e.Reg = &regfile.RegFileEntry{Id: e.Id, Name: proto.String(name), Flags: e.Reg.Flags, Pos: e.Reg.Pos, Fown: e.Reg.Fown}
	s.Files[uint32(id)] = e
	if remap != 0 {
		s.Remaps[uint32(id)] = &remap_file_path.RemapFilePathEntry{OrigId: e.Id, RemapId: &remap, RemapType: typ.Enum()}
	}
	return e
}

// noTrack keeps no journal, but counts what is still noted.
type noTrack map[string]bool

func (n noTrack) track(t Trace) (func(), error) {
	n[t.Path] = true
	return func() { delete(n, t.Path) }, nil
}

// prepare opens all files of a set and returns the tool's handles by id.
func prepare(t *testing.T, s *Set) map[uint32]*Named {
	t.Helper()
	p := NewPaths(s, &FileOptions{ToolPID: os.Getpid()})
	all := map[uint32]*Named{}
	for id := uint32(1); id <= uint32(len(s.Files)); id++ {
		if s.Remaps[id] == nil {
			continue
		}
		n, err := p.Get(id)
		if err != nil {
			t.Fatal(err)
		}
		all[id] = n
	}
	noted := noTrack{}
	if err := p.Prepare(context.Background(), noted.track); err != nil {
		t.Fatal(err)
	}
	if len(noted) != 0 {
		t.Errorf("names are still in the journal: %v", noted)
	}
	t.Cleanup(p.Close)
	return all
}

const ghostType, linkType = remap_file_path.RemapType_GHOST, remap_file_path.RemapType_LINKED

// TestGhosts: deleted files of every kind come back with name, content, holes, owner, mode and times, and no directory
// shows anything of them afterwards.
func TestGhosts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to make devices and to give files away")
	}
	dir := t.TempDir()
	s := fdSet(t, nil, "")
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.WriteFile(at("taken"), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	putGhost(t, s, 1, &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFREG | 0o4640), Uid: proto.Uint32(7), Gid: proto.Uint32(8),
		Size: proto.Uint64(1 << 30)}, [2]uint64{1 << 20, 5000}, [2]uint64{1 << 29, 1})
	putGhost(t, s, 2, &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFREG | 0o600), Size: proto.Uint64(3)}, [2]uint64{0, 3})
	putGhost(t, s, 3, &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFDIR | 0o751)})
	putGhost(t, s, 4, &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFIFO | 0o622)})
	putGhost(t, s, 5, &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFLNK | 0o777), SymlnkTarget: proto.String("nowhere")})
	putGhost(t, s, 6, &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFCHR | 0o600), Rdev: proto.Uint32(uint32(unix.Mkdev(1, 3)))})
	named(s, 1, at("big"), unix.O_RDWR, ghostType, 1)
	named(s, 2, at("other name"), unix.O_RDONLY, ghostType, 1)
	named(s, 3, at("big"), unix.O_RDWR, ghostType, 2) // the same name, later
	named(s, 4, at("gone/too/dir"), unix.O_RDONLY|unix.O_DIRECTORY, ghostType, 3)
	named(s, 5, at("fifo"), unix.O_RDWR, ghostType, 4)
	named(s, 6, at("link"), unix.O_PATH|unix.O_NOFOLLOW, ghostType, 5)
	named(s, 7, at("null"), unix.O_RDWR, ghostType, 6)
	named(s, 8, at("taken"), unix.O_RDWR, ghostType, 2)
	all := prepare(t, s)

	names := map[uint32]string{1: "big", 2: "other name", 3: "big", 4: "gone/too/dir", 5: "fifo", 6: "link", 7: "null", 8: "taken.cr_link"}
	for id, want := range names {
		have, err := os.Readlink(link(all[id].held))
		if err != nil || have != at(want)+" (deleted)" {
			t.Errorf("file %d is %q, wanted %q (%v)", id, have, at(want)+" (deleted)", err)
		}
	}
	stat := func(id uint32) (st unix.Stat_t) {
		if err := unix.Fstat(all[id].held, &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	st := stat(1)
	if st.Mode != unix.S_IFREG|0o4640 || st.Uid != 7 || st.Gid != 8 || st.Size != 1<<30 || st.Nlink != 0 || st.Blocks*512 > 1<<20 ||
		st.Mtim.Sec != 1000000000 || st.Mtim.Nsec != 5000 {
		t.Errorf("the large file is %+v", st)
	}
	if stat(2).Ino != st.Ino || stat(8).Ino != stat(3).Ino || stat(3).Ino == st.Ino {
		t.Error("not one inode for all names of a file")
	}
	f, err := os.Open(link(all[2].held))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 5002)
	if _, err := f.ReadAt(b, 1<<20-1); err != nil || string(b) != "\x00"+strings.Repeat("x", 5000)+"\x00" {
		t.Errorf("content is wrong (%v)", err)
	}
	if m := stat(4).Mode; m != unix.S_IFDIR|0o751 {
		t.Errorf("the directory has mode %#o", m)
	}
	if m := stat(5).Mode; m != unix.S_IFIFO|0o622 {
		t.Errorf("the fifo has mode %#o", m)
	}
	if st := stat(7); st.Mode != unix.S_IFCHR|0o600 || st.Rdev != unix.Mkdev(1, 3) {
		t.Errorf("the device is %+v", st)
	}
	buf := make([]byte, 100)
	if n, err := unix.Readlinkat(all[6].held, "", buf); err != nil || string(buf[:n]) != "nowhere" {
		t.Errorf("the link leads to %q (%v)", buf[:max(n, 0)], err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 || left[0].Name() != "taken" {
		t.Errorf("the directory holds %v (%v)", left, err)
	}
}

// TestLinks: a file that had lost a name, but not all, gets it for a moment from the link the dump left.
func TestLinks(t *testing.T) {
	dir := t.TempDir()
	s := fdSet(t, nil, "")
	link1 := filepath.Join(dir, "link_remap.9")
	if err := os.WriteFile(link1, []byte("still here"), 0o600); err != nil {
		t.Fatal(err)
	}
	named(s, 9, link1, 0, linkType, 0)
	named(s, 1, filepath.Join(dir, "old"), unix.O_RDONLY, linkType, 9)
	named(s, 2, filepath.Join(dir, "old"), unix.O_RDONLY, linkType, 9)
	all := prepare(t, s)
	for id := range all {
		if have, _ := os.Readlink(link(all[id].held)); have != filepath.Join(dir, "old")+" (deleted)" {
			t.Errorf("file %d is %q", id, have)
		}
	}
	if links := all[1].paths.Links(); len(links) != 1 || links[0] != link1 {
		t.Errorf("links to remove are %v", links)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("the directory holds %v", left)
	}
}

// TestBadGhosts: what an image of a deleted file says of itself is not believed.
func TestBadGhosts(t *testing.T) {
	dir := t.TempDir()
	reg := proto.Uint32(unix.S_IFREG | 0o600)
	for _, c := range []struct {
		name   string
		head   *ghost_file.GhostFileEntry
		chunks [][2]uint64
		want   string
	}{
		{"mode", &ghost_file.GhostFileEntry{Mode: proto.Uint32(0o600)}, nil, "is no kind of file"},
		{"size", &ghost_file.GhostFileEntry{Mode: reg, Size: proto.Uint64(1 << 63)}, nil, "is no size of a file"},
		{"link", &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFLNK), SymlnkTarget: proto.String("a\x00b")}, nil, "is no target of a link"},
		{"past the end", &ghost_file.GhostFileEntry{Mode: reg, Size: proto.Uint64(4)}, [][2]uint64{{0, 5}}, "does not fit into a file of 4"},
		{"overflow", &ghost_file.GhostFileEntry{Mode: reg, Size: proto.Uint64(4)}, [][2]uint64{{1<<64 - 1, 2}}, "does not fit into a file of 4"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := fdSet(t, nil, "")
			putGhost(t, s, 1, c.head, c.chunks...)
			named(s, 1, filepath.Join(dir, "f"), 0, ghostType, 1)
			p := NewPaths(s, &FileOptions{})
			_, err := p.Get(1)
			if err == nil {
				err = p.Prepare(context.Background(), noTrack{}.track)
			}
			p.Close()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, where %q was expected", err, c.want)
			}
		})
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("the directory holds %v", left)
	}
}

// TestGhostsLeaveNothing: wherever the making of names breaks off, what was noted removes them all.
func TestGhostsLeaveNothing(t *testing.T) {
	for stop := range 5 {
		dir := t.TempDir()
		s := fdSet(t, nil, "")
		putGhost(t, s, 1, &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFREG | 0o600), Size: proto.Uint64(3)}, [2]uint64{0, 3})
		putGhost(t, s, 2, &ghost_file.GhostFileEntry{Mode: proto.Uint32(unix.S_IFDIR | 0o700)})
		named(s, 1, filepath.Join(dir, "a", "b", "c"), 0, ghostType, 1)
		named(s, 2, filepath.Join(dir, "d"), 0, ghostType, 2)
		p := NewPaths(s, &FileOptions{})
		for id := range uint32(2) {
			if err := p.Check(id + 1); err != nil {
				t.Fatal(err)
			}
		}
		enough := errors.New("enough")
		var undo []func() error
		n := 0
		err := p.Prepare(context.Background(), func(tr Trace) (func(), error) {
			undo = append(undo, tr.Remove)
			if n++; n > stop {
				return func() {}, enough
			}
			return func() {}, nil
		})
		if n > stop && !errors.Is(err, enough) {
			t.Errorf("%d: %v", stop, err)
		}
		for i := range undo {
			if err := undo[len(undo)-1-i](); err != nil {
				t.Errorf("%d: %v", stop, err)
			}
		}
		p.Close()
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%d: the directory holds %v", stop, left)
		}
	}
}

// TestPlantedLink: a link on the way is followed only if root made it.
func TestPlantedLink(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give a link away")
	}
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "new"), 0o755), os.WriteFile(filepath.Join(dir, "new", "f"), nil, 0o600),
		os.Symlink("new", filepath.Join(dir, "old"))); err != nil {
		t.Fatal(err)
	}
	s := fdSet(t, nil, "")
	named(s, 1, filepath.Join(dir, "old", "f"), 0, linkType, 0)
	n, err := NewPaths(s, &FileOptions{}).Get(1)
	if err != nil || n.path != filepath.Join(dir, "new", "f") {
		t.Errorf("%+v, %v", n, err)
	}
	if err := os.Lchown(filepath.Join(dir, "old"), 500, 500); err != nil {
		t.Fatal(err)
	}
	if _, err := NewPaths(s, &FileOptions{}).Get(1); err == nil || !strings.Contains(err.Error(), "symbolic link of user 500") {
		t.Errorf("a planted link was followed: %v", err)
	}
}
