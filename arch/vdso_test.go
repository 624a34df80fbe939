package arch

import "testing"

func ownVDSO(t *testing.T) ([]byte, *VDSO) {
	mem, err := OwnVDSO()
	if err != nil {
		t.Skip(err)
	}
	v, err := ParseVDSO(mem)
	if err != nil {
		t.Fatal(err)
	}
	return mem, v
}

func TestVDSO(t *testing.T) {
	mem, v := ownVDSO(t)
	if !v.Same(v) {
		t.Error("a vdso differs from itself")
	}
	t.Logf("%d bytes, %v", len(mem), v.Symbols)
	patches, err := v.Redirect(v, 0x7000_0000_0000)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint64]bool{}
	for _, p := range patches {
		if seen[p.Offset] {
			t.Errorf("two patches at %#x", p.Offset)
		}
		seen[p.Offset] = true
	}
	for _, s := range v.Symbols {
		if !seen[s.Offset] {
			t.Errorf("%s is not redirected", s.Name)
		}
	}
	if _, err := v.Redirect(&VDSO{}, 0); err != nil {
		t.Errorf("to a kernel without vdso: %v", err)
	}
}

func FuzzParseVDSO(f *testing.F) {
	if mem, err := OwnVDSO(); err == nil {
		f.Add(mem)
	}
	f.Fuzz(func(t *testing.T, mem []byte) {
		v, err := ParseVDSO(mem)
		if err != nil {
			return
		}
		patches, err := v.Redirect(v, 1<<40)
		if err != nil {
			return
		}
		for _, p := range patches {
			if p.Offset+uint64(len(p.Bytes)) > v.Size {
				t.Fatalf("a patch at %#x leaves the vdso of %#x bytes", p.Offset, v.Size)
			}
		}
	})
}
