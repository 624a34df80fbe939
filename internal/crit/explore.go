package crit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/regfile"
	sk_unix "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-unix"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
)

// Explorers are the views of a whole set, by their names on the command line.
var Explorers = map[string]func(io.Writer, image.Source) error{
	"ps": explorer((*explore).ps), "fds": explorer((*explore).fds),
	"mems": explorer((*explore).mems), "rss": explorer((*explore).rss),
}

// explore is one look at a set.
type explore struct {
	*bufio.Writer
	src   image.Source
	files map[uint32]*fdinfo.FileEntry // files.img, read when first asked for
	regs  map[uint32]*regfile.RegFileEntry
	pipes map[uint32]*pipe.PipeEntry
	unix  map[uint32]*sk_unix.UnixSkEntry
}

func explorer(view func(*explore, []*pstree.PstreeEntry) error) func(io.Writer, image.Source) error {
	return func(w io.Writer, src image.Source) error {
		tree, err := image.ReadAll(src, image.Pstree, 0)
		if err != nil {
			return err
		}
		x := &explore{Writer: bufio.NewWriter(w), src: src}
		return errors.Join(view(x, tree), x.Flush())
	}
}

// ps shows the tree of tasks.
func (x *explore) ps(tree []*pstree.PstreeEntry) error {
	fmt.Fprintf(x, "%7s%7s%7s   %s\n", "PID", "PGID", "SID", "COMM")
	kids := map[uint32][]*pstree.PstreeEntry{}
	var root *pstree.PstreeEntry
	for _, p := range tree {
		if p.GetPpid() == 0 {
			root = p
		} else {
			kids[p.GetPpid()] = append(kids[p.GetPpid()], p)
		}
	}
	if root == nil {
		return errors.New("no task in pstree.img is the root: each has a parent")
	}
	shown := map[uint32]bool{}
	var show func(p *pstree.PstreeEntry, depth int) error
	show = func(p *pstree.PstreeEntry, depth int) error {
		if shown[p.GetPid()] {
			return fmt.Errorf("pid %d is twice in pstree.img", p.GetPid())
		}
		shown[p.GetPid()] = true
		core, err := image.Read(x.src, image.Core, uint64(p.GetPid()))
		if err != nil {
			return err
		}
		fmt.Fprintf(x, "%7d%7d%7d   %s%s\n", p.GetPid(), p.GetPgid(), p.GetSid(), strings.Repeat("    ", depth), core.GetTc().GetComm())
		for _, k := range kids[p.GetPid()] {
			if err := show(k, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return show(root, 0)
}

// fds shows the descriptors of every task, its working directory and its root.
func (x *explore) fds(tree []*pstree.PstreeEntry) error {
	for _, p := range tree {
		pid := p.GetPid()
		ids, err := image.Read(x.src, image.IDs, uint64(pid))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a zombie has nothing
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(x, "%d\n", pid)
		fds, err := image.ReadAll(x.src, image.Fdinfo, uint64(ids.GetFilesId()))
		if err != nil {
			return err
		}
		for _, fd := range fds {
			name, err := x.file(fd.GetType(), fd.GetId())
			if err != nil {
				return err
			}
			fmt.Fprintf(x, "\t%7d: %s\n", fd.GetFd(), name)
		}
		dirs, err := image.Read(x.src, image.Fs, uint64(pid))
		if err != nil {
			return err
		}
		for _, d := range []struct {
			name string
			id   uint32
		}{{"cwd", dirs.GetCwdId()}, {"root", dirs.GetRootId()}} {
			name, err := x.file(fdinfo.FdTypes_REG, d.id)
			if err != nil {
				return err
			}
			fmt.Fprintf(x, "\t%7s: %s\n", d.name, name)
		}
	}
	return nil
}

// file names the file with this id.
func (x *explore) file(typ fdinfo.FdTypes, id uint32) (string, error) {
	if x.files == nil {
		if err := x.readFiles(); err != nil {
			return "", err
		}
	}
	// Sets of criu before 3.0 have an image a type of file instead of files.img.
	f := x.files[id]
	switch typ {
	case fdinfo.FdTypes_REG:
		if r := either(f, f.GetReg(), x.regs[id]); r.GetName() != "" {
			return r.GetName(), nil
		}
		return "unknown path", nil
	case fdinfo.FdTypes_PIPE:
		if p := either(f, f.GetPipe(), x.pipes[id]); p != nil {
			return fmt.Sprintf("pipe[%d]", p.GetPipeId()), nil
		}
		return "pipe[?]", nil
	case fdinfo.FdTypes_UNIXSK:
		if u := either(f, f.GetUsk(), x.unix[id]); u != nil {
			name := quote(u.GetName())
			if name != "" {
				name = " " + name
			}
			return fmt.Sprintf("unix[%d (%d)%s]", u.GetIno(), u.GetPeer(), name), nil
		}
		return "unix[?]", nil
	case fdinfo.FdTypes_EXT:
		if r, err := image.GetIOURing(f.GetExt()); err == nil && r != nil {
			return fmt.Sprintf("io_uring[%d, %d taken, %d done]", r.SQEntries, r.SQHead, r.CQTail), nil
		}
	case image.TypeUserfaultfd:
		return fmt.Sprintf("USERFAULTFD.%d", id), nil
	}
	return fmt.Sprintf("%v.%d", typ, id), nil
}

// either is what files.img says of a file, where it has it.
func either[T any](f *fdinfo.FileEntry, inFiles, inOwn *T) *T {
	if f != nil {
		return inFiles
	}
	return inOwn
}

func (x *explore) readFiles() error {
	x.files = map[uint32]*fdinfo.FileEntry{}
	x.regs = map[uint32]*regfile.RegFileEntry{}
	x.pipes = map[uint32]*pipe.PipeEntry{}
	x.unix = map[uint32]*sk_unix.UnixSkEntry{}
	all, err := image.ReadOptional(x.src, image.Files, 0)
	for _, f := range all {
		if _, twice := x.files[f.GetId()]; !twice {
			x.files[f.GetId()] = f
		}
	}
	regs, err2 := image.ReadOptional(x.src, image.RegFiles, 0)
	for _, f := range regs {
		x.regs[f.GetId()] = f
	}
	pipes, err3 := image.ReadOptional(x.src, image.Pipes, 0)
	for _, f := range pipes {
		x.pipes[f.GetId()] = f
	}
	socks, err4 := image.ReadOptional(x.src, image.Unixsk, 0)
	for _, f := range socks {
		x.unix[f.GetId()] = f
	}
	return errors.Join(err, err2, err3, err4)
}

// Status bits of a mapping that decide how it is named.
const (
	areaRegular  = 1 << 0
	areaStack    = 1 << 1
	areaVsyscall = 1 << 2
	areaVdso     = 1 << 3
	filePrivate  = 1 << 6
	fileShared   = 1 << 7
	anonShared   = 1 << 8
	areaSysvIPC  = 1 << 10
	areaSocket   = 1 << 11

	mapGrowsDown = 0x100
)

// mems shows the mappings of every task.
func (x *explore) mems(tree []*pstree.PstreeEntry) error {
	shared := map[uint64]int{}
	number := func(id uint64) int {
		if shared[id] == 0 {
			shared[id] = len(shared) + 1
		}
		return shared[id]
	}
	for _, p := range tree {
		mm, err := image.Read(x.src, image.MM, uint64(p.GetPid()))
		if errors.Is(err, fs.ErrNotExist) {
			continue // a zombie has none
		}
		if err != nil {
			return err
		}
		exe, err := x.file(fdinfo.FdTypes_REG, mm.GetExeFileId())
		if err != nil {
			return err
		}
		fmt.Fprintf(x, "%d\n\t%-36s    %s\n", p.GetPid(), "exe", exe)
		for _, v := range mm.GetVmas() {
			name, err := x.mapping(v, number)
			if err != nil {
				return err
			}
			fmt.Fprintf(x, "\t%-36s%s%s\n", fmt.Sprintf("%08x-%08x", v.GetStart(), v.GetEnd()), protection(v.GetProt()), name)
		}
	}
	return nil
}

// mapping names what a mapping shows. number gives small numbers to shared memory objects.
func (x *explore) mapping(v *vma.VmaEntry, number func(uint64) int) (string, error) {
	st, name := v.GetStatus(), ""
	switch {
	case st&areaSysvIPC != 0:
		name = fmt.Sprintf(" ips[%x]", number(v.GetShmid()))
	case st&anonShared != 0:
		name = fmt.Sprintf(" shmem[%x]", number(v.GetShmid()))
	case st&areaSocket != 0:
		name = fmt.Sprintf(" packet[%x]", number(v.GetShmid()))
	case st&(filePrivate|fileShared) != 0:
		file, err := x.file(fdinfo.FdTypes_REG, uint32(v.GetShmid()))
		if err != nil {
			return "", err
		}
		name = " " + file
		if v.GetPgoff() != 0 {
			name += fmt.Sprintf(" + %#x", v.GetPgoff())
		}
		if st&fileShared != 0 {
			name += " (s)"
		}
	case st&areaStack != 0:
		name = " [stack]"
	case st&areaVsyscall != 0:
		name = " [vsyscall]"
	case st&areaVdso != 0:
		name = " [vdso]"
	case v.GetFlags()&mapGrowsDown != 0:
		name = " [stack?]"
	}
	if st&areaRegular == 0 {
		name += " *"
	}
	return name, nil
}

func protection(prot uint32) string {
	b := []byte("---")
	for i, c := range []byte("rwx") {
		if prot&(1<<i) != 0 {
			b[i] = c
		}
	}
	return string(b)
}

// rss shows which pages of which mappings are in the images.
func (x *explore) rss(tree []*pstree.PstreeEntry) error {
	for _, p := range tree {
		mm, err := image.Read(x.src, image.MM, uint64(p.GetPid()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		pm, err := image.ReadPagemap(x.src, image.TaskPages, uint64(p.GetPid()))
		if err != nil {
			return err
		}
		fmt.Fprintf(x, "%d\n", p.GetPid())
		err = x.runs(pm, mm.GetVmas())
		pm.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// runs goes along page map and mappings, both in ascending order.
func (x *explore) runs(pm *image.PagemapReader, vmas []*vma.VmaEntry) error {
	i, last := 0, -1
	for run, err := range pm.Runs() {
		if err != nil {
			return err
		}
		for i < len(vmas) && vmas[i].GetEnd() <= run.Addr {
			i++
		}
		var text strings.Builder
		for i < len(vmas) && vmas[i].GetStart() < run.End() {
			if v := vmas[i]; i == last {
				text.WriteString(" ~")
			} else {
				fmt.Fprintf(&text, " %08x / %-8d", v.GetStart(), (v.GetEnd()-v.GetStart())>>12)
				if v.GetStatus()&(filePrivate|fileShared) != 0 {
					file, err := x.file(fdinfo.FdTypes_REG, uint32(v.GetShmid()))
					if err != nil {
						return err
					}
					text.WriteString(" " + file)
				}
				last = i
			}
			fmt.Fprintf(&text, "\n\t%23s", "")
			i++
		}
		if text.Len() > 0 {
			i-- // the next run may be in the same mapping
		}
		fmt.Fprintf(x, "%-24s%s\n", fmt.Sprintf("\t%x / %-8d", run.Addr, run.Pages), text.String())
	}
	return nil
}
