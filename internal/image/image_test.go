package image_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"cryo/internal/image"

	ipc_msg "github.com/checkpoint-restore/go-criu/v8/crit/images/ipc-msg"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/pipe"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const golden = "../../testdata/images"

// goldenFiles are the images criu 4.2 wrote, but for the pages.
func goldenFiles(t testing.TB) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(golden, "*", "*"))
	if err != nil || len(all) == 0 {
		t.Fatalf("no golden images: %v", err)
	}
	var images []string
	for _, f := range all {
		if !strings.HasPrefix(filepath.Base(f), "pages-") {
			images = append(images, f)
		}
	}
	return images
}

// recode decodes an image and encodes it again.
func recode(b []byte, name string) ([]byte, error) {
	dec, err := image.DetectDecoder(bytes.NewReader(b), name)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	enc := image.NewEncoder(&out, name, dec.Type())
	for {
		m, err := dec.Next()
		if err == io.EOF {
			err = enc.Flush()
			return out.Bytes(), err
		}
		if err != nil {
			return nil, err
		}
		if err := enc.Entry(m); err != nil {
			return nil, err
		}
		for {
			msg := new(ipc_msg.IpcMsg)
			text, err := dec.Message(msg, msg.GetMsize)
			if err == io.EOF {
				break
			}
			if err != nil {
				return nil, err
			}
			if err := enc.Message(msg, text); err != nil {
				return nil, err
			}
		}
		if err := enc.Payload(dec.Payload()); err != nil {
			return nil, err
		}
	}
}

func TestGoldenRecode(t *testing.T) {
	for _, f := range goldenFiles(t) {
		want, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		got, err := recode(want, f)
		if err != nil {
			t.Error(err)
		} else if !bytes.Equal(got, want) {
			t.Errorf("%s: %d bytes became %d others", f, len(want), len(got))
		}
	}
}

// Truncations and flipped bytes all over a file each an error or another image, never a panic, and an error names the
// file.
func TestGoldenDamaged(t *testing.T) {
	for _, f := range goldenFiles(t) {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		check := func(b []byte) {
			if _, err := recode(b, "NAME"); err != nil && !strings.Contains(err.Error(), "image NAME") {
				t.Errorf("%s: the error does not name the image: %v", f, err)
			}
		}
		for i := 0; i < len(b); i += 1 + len(b)/300 {
			check(b[:i])
			for _, bit := range []byte{0x01, 0x80, 0xff} {
				c := bytes.Clone(b)
				c[i] ^= bit
				check(c)
			}
		}
	}
}

func TestTable(t *testing.T) {
	names := map[string]bool{}
	for _, ty := range image.Types() {
		if ty.Magic == 0 {
			t.Errorf("%s has no magic number", ty.Name)
		}
		if names[ty.Pattern] {
			t.Errorf("%s is there twice", ty.Pattern)
		}
		names[ty.Pattern] = true
		if image.TypeByMagic(ty.Magic).Name != ty.Name {
			t.Errorf("magic of %s is that of another kind", ty.Name)
		}
	}
	for _, c := range []struct{ got, want string }{
		{image.Core.File(12), "core-12.img"},
		{image.Files.File(0), "files.img"},
		{image.GhostFile.File(26), "ghost-file-1a.img"},
		{image.StatsDump.File(0), "stats-dump"},
		{image.PagemapShmem.File(1 << 40), "pagemap-shmem-1099511627776.img"},
	} {
		if c.got != c.want {
			t.Errorf("file name %s, want %s", c.got, c.want)
		}
	}
}

// dirSet writes plain files, for tests of this package only.
type dirSet string

