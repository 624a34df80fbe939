package restorers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"cryo/internal/buildid"
	"cryo/internal/image"
	"cryo/internal/options"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"golang.org/x/sys/unix"
)

// FileOptions are the choices of a user about files, and what the tool may do.
type FileOptions struct {
	SizeOnly     bool                // recognise files by size alone, not by build id
	SkipModeBits bool                // accept files whose permission bits changed
	Inherit      []options.InheritFD // descriptors of the tool that stand for objects of the set
	ToolPID      int                 // the tool's pid, as /proc calls it
	Lender       int                 // a process with the tool's descriptors, by its pid in the tree's namespace
	ExtUnixSk    bool                // unix sockets are connected by name to those that stayed outside
	ShellJob     bool                // terminals whose other end stayed outside become the tool's own
	Terminal     int                 // the tool's terminal; -1: it has none
	// PtyMaster takes the new master of a terminal whose old one stayed outside; nil: nobody does.
	PtyMaster func(context.Context, *os.File) error
	Limits    Limits
	Tree      *Tree
	Memfds    *Memfds

	TCPEstablished, TCPClose bool // restore TCP connections, or restore them closed
}

// Paths leads from the files of a set that are opened by name to what is there now, and makes sure that it is what the
// dump saw. Nothing is opened with a side effect before.
type Paths struct {
	set   *Set
	opt   *FileOptions
	named map[uint32]*Named
	found map[string]*found // by name in the set; nil where links are not followed yet
	dead  map[int]bool
	order []*Named

	ghosts []*ghost
	links  []string // what the dump linked beside deleted names
	fds    []int    // the tool's, for files without a name
}

// NewPaths starts with no file looked at.
func NewPaths(s *Set, opt *FileOptions) *Paths {
	p := &Paths{set: s, opt: opt, named: make(map[uint32]*Named, len(s.Files)), found: map[string]*found{}, dead: map[int]bool{}}
	for _, pid := range DeadPIDs(s) {
		p.dead[pid] = true
	}
	return p
}

// Named is a file of the set that is opened by a name: for a descriptor, a mapping, as executable, working or root
// directory.
type Named struct {
	Entry *regfile.RegFileEntry

	paths   *Paths
	path    string // free of links
	found   *found // what is there now; nil for what is yet to be made
	held    int    // descriptor of the tool with the file (O_PATH, or inherited); -1: none
	handout bool   // held itself is what the task gets, not the file opened anew
}

