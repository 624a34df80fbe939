package restorers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cryo/internal/ptrace"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"golang.org/x/sys/unix"
)

// realTasks are tasks with nothing in them but the interpreter, to run programs of the plan in.
type realTasks struct {
	tracer   *ptrace.Tracer
	sessions []*remote.Session
}

// spawnTasks makes a task and its children, n in all.
func spawnTasks(t *testing.T, n int) *realTasks {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to choose what another task opens")
	}
	r := &realTasks{tracer: ptrace.NewTracer()}
	t.Cleanup(r.tracer.Close) // tasks die with their tracer
	err := r.tracer.Do(func() error {
		hole := remote.Area{Start: 0x10000, Size: remote.HoleSize(1, 0)}
		root, err := remote.Spawn(remote.SpawnOptions{Hole: hole})
		if err != nil {
			return err
		}
		r.sessions = append(r.sessions, root)
		children := make([]remote.Child, n-1)
		if n == 1 {
			return nil
		}
		more, err := root.CloneAll(children)
		r.sessions = append(r.sessions, more...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *realTasks) pid(i int) int { return r.sessions[i].Leader().Thread().TID }

// restore runs all levels of a plan whose tables are those of the tasks in order.
func (r *realTasks) restore(t *testing.T, p *FilePlan) {
	t.Helper()
	for lv := Open; lv <= Own; lv++ {
		for i, tab := range p.Tables {
			b := remote.NewBuilder("files: " + lv.String())
			if err := p.EmitLevel(lv, tab, b); err != nil {
				t.Fatal(err)
			}
			prog := b.Program()
			err := r.tracer.Do(func() error {
				_, err := r.sessions[i].Run(prog)
				return err
			})
			if err != nil {
				t.Fatalf("%v: %v\n%s", lv, err, prog)
			}
		}
		if err := p.After(context.Background(), lv, func(tab *Table) int { return tab.Node.ID }); err != nil {
			t.Fatal(err)
		}
	}
}

// place gives the tasks of a set the pids that the real ones have.
func (r *realTasks) place(s *Set) {
	s.ByPID = map[int]*Task{}
	root := r.pid(0)
	for i, task := range s.Tasks {
		task.PID, task.PGID, task.SID = r.pid(i), root, root
		task.Threads[0].TID = task.PID
		if i > 0 {
			task.PPID = root
		}
		s.ByPID[task.PID] = task
	}
}

// TestRandomTables makes random tables of shared files in real tasks and compares: the numbers, which of them are the
// same open file, close-on-exec, the flags, and which ends belong to one pipe.
func TestRandomTables(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 7))
			files, tables := randomTables(rnd)
			s := fdSet(t, files, tables...)
			r := spawnTasks(t, len(tables))
			r.place(s)
			p, err := planFDs(t, s, &FileOptions{})
			if err != nil {
				t.Fatal(err)
			}
			r.restore(t, p)
			compareTables(t, s)
		})
	}
}

// randomTables are one to four tables over files of all kinds that need no name of their own.
func randomTables(rnd *rand.Rand) (files []*fdinfo.FileEntry, tables []string) {
	for id := 1; id <= 4+rnd.IntN(20); id++ {
		switch rnd.IntN(5) {
		case 0:
			files = append(files, null(id, unix.O_RDWR|[]int{0, unix.O_APPEND, unix.O_NONBLOCK}[rnd.IntN(3)], 0))
		case 1:
			files = append(files, eventFile(id, uint64(rnd.IntN(9))))
		default:
			flags := []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR}[rnd.IntN(3)] | []int{0, unix.O_NONBLOCK}[rnd.IntN(2)]
			files = append(files, pipeFile(id, 1+rnd.IntN(4), flags))
		}
	}
	width := len(files) + rnd.IntN(30)
	for range 1 + rnd.IntN(4) {
		var text []string
		for _, n := range rnd.Perm(width)[:rnd.IntN(width)] {
			d := fmt.Sprintf("%d=%d", n, 1+rnd.IntN(len(files)))
			if rnd.IntN(3) == 0 {
				d += "c"
			}
			text = append(text, d)
		}
		tables = append(tables, strings.Join(text, " "))
	}
	return files, tables
}

func compareTables(t *testing.T, s *Set) {
	t.Helper()
	type place struct{ pid, fd int }
	first := map[uint32]place{}
	pipes := map[uint32]string{}
	for _, task := range s.Tasks {
		var have []int
		dir, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", task.PID))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range dir {
			n, _ := strconv.Atoi(e.Name())
			have = append(have, n)
		}
		var want []int
		for _, d := range task.FDs {
			want = append(want, int(d.GetFd()))
		}
		slices.Sort(have)
		slices.Sort(want)
		if !slices.Equal(have, want) {
			t.Fatalf("task %d has descriptors %v, wanted %v", task.PID, have, want)
		}
		for _, d := range task.FDs {
			at := place{task.PID, int(d.GetFd())}
			if f, ok := first[d.GetId()]; !ok {
				first[d.GetId()] = at
			} else if !sameFile(t, f.pid, f.fd, at.pid, at.fd) {
				t.Errorf("file %d is not the same at %v and %v", d.GetId(), f, at)
			}
			e := s.Files[d.GetId()]
			flags := infoFlags(t, at.pid, at.fd)
			if want := d.GetFlags() != 0; (flags&unix.O_CLOEXEC != 0) != want {
				t.Errorf("%v: close-on-exec is not %v", at, want)
			}
			const state = unix.O_ACCMODE | unix.O_APPEND | unix.O_NONBLOCK
			if want := int(flagsOf(e)) & state; flags&state != want {
				t.Errorf("%v: flags %#o, wanted %#o", at, flags&state, want)
			}
			link, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", at.pid, at.fd))
			if n := e.GetPipe().GetPipeId(); n != 0 && pipes[n] == "" {
				pipes[n] = link
			} else if n != 0 && pipes[n] != link {
				t.Errorf("%v is %s, the pipe is %s", at, link, pipes[n])
			}
		}
	}
	for a, pa := range first {
		for b, pb := range first {
			if a < b && sameFile(t, pa.pid, pa.fd, pb.pid, pb.fd) {
				t.Errorf("files %d and %d are one", a, b)
			}
		}
	}
	seen := map[string]bool{}
	for _, link := range pipes {
		if seen[link] {
			t.Errorf("two pipes are %s", link)
		}
		seen[link] = true
	}
}

func sameFile(t *testing.T, pid1, fd1, pid2, fd2 int) bool {
	t.Helper()
	r, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), 0, uintptr(fd1), uintptr(fd2), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return r == 0
}

func infoFlags(t *testing.T, pid, fd int) int {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "fdinfo", strconv.Itoa(fd)))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "flags:\t")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.ParseInt(line, 8, 64)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}
