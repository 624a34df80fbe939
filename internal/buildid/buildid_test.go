package buildid

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestRead builds programs with a known build id, of both classes where the compiler can.
func TestRead(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc to make a program with a build id: apt-get install gcc libc6-dev")
	}
	dir := t.TempDir()
	src := filepath.Join(dir, "p.c")
	if err := os.WriteFile(src, []byte("int _start(void) { return 0; }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ option, id string }{
		{"--build-id=0x0123456789abcdef0123456789abcdef01234567", "0123456789abcdef0123456789abcdef01234567"},
		{"--build-id=0x010203", "010203"},
		{"--build-id=none", ""},
	} {
		bin := filepath.Join(dir, "p")
		if out, err := exec.Command(gcc, "-nostdlib", "-static", "-Wl,"+test.option, "-o", bin, src).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		b, err := os.ReadFile(bin)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.EncodeToString(Read(bytes.NewReader(b), int64(len(b)))); got != test.id {
			t.Errorf("%s: got %q", test.option, got)
		}
	}
}

// FuzzRead feeds what is no ELF file, or a broken one: it may find anything, but only within bounds.
func FuzzRead(f *testing.F) {
	f.Add([]byte("\x7fELF"))
	if exe, err := os.Executable(); err == nil {
		if b, err := os.ReadFile(exe); err == nil {
			f.Add(b[:min(len(b), 8192)])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if id := Read(bytes.NewReader(b), int64(len(b))); len(id) > maxID {
			t.Errorf("an id of %d bytes", len(id))
		}
	})
}
