package stages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"cryo/internal/e2e"
	"cryo/internal/options"
)

// TestRestoreFailsAfterEveryAcquisition breaks a restore off after each thing it has acquired and each item a stage has
// finished. Whatever the point, no task is left and the next restore works; past the commit the tree is whole.
func TestRestoreFailsAfterEveryAcquisition(t *testing.T) {
	e2e.RequireRoot(t)
	t.Chdir("../internal/e2e") // where it finds the workloads from
	tools, err := e2e.NewTools(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tree", "files", "memory", "threads"} {
		t.Run(name, func(t *testing.T) {
			target := tools.StartWorkload(t, name)
			o := options.Default()
			o.Verb, o.Tree, o.ImagesDir, o.WorkDir = options.Dump, target.Pid, t.TempDir(), t.TempDir()
			pids := target.Tree()
			if err := Dump(context.Background(), o); err != nil {
				t.Fatal(err)
			}
			target.Gone()
			o.Verb, o.Detach = options.Restore, true
			for k := 1; ; k++ {
				point, err := failAt(o, k)
				if point == "" {
					if err != nil {
						t.Fatalf("a restore without a failure: %v", err)
					}
					t.Logf("%d points", k-1)
					break
				}
				if !errors.Is(err, errInjected) {
					t.Fatalf("failure after %s: the restore says %v", point, err)
				}
				if strings.HasPrefix(point, "resume: item") { // committed: the tree is there
					target.Kill()
					continue
				}
				target.Gone()
				for _, pid := range pids {
					if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
						t.Fatalf("failure after %s: task %d is left", point, pid)
					}
				}
			}
			target.Go()
		})
	}
}

var errInjected = errors.New("injected")

// failAt runs a restore that fails at its k-th point, which it names; "" if there are fewer.
func failAt(o *options.Options, k int) (point string, err error) {
	r, err := newRestorer(context.Background(), o)
	if err != nil {
		return "", err
	}
	defer r.close()
	g := r.graph()
	var mu sync.Mutex
	n := 0
	g.FailAfter(func(stage, acquisition string) error {
		mu.Lock()
		defer mu.Unlock()
		if n++; n != k {
			return nil
		}
		point = stage + ": " + acquisition
		return errInjected
	})
	err = g.Run(context.Background())
	return point, err
}
