package restorers

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"cryo/internal/image"
	"cryo/internal/vma"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	vmapb "github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

const page = image.PageSize

// area makes a mapping of pages [start, end).
func area(start, end uint64, status uint32, object, offset uint64) *Area {
	a := &Area{Start: start * page, End: end * page, Status: vma.StatusRegular | status, Object: object, Offset: offset * page,
		Prot: unix.PROT_READ, Flags: unix.MAP_PRIVATE}
	if status == vma.StatusAnonPrivate {
		a.Flags |= unix.MAP_ANONYMOUS
	}
	return a
}

// cell is what a page of an address space is.
type cell struct {
	status         uint32
	object, offset uint64
}

func cells(areas []*Area) map[uint64]cell {
	m := map[uint64]cell{}
	for _, a := range areas {
		for at := a.Start; at < a.End; at += page {
			c := cell{a.Status, a.Object, 0}
			if a.File() {
				c.offset = a.Offset + at - a.Start
			}
			m[at] = c
		}
	}
	return m
}

// space makes an address space of random mappings.
func space(rnd *rand.Rand) []*Area {
	var areas []*Area
	for at := uint64(1 + rnd.IntN(4)); at < 60; at += uint64(rnd.IntN(4)) {
		end := at + 1 + uint64(rnd.IntN(8))
		status, object, offset := uint32(vma.StatusAnonPrivate), uint64(0), uint64(0)
		if rnd.IntN(2) == 0 {
			status, object, offset = vma.StatusFilePrivate, uint64(1+rnd.IntN(2)), at
		}
		areas = append(areas, area(at, end, status, object, offset))
		at = end
	}
	return areas
}

// TestDiff carries out the way from one random address space to another on a model, page by page.
func TestDiff(t *testing.T) {
	for seed := range uint64(2000) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		have, want := space(rnd), space(rnd)
		c := Diff(have, want)
		now := cells(have)
		for _, r := range c.Unmap {
			for at := r.Start; at < r.End; at += page {
				delete(now, at)
			}
		}
		for _, k := range c.Kept {
			for at, w := range cells([]*Area{k.Area}) {
				if now[at] != w {
					t.Fatalf("seed %d: page %x is kept as %v but was %v", seed, at, w, now[at])
				}
			}
		}
		for _, a := range c.Map {
			for at, w := range cells([]*Area{a}) {
				if old, there := now[at]; there {
					t.Fatalf("seed %d: page %x is mapped over %v", seed, at, old)
				}
				now[at] = w
			}
		}
		if got, wanted := fmt.Sprint(now), fmt.Sprint(cells(want)); got != wanted {
			t.Fatalf("seed %d: it became\n%s\ninstead of\n%s", seed, got, wanted)
		}
	}
}

func TestFindHole(t *testing.T) {
	a := area(16, 20, vma.StatusAnonPrivate, 0, 0)
	b := area(30, 40, vma.StatusAnonPrivate, 0, 0)
	stack := area(1000, 1010, vma.StatusAnonPrivate, 0, 0)
	stack.Flags |= unix.MAP_GROWSDOWN
	for _, test := range []struct {
		spaces [][]*Area
		size   uint64
		taken  []Range
		want   uint64
	}{
		{nil, page, nil, minHole},
		{[][]*Area{{a}, {b}}, 10 * page, nil, 20 * page},
		{[][]*Area{{a, b}}, 11 * page, nil, 40 * page},
		{[][]*Area{{a}, {b}}, 10 * page, []Range{{25 * page, 26 * page}}, 40 * page},
		{[][]*Area{{stack}}, 900 * page, nil, 1010 * page}, // room below a stack is the stack's
	} {
		got, err := FindHole(test.spaces, test.size, test.taken...)
		if err != nil || got != test.want {
			t.Errorf("%d pages: %x, %v instead of %x", test.size/page, got/page, err, test.want/page)
		}
	}
	if _, err := FindHole([][]*Area{{{Start: 0, End: TaskSize}}}, page); err == nil {
		t.Error("a hole in a full address space")
	}
}

// TestPlanLayoutRefuses wants each wrong mapping refused with the place where it is.
func TestPlanLayoutRefuses(t *testing.T) {
	good := func() *vmapb.VmaEntry {
		return &vmapb.VmaEntry{Start: proto.Uint64(16 * page), End: proto.Uint64(17 * page), Pgoff: proto.Uint64(0), Shmid: proto.Uint64(0),
			Prot: proto.Uint32(3), Flags: proto.Uint32(unix.MAP_PRIVATE | unix.MAP_ANONYMOUS), Fd: proto.Int64(-1),
			Status: proto.Uint32(vma.StatusRegular | vma.StatusAnonPrivate)}
	}
	plan := func(list ...*vmapb.VmaEntry) error {
		task := &Task{PID: 7, MM: &mm.MmEntry{Vmas: list}}
		_, err := PlanLayout(task)
		return err
	}
	if err := plan(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*vmapb.VmaEntry){
		"is no range of pages": func(e *vmapb.VmaEntry) { *e.End = *e.Start },
		"no range of pages":    func(e *vmapb.VmaEntry) { *e.Start++ },
		"is outside of":        func(e *vmapb.VmaEntry) { *e.End = 1 << 63 },
		"protection":           func(e *vmapb.VmaEntry) { *e.Prot = 64 },
		"flags":                func(e *vmapb.VmaEntry) { *e.Flags |= 1 << 25 },
		"contradict":           func(e *vmapb.VmaEntry) { *e.Flags = unix.MAP_SHARED | unix.MAP_ANONYMOUS },
		"no kind of mapping":   func(e *vmapb.VmaEntry) { *e.Status = vma.StatusRegular },
	} {
		e := good()
		spoil(e)
		if err := plan(e); err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "mm-7.img") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := plan(good(), good()); err == nil || !strings.Contains(err.Error(), "vmas[1]") {
		t.Errorf("one mapping over another: %v", err)
	}
}
