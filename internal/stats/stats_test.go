package stats

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	criu "github.com/checkpoint-restore/go-criu/v8/stats"
)

// go-criu's reader is what podman reads our files with.
func TestGoCriuReadsWhatWeWrite(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	var d Dump
	d.Frozen.Add(1500 * time.Microsecond)
	d.PagesWritten.Add(42)
	var r Restore
	r.PagesRestored.Add(43)
	for range 2 { // the second replaces the first
		if err := Write(dir.Name(), d.Entry()); err != nil {
			t.Fatal(err)
		}
	}
	if err := Write(dir.Name(), r.Entry()); err != nil {
		t.Fatal(err)
	}
	gotD, err := criu.CriuGetDumpStats(dir)
	if err != nil {
		t.Fatal(err)
	}
	if gotD.GetFrozenTime() != 1500 || gotD.GetPagesWritten() != 42 || gotD.PagesLazy == nil || gotD.ShpagesWritten == nil {
		t.Errorf("stats-dump: %+v", gotD)
	}
	gotR, err := criu.CriuGetRestoreStats(dir)
	if err != nil {
		t.Fatal(err)
	}
	if gotR.GetPagesRestored() != 43 {
		t.Errorf("stats-restore: %+v", gotR)
	}
	if names, _ := dir.Readdirnames(-1); len(names) != 2 {
		t.Errorf("the directory has %q", names)
	}
}

func TestPrint(t *testing.T) {
	var d Dump
	d.PagesWritten.Add(42)
	var out bytes.Buffer
	if err := Print(&out, d.Entry()); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Displaying dump stats:\n", "Frozen time: 0 us\n", "Memory pages written: 42 (0x2a)\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out.String())
		}
	}
}
