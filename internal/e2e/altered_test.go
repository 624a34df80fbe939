package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestAlteredSets restores sets that somebody has changed: bytes, lengths, and fields of well-formed messages. Each is
// refused by one line or restored; no crash, no hang, no task and no file is left. CRYO_ALTERED says how many of each,
// CRYO_SEED which: the same each time, unless it is 0.
func TestAlteredSets(t *testing.T) {
	RequireRoot(t)
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("CRYO_ALTERED")); err == nil {
		rounds = n
	}
	seed := uint64(1)
	if n, err := strconv.ParseUint(os.Getenv("CRYO_SEED"), 10, 64); err == nil {
		seed = n
	}
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("CRYO_SEED=%d", seed)
	for _, w := range []struct {
		name string
		args []string
	}{{"files", nil}, {"ring", []string{"5"}}, {"threads", []string{"4"}}, {"memory", nil}, {"unix", nil}} {
		t.Run(w.name, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			target, images := tools.StartWorkload(t, w.name, w.args...), t.TempDir()
			target.Dump(tools.Criu, images)
			before := listing(t, target.Dir)
			restored := 0
			for n := range rounds {
				set, what := alteredSet(t, rnd, images)
				if tryRestore(t, target, set, fmt.Sprintf("%d: %s", n, what)) {
					restored++
				} else if after := listing(t, target.Dir); after != before {
					t.Fatalf("%d: %s: files were left or changed:\n%s\n%s", n, what, before, after)
				}
				target.Rewind()
				os.RemoveAll(set)
			}
			t.Logf("%d of %d were restored all the same", restored, rounds)
		})
	}
}

// listing is the files of a directory, without what changes by itself.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintf(&out, "%s %v %d\n", path, info.Mode(), map[bool]int64{true: info.Size()}[info.Mode().IsRegular()])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

var cause = regexp.MustCompile(`^criu: .+\n$`)

// tryRestore restores an altered set and ends whatever came of it.
func tryRestore(t *testing.T, target *Target, set, what string) (restored bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, tools.Criu, "restore", "-d", "-D", set, "-o", "restore.log", "-v4")
	cmd.Stderr, cmd.WaitDelay = &stderr, time.Second
	err := cmd.Run()
	left := endDescendants(t)
	if ctx.Err() != nil {
		t.Fatalf("%s: the restore hangs", what)
	}
	if usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok && usage.Maxrss > 256<<10 {
		t.Errorf("%s: the tool grew to %d KiB", what, usage.Maxrss)
	}
	if err == nil {
		return true
	}
	if left > 0 {
		t.Errorf("%s: %d tasks are left", what, left)
	}
	if cmd.ProcessState.ExitCode() != 1 || !cause.Match(stderr.Bytes()) || strings.Contains(stderr.String(), "panic") {
		t.Errorf("%s: %v, stderr %q", what, err, stderr.String())
	}
	return false
}

// endDescendants kills all tasks that were restored: they are this process's, whatever pid an altered set gave them.
func endDescendants(t *testing.T) (n int) {
	t.Helper()
	for range 100 {
		list, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
		if err != nil {
			t.Skip("the kernel does not list children: ", err)
		}
		all := string(list)
		tasks, _ := os.ReadDir("/proc/self/task")
		for _, task := range tasks {
			more, _ := os.ReadFile("/proc/self/task/" + task.Name() + "/children")
			all += " " + string(more)
		}
		fields := strings.Fields(all)
		if len(fields) == 0 {
			return n
		}
		for _, f := range fields {
			pid, _ := strconv.Atoi(f)
			if state := statusField(pid, "State"); state != "" && state[0] != 'Z' {
				n++
				unix.Kill(pid, unix.SIGKILL)
			}
			unix.Wait4(pid, nil, unix.WALL, nil)
		}
	}
	t.Fatal("tasks come without end")
	return n
}

