package lazy

import (
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// model is a space as a map from page to where it was dumped.
type model map[uint64]uint64

// TestSpaceModel does at random what tasks do and compares with the model after each step.
func TestSpaceModel(t *testing.T) {
	const first, pages = 16, 200 // numbers of pages
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 7))
		var ranges []Range
		m := model{}
		for p := uint64(first); p < first+pages; {
			n := min(1+r.Uint64N(40), first+pages-p)
			ranges = append(ranges, Range{p * pageSize, (p + n) * pageSize})
			for i := range n {
				m[p+i] = p + i
			}
			p += n + r.Uint64N(5)
		}
		s := newSpace(ranges)
		for range 60 {
			at, n := first+r.Uint64N(pages), 1+r.Uint64N(50)
			switch r.IntN(4) {
			case 0:
				s.mark(at*pageSize, n*pageSize)
				m.drop(at, n)
			case 1:
				s.forget(at*pageSize, (at+n)*pageSize)
				m.drop(at, n)
			case 2: // what is there is unmapped first
				to := first + r.Uint64N(2*pages)
				if to < at+n && at < to+n {
					continue
				}
				s.forget(to*pageSize, (to+n)*pageSize)
				m.drop(to, n)
				s.move(at*pageSize, to*pageSize, n*pageSize)
				for p := range n {
					if img, ok := m[at+p]; ok {
						delete(m, at+p)
						m[to+p] = img
					}
				}
			case 3:
				s = s.clone()
			}
			m.check(t, s)
		}
	}
}

func (m model) drop(at, n uint64) {
	for p := at; p < at+n; p++ {
		delete(m, p)
	}
}

func (m model) check(t *testing.T, s *space) {
	t.Helper()
	if got := s.left.Load(); got != int64(len(m)) {
		t.Fatalf("%d pages are missing, want %d", got, len(m))
	}
	found := model{}
	for addr := uint64(0); ; {
		at, img, n, ok := s.missing(addr, 7*pageSize)
		if !ok {
			break
		}
		for p := range n / pageSize {
			found[at/pageSize+p] = img/pageSize + p
		}
		addr = at + n
	}
	if diff := cmp.Diff(m, found); diff != "" {
		t.Fatalf("missing pages (-want +got):\n%s", diff)
	}
	for at, img := range m {
		want := []placed{{img * pageSize, at * pageSize, pageSize}}
		if diff := cmp.Diff(want, s.places(img*pageSize, pageSize), cmp.AllowUnexported(placed{})); diff != "" {
			t.Fatalf("place of page %x (-want +got):\n%s", img, diff)
		}
	}
}

func TestWorkingSet(t *testing.T) {
	path := filepath.Join(t.TempDir(), "set")
	w, err := OpenWorkingSet(path)
	if err != nil {
		t.Fatal(err)
	}
	w.Note(7, 0x3000, 2*pageSize)
	w.Note(8, 0x1000, pageSize)
	w.Note(7, 0x1000, pageSize)
	if err := w.Save(); err != nil {
		t.Fatal(err)
	}
	if w, err = OpenWorkingSet(path); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Range{{0x3000, 0x5000}, {0x1000, 0x2000}}, w.First(7)); diff != "" {
		t.Error(diff)
	}
	w.Note(7, 0x9000, pageSize)
	if err := w.Save(); err != nil {
		t.Error(err) // it is there already, and stays as it is
	}
}
