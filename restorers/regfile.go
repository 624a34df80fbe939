package restorers

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"cryo/internal/buildid"
	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	"golang.org/x/sys/unix"
)

// FileOptions are the choices of a user about files.
type FileOptions struct {
	SizeOnly     bool // recognise files by size alone, not by build id
	SkipModeBits bool // accept files whose permission bits changed
}

// Paths leads from files of the set to names, and makes sure that what is behind a name is what the dump saw.
type Paths struct {
	set     *Set
	opt     *FileOptions
	checked map[uint32]string // names that have been found good, by file id
	made    map[uint32]string // names that Remaps has made for files without one
}

// NewPaths starts with no file looked at.
func NewPaths(s *Set, opt *FileOptions) *Paths {
	return &Paths{set: s, opt: opt, checked: map[uint32]string{}, made: map[uint32]string{}}
}

// Reg returns the regular file with this id.
func (p *Paths) Reg(id uint32) (*regfile.RegFileEntry, error) {
	e := p.set.Files[id]
	if e == nil || e.GetType() != fdinfo.FdTypes_REG || e.GetReg() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d is no file with a path", id)
	}
	return e.GetReg(), nil
}

// Check makes sure that the file can be opened by its name and is the one of the dump. It opens nothing with a side
// effect. Files that a remap makes are not looked at.
func (p *Paths) Check(id uint32) error {
	if _, done := p.checked[id]; done || p.set.Remaps[id] != nil {
		return nil
	}
	r, err := p.Reg(id)
	if err != nil {
		return err
	}
	if !strings.HasPrefix(r.GetName(), "/") || strings.ContainsRune(r.GetName(), 0) {
		return image.Errorf(image.Files.File(0), -1, "id %d has the name %q, which is no absolute path", id, r.GetName())
	}
	if err := p.verify(r); err != nil {
		return err
	}
	p.checked[id] = r.GetName()
	return nil
}

func (p *Paths) verify(r *regfile.RegFileEntry) error {
	if procPath(r.GetName()) {
		return nil // of a task that is not there yet
	}
	flags := unix.O_PATH | unix.O_CLOEXEC
	if r.GetMode()&unix.S_IFMT == unix.S_IFLNK {
		flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Open(r.GetName(), flags, 0)
	if err != nil {
		return &os.PathError{Op: "file of the set: open", Path: r.GetName(), Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: r.GetName(), Err: err}
	}
	if r.Mode != nil {
		have, want := st.Mode, r.GetMode()
		if p.opt.SkipModeBits {
			have, want = have&^0o777, want&^0o777
		}
		if have != want {
			return fmt.Errorf("file %s has mode %#o where the dump saw %#o: it has changed since", r.GetName(), st.Mode, r.GetMode())
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && r.Size != nil && uint64(st.Size) != r.GetSize() {
		return fmt.Errorf("file %s has %d bytes where the dump saw %d: it has changed since", r.GetName(), st.Size, r.GetSize())
	}
	return p.verifyBuildID(r, fd, &st)
}

func (p *Paths) verifyBuildID(r *regfile.RegFileEntry, fd int, st *unix.Stat_t) error {
	if p.opt.SizeOnly || len(r.GetBuildId()) == 0 || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	f, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // not ours to read: the size has to do
	}
	defer unix.Close(f)
	if have := buildid.Words(f, st.Size); !slices.Equal(have, r.GetBuildId()) {
		return fmt.Errorf("file %s has build id %x where the dump saw %x: it is another version of it", r.GetName(), have, r.GetBuildId())
	}
	return nil
}

// procPath says whether a name belongs to /proc.
func procPath(name string) bool { return strings.HasPrefix(name, "/proc/") }

// Name is what the file is opened by.
func (p *Paths) Name(id uint32) (string, error) {
	if name, ok := p.made[id]; ok {
		return name, nil
	}
	r, err := p.Reg(id)
	return r.GetName(), err
}

// oTmpfile is what O_TMPFILE adds to O_DIRECTORY.
const oTmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY

// openFlags are the flags to open a file with so that it has those of the set. What open takes as a request is left out.
func openFlags(set uint32) int {
	f := int(set) &^ (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_ASYNC)
	if f&oTmpfile != 0 {
		f &^= unix.O_TMPFILE
	}
	return f | unix.O_CLOEXEC | unix.O_NOCTTY
}

// EmitOpen opens a file of the set by its name.
func (p *Paths) EmitOpen(b *remote.Builder, id uint32, flags uint32) (remote.Arg, error) {
	name, err := p.Name(id)
	if err != nil {
		return nil, err
	}
	return b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), b.String(name), remote.Imm(openFlags(flags)), remote.Imm(0)).Must(), nil
}

// RegFile restores files that have a name: regular ones, directories, devices, files of /proc.
type RegFile struct{}

// Plan makes sure that the file is there and unchanged.
func (RegFile) Plan(e *fdinfo.FileEntry, p *FilePlanner) (Object, error) {
	if e.GetReg() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d has no reg", e.GetId())
	}
	if err := p.paths.Check(e.GetId()); err != nil {
		return nil, err
	}
	return &regFile{e.GetReg(), p.paths}, nil
}

type regFile struct {
	e     *regfile.RegFileEntry
	paths *Paths
}

func (r *regFile) Emit(lv Level, b *remote.Builder, s *Slots) error {
	if lv != Open {
		return nil
	}
	fd, err := r.paths.EmitOpen(b, r.e.GetId(), r.e.GetFlags())
	if err != nil {
		return err
	}
	if pos := r.e.GetPos(); pos != 0 && int64(pos) != -1 && r.e.GetFlags()&unix.O_PATH == 0 {
		b.Call(unix.SYS_LSEEK, fd, remote.Imm(pos), remote.Imm(unix.SEEK_SET)).Must().Discard()
	}
	s.Place(b, r.e.GetId(), fd)
	return nil
}

// errNoFile is for files that are named by tasks without a descriptor.
var errNoFile = errors.New("it is no file of the set")

// CheckNamed checks the files a task names otherwise than by descriptors.
func (p *Paths) CheckNamed(t *Task, l *Layout) error {
	for what, id := range map[string]uint32{"exe": t.MM.GetExeFileId(), "cwd": t.FS.GetCwdId(), "root": t.FS.GetRootId()} {
		if p.set.Files[id] == nil {
			return fmt.Errorf("%s: %s has id %d: %w", t, what, id, errNoFile)
		}
		if err := p.Check(id); err != nil {
			return fmt.Errorf("%s: %s: %w", t, what, err)
		}
	}
	for _, a := range l.Areas {
		if !a.File() {
			continue
		}
		if a.Object > 1<<32-1 || p.set.Files[uint32(a.Object)] == nil {
			return fmt.Errorf("%s: %s has id %d: %w", t, a, a.Object, errNoFile)
		}
		if p.set.Files[uint32(a.Object)].GetType() != fdinfo.FdTypes_REG {
			continue
		}
		if err := p.Check(uint32(a.Object)); err != nil {
			return fmt.Errorf("%s: %s: %w", t, a, err)
		}
	}
	return nil
}