// DeadPIDs lists pids that have to be there while files are opened: processes that had ended, but whose /proc files
// were open, and those outside of the tree that have ended since.
func DeadPIDs(s *Set) []int {
	pids := gone(s)
	for _, m := range s.Remaps {
		pid := int(m.GetRemapId())
		if m.GetRemapType() == remap_file_path.RemapType_PROCFS && s.ByPID[pid] == nil && pid > 0 && pid <= maxPID {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

// gone lists processes that are not in the set and not here, but whose /proc files are in the set.
func gone(s *Set) (pids []int) {
	looked := map[int]bool{}
	if s.OwnPIDNS() {
		return nil // where nobody else is
	}
	for _, f := range s.Files {
		pid, ok := procPID(f.GetReg().GetName())
		if !ok || pid <= 0 || pid > maxPID || s.ByPID[pid] != nil || looked[pid] {
			continue
		}
		looked[pid] = true
		if err := unix.Access("/proc/"+strconv.Itoa(pid), unix.F_OK); errors.Is(err, unix.ENOENT) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// procPID is the process whose /proc directory a name is in, or of.
func procPID(name string) (pid int, ok bool) {
	rest, ok := strings.CutPrefix(name, "/proc/")
	if !ok {
		return 0, false
	}
	first, _, _ := strings.Cut(rest, "/")
	pid, err := strconv.Atoi(first)
	return pid, err == nil
}

// hostName is the name of a file as tasks open it: those of the tree that has been made have other ids in /proc than in images
// if the pid namespace is their own.
func (p *Paths) hostName(name string) string {
	pid, ok := procPID(name)
	if !ok || !p.set.OwnPIDNS() || p.opt.Tree.Host(pid) == 0 {
		return name
	}
	parts := strings.Split(name, "/") // "", proc, PID, task, TID ...
	host := strconv.Itoa(p.opt.Tree.Host(pid))
	if len(parts) > 4 && parts[3] == "task" && parts[4] == parts[2] {
		parts[4] = host
	}
	parts[2] = host
	return strings.Join(parts, "/")
}

// Get finds the file with this id and checks it, once.
func (p *Paths) Get(id uint32) (*Named, error) {
	if n, ok := p.named[id]; ok {
		return n, nil
	}
	e := p.set.Files[id]
	if e.GetReg() == nil {
		return nil, image.Errorf(image.Files.File(0), -1, "id %d is no file with a path", id)
	}
	n := &Named{Entry: e.GetReg(), paths: p, held: -1}
	if err := p.find(id, n); err != nil {
		return nil, err
	}
	p.named[id] = n
	p.order = append(p.order, n)
	return n, nil
}

// Check makes sure that the file with this id can be opened and is the one of the dump.
func (p *Paths) Check(id uint32) error {
	_, err := p.Get(id)
	return err
}

func (p *Paths) find(id uint32, n *Named) error {
	r := n.Entry
	if fd, ok := p.inherited(r.GetName()); ok {
		n.held, n.handout = fd, !r.GetExt()
		return nil
	}
	if r.GetExt() {
		return fmt.Errorf("%s stayed outside of the dump: hand it in with --inherit-fd fd[N]:%[1]s", r.GetName())
	}
	if !path.IsAbs(r.GetName()) || strings.ContainsRune(r.GetName(), 0) || len(r.GetName()) >= unix.PathMax {
		return image.Errorf(image.Files.File(0), -1, "id %d: the name %.100q is no absolute path", id, r.GetName())
	}
	if pos := r.GetPos(); int64(pos) < -1 {
		return image.Errorf(image.Files.File(0), -1, "id %d: pos %d is no position in a file", id, pos)
	}
	n.path = path.Clean(r.GetName())
	if m := p.set.Remaps[id]; m != nil {
		if done, err := p.remapped(n, m); done || err != nil {
			return err
		}
	}
	if p.unborn(n.path) {
		return nil
	}
	if pid, ok := procPID(n.path); ok && p.set.OwnPIDNS() {
		return fmt.Errorf("%s belongs to process %d, which is not in the set", n.path, pid)
	}
	f, err := p.locate(n.path, r)
	if err != nil {
		return err
	}
	n.path, n.found = f.path, f
	return p.verify(r, f)
}

// inherited finds the descriptor of the tool that stands for a file. Users leave out the slash in front, as criu does.
func (p *Paths) inherited(name string) (int, bool) {
	key := strings.TrimPrefix(name, "/")
	for _, i := range p.opt.Inherit {
		if strings.TrimPrefix(i.Key, "/") == key {
			return i.FD, true
		}
	}
	return -1, false
}

// unborn says whether a name belongs to the /proc directory of a task that is yet to be made.
func (p *Paths) unborn(name string) bool {
	pid, ok := procPID(name)
	return ok && (p.set.ByPID[pid] != nil || p.dead[pid])
}

// found is what a name leads to now.
type found struct {
	path string // free of links
	st   unix.Stat_t

	buildID  []uint32 // read on first use
	gotBuild bool
}

// locate looks a name up. A name the kernel printed holds no links. One on the way is followed all the same, because
// directories do move, but only if root owns it: any other user could have planted it to get at somebody else's file.
func (p *Paths) locate(name string, r *regfile.RegFileEntry) (*found, error) {
	if f := p.found[name]; f != nil {
		return f, nil
	}
	f := &found{path: name}
	link := r.GetMode()&unix.S_IFMT == unix.S_IFLNK || r.Mode == nil && r.GetFlags()&unix.O_NOFOLLOW != 0
	err := f.stat(link)
	if errors.Is(err, unix.ELOOP) {
		if f.path, err = followTrusted(name, link); err == nil {
			err = f.stat(link)
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("file %s of the set is not here any more", name)
	}
	if err != nil {
		return nil, &os.PathError{Op: "look up", Path: name, Err: err}
	}
	p.found[name] = f
	return f, nil
}

// stat opens the path without links (openat2, Linux 5.6) as a mere handle and says what it is.
func (f *found) stat(link bool) error {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	if link {
		how.Flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, f.path, &how)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fstat(fd, &f.st)
}

// followTrusted resolves the links in a path, if root owns all of them. With last, a link at the end is what is wanted.
func followTrusted(name string, last bool) (string, error) {
	const maxLinks = 40 // as the kernel
	done, rest := "/", strings.Split(name, "/")
	for links := 0; len(rest) > 0; {
		next := path.Join(done, rest[0])
		rest = rest[1:]
		var st unix.Stat_t
		if err := unix.Lstat(next, &st); err != nil {
			return "", err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK || last && len(rest) == 0 {
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", unix.ELOOP
		}
		if st.Uid != 0 {
			return "", fmt.Errorf("%s has become a symbolic link of user %d, who could lead the restore anywhere", next, st.Uid)
		}
		to, err := os.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(to) {
			done = "/"
		}
		rest = append(strings.Split(path.Clean(to), "/"), rest...)
	}
	return done, nil
}

// verify compares what is there with what the dump saw.
func (p *Paths) verify(r *regfile.RegFileEntry, f *found) error {
	name := r.GetName()
	if r.Mode != nil && f.st.Mode != r.GetMode() {
		if (f.st.Mode^r.GetMode())&unix.S_IFMT != 0 {
			return fmt.Errorf("file %s has changed: it was %s, it is %s", name, typeName(r.GetMode()), typeName(f.st.Mode))
		}
		if !p.opt.SkipModeBits || (f.st.Mode^r.GetMode())&^0o777 != 0 {
			return fmt.Errorf("file %s has changed: its mode was %#o, it is %#o (other rwx bits are accepted with --skip-file-rwx-check)",
				name, r.GetMode()&^unix.S_IFMT, f.st.Mode&^unix.S_IFMT)
		}
	}
	if r.Size == nil {
		return nil
	}
	if uint64(f.st.Size) != r.GetSize() {
		return fmt.Errorf("file %s has changed: its size was %d, it is %d", name, r.GetSize(), f.st.Size)
	}
	if p.opt.SizeOnly || len(r.GetBuildId()) == 0 || f.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	if have := f.build(); have != nil && !slices.Equal(have, r.GetBuildId()) {
		return fmt.Errorf("file %s has changed: its build id was %s, it is %s", name, hexWords(r.GetBuildId()), hexWords(have))
	}
	return nil
}

// build is the build id of an ELF file, nil for others and for those that cannot be read: their size has to do.
func (f *found) build() []uint32 {
	if f.gotBuild {
		return f.buildID
	}
	f.gotBuild = true
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, f.path, &how)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	f.buildID = buildid.Words(fd, f.st.Size)
	return f.buildID
}

func hexWords(w []uint32) string { return fmt.Sprintf("%x", words32(w)) }

func typeName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "a regular file"
	case unix.S_IFDIR:
		return "a directory"
	case unix.S_IFLNK:
		return "a symbolic link"
	case unix.S_IFIFO:
		return "a fifo"
	case unix.S_IFSOCK:
		return "a socket"
	case unix.S_IFCHR:
		return "a character device"
	case unix.S_IFBLK:
		return "a block device"
	}
	return fmt.Sprintf("of mode %#o", mode)
}

// oTmpfile is what O_TMPFILE adds to O_DIRECTORY.
const oTmpfile = unix.O_TMPFILE &^ unix.O_DIRECTORY

// openFlags are the flags to open a file with so that it has those of the set. What is a request to open and no state
// of the file, and what openat2 does not know, is left out.
func openFlags(set uint32) int {
	const keep = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK | unix.O_SYNC | unix.O_DSYNC | unix.O_DIRECT | unix.O_LARGEFILE |
		unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_NOATIME | unix.O_PATH
	f := int(set)
	if f&oTmpfile != 0 {
		f &^= unix.O_TMPFILE
	}
	if f&unix.O_PATH != 0 {
		return f & (unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW)
	}
	return f&keep | unix.O_NOCTTY
}

// Emit opens the file: the call, whose result is the lowest free number. flags are those of open(2).
func (n *Named) Emit(b *remote.Builder, flags int) remote.Op { return n.emit(newPool(b), flags) }

func (n *Named) emit(p *pool, flags int) remote.Op {
	if n.held >= 0 {
		// Through the link of the tool's descriptor: a link at the end is what is followed here.
		link := fmt.Sprintf("/proc/%d/fd/%d", n.paths.opt.ToolPID, n.held)
		return p.b.Call(unix.SYS_OPENAT, remote.Imm(unix.AT_FDCWD), p.path(link), remote.Imm(flags&^unix.O_NOFOLLOW), remote.Imm(0)).Must()
	}
	return p.b.Call(unix.SYS_OPENAT2, remote.Imm(unix.AT_FDCWD), p.path(n.paths.hostName(n.path)), p.how(flags), remote.Imm(unix.SizeofOpenHow)).Must()
}

// EmitOpen opens the file with this id in a program, close-on-exec and with the flags of the set.
func (p *Paths) EmitOpen(b *remote.Builder, id uint32, flags uint32) (remote.Arg, error) {
	n, err := p.Get(id)
	if err != nil {
		return nil, err
	}
	return n.Emit(b, openFlags(flags)|unix.O_CLOEXEC), nil
}

// errNoFile is for files that are named by tasks without a descriptor.
var errNoFile = errors.New("it is no file of the set")

// CheckNamed checks the files a task names otherwise than by descriptors.
func (p *Paths) CheckNamed(t *Task, l *Layout) error {
	for _, f := range []struct {
		what string
		id   uint32
	}{{"exe", t.MM.GetExeFileId()}, {"cwd", t.FS.GetCwdId()}, {"root", t.FS.GetRootId()}} {
		if p.set.Files[f.id] == nil {
			return fmt.Errorf("%s: %s has id %d: %w", t, f.what, f.id, errNoFile)
		}
		if err := p.Check(f.id); err != nil {
			return fmt.Errorf("%s: %s: %w", t, f.what, err)
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
