package e2e

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

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