// alteredSet copies a set and changes one of its images.
func alteredSet(t *testing.T, rnd *rand.Rand, images string) (set, what string) {
	t.Helper()
	set, err := os.MkdirTemp("", "altered-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(set) })
	var names []string
	entries, err := os.ReadDir(images)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".img") {
			continue
		}
		names = append(names, e.Name())
		b, err := os.ReadFile(filepath.Join(images, e.Name()))
		if err == nil {
			err = os.WriteFile(filepath.Join(set, e.Name()), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	name := names[rnd.IntN(len(names))]
	path := filepath.Join(set, name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch k := rnd.IntN(10); {
	case k == 0 && len(b) > 0:
		b, what = b[:rnd.IntN(len(b))], "cut"
	case k == 1 && len(b) > 0:
		at := rnd.IntN(min(len(b), 4096))
		b[at] ^= 1 << rnd.IntN(8)
		what = fmt.Sprintf("bit at %d", at)
	case k == 2:
		b, what = nil, "gone"
	default:
		if b, what, err = alterField(rnd, name, b); err != nil {
			b, what = nil, "gone" // raw pages
		}
	}
	if what == "gone" {
		err = os.Remove(path)
	} else {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return set, name + ": " + what
}

// alterField changes one field of one message of an image.
func alterField(rnd *rand.Rand, name string, b []byte) (altered []byte, what string, err error) {
	count := 0
	if _, _, err := recode(name, b, func(int, proto.Message) string { count++; return "" }); err != nil || count == 0 {
		return nil, "", errors.Join(err, io.EOF)
	}
	at := rnd.IntN(count)
	return recode(name, b, func(n int, m proto.Message) string {
		if n != at {
			return ""
		}
		return fmt.Sprintf("entry %d, ", n) + alterMessage(rnd, m.ProtoReflect(), "")
	})
}

// recode decodes and encodes an image, with a change to its messages.
func recode(name string, b []byte, change func(int, proto.Message) string) ([]byte, string, error) {
	d, err := image.DetectDecoder(bytes.NewReader(b), name)
	if err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	what := ""
	e := image.NewEncoder(&out, name, d.Type())
	for n := 0; ; n++ {
		m, err := d.Next()
		if err == io.EOF {
			return out.Bytes(), what, e.Flush()
		}
		if err != nil {
			return nil, "", err
		}
		data, err := d.PayloadBytes(64 << 20)
		if err != nil {
			return nil, "", err
		}
		what += change(n, m)
		raw, err := proto.MarshalOptions{AllowPartial: true}.Marshal(m)
		if err != nil {
			return nil, "", err
		}
		if err := e.Flush(); err != nil {
			return nil, "", err
		}
		// Not through the encoder: it would want the payload the message speaks of now.
		size := uint32(len(raw))
		out.Write([]byte{byte(size), byte(size >> 8), byte(size >> 16), byte(size >> 24)})
		out.Write(raw)
		out.Write(data)
	}
}

// alterMessage changes one field somewhere in a message and says which.
func alterMessage(rnd *rand.Rand, m protoreflect.Message, path string) string {
	var set []protoreflect.FieldDescriptor
	m.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		set = append(set, f)
		return true
	})
	if len(set) == 0 {
		return path + " (empty)"
	}
	f := set[rnd.IntN(len(set))]
	path += "." + string(f.Name())
	if rnd.IntN(20) == 0 {
		m.Clear(f)
		return path + " cleared"
	}
	if f.IsList() {
		return alterList(rnd, m.Mutable(f).List(), f, path)
	}
	if f.Kind() == protoreflect.MessageKind {
		return alterMessage(rnd, m.Mutable(f).Message(), path)
	}
	v := alterValue(rnd, f.Kind(), m.Get(f))
	what := fmt.Sprintf("%s %.60q to %.60q", path, m.Get(f).String(), v.String())
	m.Set(f, v)
	return what
}

func alterList(rnd *rand.Rand, l protoreflect.List, f protoreflect.FieldDescriptor, path string) string {
	if l.Len() == 0 {
		return path + " (empty)"
	}
	i := rnd.IntN(l.Len())
	path += fmt.Sprintf("[%d]", i)
	switch rnd.IntN(6) {
	case 0:
		l.Truncate(i)
		return path + " cut"
	case 1:
		for range 1 << rnd.IntN(12) {
			if f.Kind() == protoreflect.MessageKind {
				l.Append(protoreflect.ValueOfMessage(proto.Clone(l.Get(i).Message().Interface()).ProtoReflect()))
			} else {
				l.Append(l.Get(i))
			}
		}
		return path + " repeated"
	}
	if f.Kind() == protoreflect.MessageKind {
		return alterMessage(rnd, l.Get(i).Message(), path)
	}
	v := alterValue(rnd, f.Kind(), l.Get(i))
	what := fmt.Sprintf("%s %.60q to %.60q", path, l.Get(i).String(), v.String())
	l.Set(i, v)
	return what
}

func alterValue(rnd *rand.Rand, k protoreflect.Kind, old protoreflect.Value) protoreflect.Value {
	number := func(v uint64) uint64 {
		all := []uint64{0, 1, v + 1, v - 1, v ^ 1<<rnd.IntN(32), v ^ 1<<rnd.IntN(64), ^uint64(0), 1 << 31, 1<<31 - 1, 1 << 63, rnd.Uint64(), uint64(rnd.IntN(5000)), v << 1}
		return all[rnd.IntN(len(all))]
	}
	switch k {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(!old.Bool())
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(number(uint64(old.Enum()))))
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(uint32(number(old.Uint())))
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(number(old.Uint()))
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(int32(number(uint64(old.Int()))))
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(int64(number(uint64(old.Int()))))
	case protoreflect.StringKind:
		all := []string{"", "/", "..", old.String() + "x", old.String() + "/..", strings.Repeat("a", 5000), "/" + strings.Repeat("b/", 3000), "a\x00b", "pipe:[1]"}
		return protoreflect.ValueOfString(all[rnd.IntN(len(all))])
	case protoreflect.BytesKind:
		b := old.Bytes()
		if len(b) > 0 && rnd.IntN(2) == 0 {
			return protoreflect.ValueOfBytes(b[:rnd.IntN(len(b))])
		}
		return protoreflect.ValueOfBytes(append(bytes.Clone(b), make([]byte, 1<<rnd.IntN(14))...))
	}
	return old
}
