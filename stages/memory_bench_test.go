package stages

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"cryo/internal/options"

	"golang.org/x/sys/unix"
)

// benchTargetEnv makes the test binary the target of BenchmarkDumpMemory: it fills so many bytes and waits.
const benchTargetEnv = "STAGES_BENCH_TARGET"

const benchSize = 1 << 30

func init() {
	if os.Getenv(benchTargetEnv) == "" {
		return
	}
	if _, err := dirtyMemory(); err != nil {
		panic(err)
	}
	fmt.Println("ready")
	io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// dirtyMemory is benchSize bytes of small pages, every word of them numbered.
func dirtyMemory() ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, benchSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	unix.Madvise(mem, unix.MADV_NOHUGEPAGE)
	for i := 0; i < len(mem); i += 8 {
		binary.NativeEndian.PutUint64(mem[i:], uint64(i)+1)
	}
	return mem, nil
}

// BenchmarkDumpMemory dumps 1 GiB of dirty memory to tmpfs, the whole dump, and prints the ratio to write() of an own
// buffer of that size, in turns.
func BenchmarkDumpMemory(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root to trace other processes")
	}
	slog.SetDefault(slog.New(slog.DiscardHandler))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), benchTargetEnv+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, _ := cmd.StdinPipe()
	out, _ := cmd.StdoutPipe()
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	own, err := dirtyMemory()
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(own)
	var dumped, written time.Duration
	for b.Loop() {
		written += inTmpfs(b, func(dir string) error { return os.WriteFile(filepath.Join(dir, "own"), own, 0o600) })
		dumped += inTmpfs(b, func(dir string) error {
			o := options.Default()
			o.Verb, o.Tree, o.ImagesDir, o.WorkDir = options.Dump, cmd.Process.Pid, dir, dir
			o.Final, o.ShellJob = options.LeaveRunning, true
			return Dump(context.Background(), o)
		})
	}
	b.ReportMetric(dumped.Seconds()/float64(b.N)*1e3, "dump-ms")
	b.ReportMetric(written.Seconds()/float64(b.N)*1e3, "write-ms")
	b.ReportMetric(written.Seconds()/dumped.Seconds(), "of-write")
}

// inTmpfs times f in a fresh directory on a tmpfs.
func inTmpfs(b *testing.B, f func(dir string) error) time.Duration {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	start := time.Now()
	if err := f(dir); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}
