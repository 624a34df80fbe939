package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// again starts one test of this program once more, in a process of its own, with a variable set.
func again(test, name, value string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.timeout=0", "-test.v")
	cmd.Env = append(os.Environ(), "CRYO_BIN="+filepath.Dir(tools.Criu), name+"="+value)
	cmd.Stderr = os.Stderr
	return cmd
}

// kernelCache is where criu keeps what it has found out about the kernel, if that is a tmpfs.
const kernelCache = "/run/criu.kdat"

// keepKernelCache runs the benchmark in a mount namespace with a tmpfs at /run, where this machine has none: criu finds out
// about the kernel with every command else, which takes longer than the rest of it. It says whether it has done so.
func keepKernelCache(t *testing.T) bool {
	const inside = "CRYO_BENCH_INSIDE"
	run := filepath.Dir(kernelCache)
	if os.Getenv(inside) != "" {
		if err := unix.Mount("tmpfs", run, "tmpfs", 0, ""); err != nil {
			t.Fatalf("mount a tmpfs at %s: %v", run, err)
		}
		// What somebody left open is of the other namespace, and no program is to have it.
		unix.CloseRange(3, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC)
		return false
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(run, &fs); tools.Peer == "" || err == nil && fs.Type == unix.TMPFS_MAGIC {
		return false
	}
	cmd := again(t.Name(), inside, "1")
	cmd.Stdout, cmd.SysProcAttr = os.Stdout, &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	return true
}

// peakRSS is how much memory this process ever had, in bytes. The kernel counts it for what the process starts as well,
// up to the exec.
func peakRSS() int64 {
	var usage unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &usage)
	return usage.Maxrss << 10
}

// childrenCPU is the processor time of all children that have been waited for.
func childrenCPU() time.Duration { return rusageCPU(unix.RUSAGE_CHILDREN) }

func rusageCPU(who int) time.Duration {
	var usage unix.Rusage
	unix.Getrusage(who, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// cpuOf is the processor time of a task.
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	b, err := dir.Read("schedstat") // of its first thread
	if err != nil {
		t.Fatal(err)
	}
	ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(ns)
}

// vmspliceLimit is what it takes to hand memory to a pipe that cat reads.
type vmspliceLimit struct {
	moved time.Duration // until cat has ended
	ended time.Duration // and the memory is given back
	cpu   time.Duration // processor time of ended, but not of cat
}

// vmspliceEnv has TestVmspliceLimit measure for that many bytes.
const vmspliceEnv = "CRYO_BENCH_VMSPLICE"

// vmspliceTime has a process of its own hand so many bytes of its memory to a pipe.
func vmspliceTime(t *testing.T, size int64) (l vmspliceLimit) {
	out, err := again("TestVmspliceLimit", vmspliceEnv, strconv.FormatInt(size, 10)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var test string
	if _, err := fmt.Sscanf(string(out), "=== RUN %s\nmoved %d ended %d cpu %d", &test, &l.moved, &l.ended, &l.cpu); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return l
}

func TestVmspliceLimit(t *testing.T) {
	size, err := strconv.Atoi(os.Getenv(vmspliceEnv))
	if err != nil {
		t.Skip("a part of the benchmark: make bench")
	}
	buf := writtenMemory(t, size)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	fd := int(w.Fd())
	unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, 1<<20)
	cat := exec.Command("cat")
	cat.Stdin = r
	began, cpu := time.Now(), rusageCPU(unix.RUSAGE_SELF)
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	r.Close()
	for left := buf; len(left) > 0; {
		iov := unix.Iovec{Base: &left[0]}
		iov.SetLen(len(left))
		n, err := unix.Vmsplice(fd, []unix.Iovec{iov}, 0)
		if err != nil {
			t.Fatal(err)
		}
		left = left[n:]
	}
	w.Close()
	if err := cat.Wait(); err != nil {
		t.Fatal(err)
	}
	moved := time.Since(began)
	unix.Munmap(buf)
	fmt.Printf("moved %d ended %d cpu %d\n", moved, time.Since(began), rusageCPU(unix.RUSAGE_SELF)-cpu)
}

// writtenMemory is fresh memory, small pages, all of which has been written.
func writtenMemory(t *testing.T, size int) []byte {
	buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	unix.Madvise(buf, unix.MADV_NOHUGEPAGE)
	for i := 0; i < len(buf); i += 8 {
		binary.NativeEndian.PutUint64(buf[i:], uint64(i)|1)
	}
	return buf
}

// limitsEnv has TestMemoryLimits measure for that many bytes.
const limitsEnv = "CRYO_BENCH_LIMITS"

// memoryLimits measures how long the machine takes to write size bytes of a program's own memory to a file where images
// go, and to read that into memory never touched. A process of its own does it, so that this one stays small.
func memoryLimits(t *testing.T, size int64) (write, read time.Duration) {
	out, err := again("TestMemoryLimits", limitsEnv, strconv.FormatInt(size, 10)).Output()
	if err != nil {
		t.Fatal(err)
	}
	var test string
	if _, err := fmt.Sscanf(string(out), "=== RUN %s\nwrite %d read %d", &test, &write, &read); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return write, read
}

func TestMemoryLimits(t *testing.T) {
	size, err := strconv.Atoi(os.Getenv(limitsEnv))
	if err != nil {
		t.Skip("a part of the benchmark: make bench")
	}
	f, err := os.CreateTemp(os.Getenv("CRYO_BENCH_DIR"), "limit-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	fresh := func() []byte {
		buf, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
		if err != nil {
			t.Fatal(err)
		}
		return buf
	}
	buf := fresh()
	for i := 0; i < len(buf); i += 8 {
		binary.NativeEndian.PutUint64(buf[i:], uint64(i)|1)
	}
	began := time.Now()
	if _, err := f.Write(buf); err != nil {
		t.Fatal(err)
	}
	write := time.Since(began)
	unix.Munmap(buf)
	buf = fresh()
	began = time.Now()
	if _, err := f.ReadAt(buf, 0); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("write %d read %d\n", write, time.Since(began))
}