func (d dirSet) Create(name string) (image.Writer, error) {
	return os.OpenFile(filepath.Join(string(d), name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
}

func TestWriteRead(t *testing.T) {
	dir := t.TempDir()
	want := []*pipe.PipeEntry{
		{Id: proto.Uint32(1), PipeId: proto.Uint32(2), Flags: proto.Uint32(3), Fown: owner()},
		{Id: proto.Uint32(4), PipeId: proto.Uint32(5), Flags: proto.Uint32(6), Fown: owner()},
	}
	if err := image.Write(dirSet(dir), image.Pipes, 0, want...); err != nil {
		t.Fatal(err)
	}
	src, err := image.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	got, err := image.ReadAll(src, image.Pipes, 0)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || !proto.Equal(got[0], want[0]) || !proto.Equal(got[1], want[1]) {
		t.Errorf("got %v, want %v", got, want)
	}
	if _, err := image.Read(src, image.Pipes, 0); !errors.Is(err, image.ErrFormat) {
		t.Errorf("Read of two entries: %v", err)
	}
	if _, err := image.ReadAll(src, image.Fifo, 0); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadAll of a missing image: %v", err)
	}
	if all, err := image.ReadOptional(src, image.Fifo, 0); all != nil || err != nil {
		t.Errorf("ReadOptional of a missing image: %v, %v", all, err)
	}
	_, err = image.ReadInventory(src)
	if !errors.Is(err, image.ErrNoInventory) || !strings.Contains(err.Error(), dir) {
		t.Errorf("inventory of a set without: %v", err)
	}
}

func TestRequiredFieldIsNamed(t *testing.T) {
	err := image.Write(dirSet(t.TempDir()), image.Pipes, 0, &pipe.PipeEntry{Id: proto.Uint32(1)})
	if err == nil || !strings.Contains(err.Error(), "pipes.img") || !strings.Contains(err.Error(), "pipe_id") {
		t.Errorf("error %v, want one that names pipes.img and pipe_id", err)
	}
}

// A size field that lies must not make the decoder allocate what it says.
func TestLyingSizes(t *testing.T) {
	huge := &pipe_data.PipeDataEntry{PipeId: proto.Uint32(1), Bytes: proto.Uint32(1<<32 - 1)}
	var b bytes.Buffer
	enc := image.NewEncoder(&b, "x", image.PipesData.Type)
	if err := enc.Entry(huge); err != nil {
		t.Fatal(err)
	}
	if err := enc.Flush(); err == nil {
		t.Fatal("an entry without its data was written")
	}
	for _, c := range []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"entry", append(leading(t, image.Pstree.Type), 0xff, 0xff, 0xff, 0x1f), "entry of 536870911 bytes"},
		{"limit", append(leading(t, image.Pipes.Type), 0xff, 0xff, 0xff, 0xff), "at most"},
		{"nothing", nil, "magic"},
		{"wrong magic", make([]byte, 8), "unknown magic"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := recode(c.bytes, "x.img")
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
				t.Errorf("%d bytes were allocated for an image of %d", n, len(c.bytes))
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

func leading(t *testing.T, ty *image.Type) []byte {
	var b bytes.Buffer
	if err := image.NewEncoder(&b, "x", ty).Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPagemap(t *testing.T) {
	src, err := image.OpenDir(filepath.Join(golden, "golden"))
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	tree, err := image.ReadAll(src, image.Pstree, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tree {
		p, err := image.ReadPagemap(src, image.TaskPages, uint64(task.GetPid()))
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		var total int64
		for run, err := range p.Runs() {
			if err != nil {
				t.Fatal(err)
			}
			if run.Flags&image.PEPresent != 0 {
				total += int64(run.Bytes())
			}
		}
		pages, err := src.OpenPages(p.PagesID)
		if err != nil {
			t.Fatal(err)
		}
		defer pages.Close()
		if pages.Size != total {
			t.Errorf("task %d: page map tells of %d bytes, pages file has %d", task.GetPid(), total, pages.Size)
		}
	}
}

// Nothing but a regular file of the directory itself is opened.
func TestDirIsClosed(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(out, "secret"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.Symlink(filepath.Join(out, "secret"), filepath.Join(dir, "link.img")))
	must(unix.Mkfifo(filepath.Join(dir, "fifo.img"), 0o600))
	must(os.Mkdir(filepath.Join(dir, "dir.img"), 0o700))
	src, err := image.OpenDir(dir)
	must(err)
	defer src.Close()
	for _, name := range []string{"link.img", "fifo.img", "dir.img", "../" + filepath.Base(out) + "/secret", filepath.Join(out, "secret"), "..", ".", "", "a\x00b"} {
		if f, err := src.Open(name); err == nil {
			f.Close()
			t.Errorf("%q was opened", name)
		}
	}
}

func TestParentChain(t *testing.T) {
	base := t.TempDir()
	for _, d := range []string{"1", "2", "a", "b"} {
		if err := os.Mkdir(filepath.Join(base, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"2/parent": "../1", "a/parent": "../b", "b/parent": "../a"} {
		if err := os.Symlink(target, filepath.Join(base, name)); err != nil {
			t.Fatal(err)
		}
	}
	chain := func(dir string) (int, error) {
		var src image.Source
		src, err := image.OpenDir(filepath.Join(base, dir))
		for n := 0; ; n++ {
			if err != nil || src == nil {
				return n, err
			}
			next, perr := src.Parent()
			src.Close()
			src, err = next, perr
		}
	}
	if n, err := chain("2"); n != 2 || err != nil {
		t.Errorf("chain of 2: %d sets, %v", n, err)
	}
	if n, err := chain("a"); n != 2 || err == nil || !strings.Contains(err.Error(), "circle") {
		t.Errorf("circle: %d sets, %v", n, err)
	}
}
