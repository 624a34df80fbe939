package remote

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/ptrace"
)

// Envoy is a process in another pid namespace that has the descriptors of this one: tasks in there, which have no name for
// this process, fetch them from it by pidfd_getfd(2). It does nothing but sleep.
type Envoy struct {
	PID int // as this process sees it
	mem []byte
}

// SendEnvoy makes an envoy in the pid namespace that task, a child of this process, is in, with id as its pid there. It is a
// child of the calling thread, which is locked, and dies with it. Kernel 5.5.
func SendEnvoy(task, id int) (*Envoy, error) {
	b := NewBuilder("be an envoy")
	o := &SpawnOptions{TID: []int{id}}
	prepareChild(b, o)
	b.Call(unix.SYS_PRCTL, Imm(unix.PR_SET_NAME), b.String("criu-envoy")).Discard()
	sleep := b.NewLabel()
	b.Label(sleep)
	b.Call(sysPpoll, Imm(0), Imm(0), Imm(0), Imm(0), Imm(0)).Discard()
	b.Jump(sleep)
	p := b.Program()
	mem, err := unix.Mmap(-1, 0, alignUp(p.Size(), arch.BlobPage), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	copy(mem, whole(p))
	e := &Envoy{mem: mem}
	err = inPIDNS(fmt.Sprintf("/proc/%d/ns/pid", task), func() (err error) {
		e.PID, err = o.clone(unix.CLONE_VM|unix.CLONE_FILES, arch.BlobHere(), uintptr(unsafe.Pointer(&mem[0])))
		return err
	})
	if err == nil {
		return e, nil
	}
	if e.PID != 0 {
		return nil, errors.Join(err, e.Recall())
	}
	return nil, errors.Join(fmt.Errorf("make a process in the pid namespace of task %d: %w", task, err), unix.Munmap(mem))
}

// Recall ends the envoy. Call it on the thread that made it.
func (e *Envoy) Recall() error {
	return errors.Join(ptrace.Kill(e.PID), unix.Munmap(e.mem))
}

// inPIDNS calls do while what the calling thread clones is born in another pid namespace.
func inPIDNS(path string, do func() error) error {
	enter := func(path string) error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("enter pid namespace %s: %w", path, err)
		}
		return nil
	}
	if err := enter(path); err != nil {
		return err
	}
	return errors.Join(do(), enter("/proc/thread-self/ns/pid"))
}
