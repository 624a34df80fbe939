package e2e

import (
	"strconv"
	"strings"
	"testing"
)

// TestKernelWorkers wants a dump to refuse at once what the kernel is busy with on behalf of a program, by threads that look
// like the program's own but can run nothing for the tool, and to let it go on.
func TestKernelWorkers(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "ringbusy")
	if why := target.read("refused"); why != "" {
		t.Skip("no io_uring here: ", why)
	}
	for range 2 {
		result := Run(t, tools.Criu, "dump", "-t", strconv.Itoa(target.Pid), "-D", t.TempDir(), "-o", "dump.log")
		if result.Code == 0 || !strings.Contains(result.Stderr, "io_uring") {
			t.Fatalf("dump: exit status %d, %s", result.Code, result.Stderr)
		}
	}
	target.Go()
}
