package restorers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"cryo/arch"
	"cryo/internal/image"
	"cryo/internal/vma"

	"golang.org/x/sys/unix"
)

// VDSO is how tasks that were dumped under another kernel get along with the vdso of this one. They hold addresses of
// functions in the one they had, so that stays as ordinary memory of theirs, and its functions lead into this kernel's,
// which lies elsewhere. All tasks of a set had the same one.
type VDSO struct {
	old, now *arch.VDSO
	kernel   []*Area // what this kernel makes in a task: the vdso and its data
}

// PlanVDSO compares the vdso the tasks of a set have with that of this kernel, which makes the given areas in a task. It
// is nil if the tasks can have this kernel's in the place of their own.
func PlanVDSO(src image.Source, tree *Tree, layouts map[*Node]*Layout, kernel []*Area) (*VDSO, error) {
	own, err := arch.OwnVDSO()
	if err != nil {
		return nil, nil // nor have the tasks it makes
	}
	v := &VDSO{kernel: kernel}
	fits, readErr := true, error(nil)
	var code []byte
	for _, n := range tree.Nodes {
		l := layouts[n]
		if l == nil {
			continue
		}
		if code == nil && readErr == nil {
			if code, err = l.readVDSO(src, uint64(n.ID)); err != nil {
				readErr = fmt.Errorf("%s: %w", n, err)
			}
		}
		_, err := matchSpecial(kernel, l.Special)
		fits = fits && err == nil
	}
	if fits && (code == nil || bytes.Equal(code, own)) {
		return nil, nil
	}
	if code == nil {
		return nil, errors.Join(errors.New("the vdso of the tasks is laid out otherwise than this kernel's, and the set does not have its code"), readErr)
	}
	if v.now, err = arch.ParseVDSO(own); err == nil {
		v.old, err = arch.ParseVDSO(code)
	}
	if err != nil || fits && v.old.Same(v.now) {
		return nil, err
	}
	return v, nil
}

// vdso is the area of the code, nil if the task has none.
func (l *Layout) vdso() *Area {
	if i := slices.IndexFunc(l.Special, func(a *Area) bool { return a.Is(vma.StatusVDSO) }); i >= 0 {
		return l.Special[i]
	}
	return nil
}

// maxVDSO bounds what is taken for a vdso.
const maxVDSO = 1 << 20

// readVDSO reads what the set has of the vdso's code; nil if it has not all of it.
func (l *Layout) readVDSO(src image.Source, id uint64) ([]byte, error) {
	a := l.vdso()
	if a == nil {
		return nil, nil
	}
	if a.Len() > maxVDSO {
		return nil, fmt.Errorf("%s is too large for a vdso", a)
	}
	pages, err := openKnown(src, image.TaskPages, id, l.Pages)
	if err != nil {
		return nil, err
	}
	defer pages.Close()
	mem := make([]byte, a.Len())
	for at := a.Start; at < a.End; {
		run, ok, err := pages.from(at)
		if err != nil || !ok || run.Start > at {
			return nil, err
		}
		n := min(run.End, a.End) - at
		if _, err := run.file.ReadAt(mem[at-a.Start:][:n], run.off); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
		at += n
	}
	return mem, nil
}

// Size is how much room this kernel's vdso and its data take.
func (v *VDSO) Size() (size uint64) {
	if v == nil {
		return 0
	}
	for _, a := range v.kernel {
		size += a.Len()
	}
	return size
}

// Move changes the layout of a task: its vdso becomes memory of its own, this kernel's lies at address at.
func (v *VDSO) Move(l *Layout, at uint64) error {
	a := l.vdso()
	if v == nil || a == nil {
		return nil
	}
	if a.Len() != v.old.Size {
		return fmt.Errorf("%s is not the vdso the other tasks have", a)
	}
	l.Areas = append(l.Areas, &Area{Start: a.Start, End: a.End, Prot: unix.PROT_READ | unix.PROT_EXEC,
		Flags: unix.MAP_PRIVATE | unix.MAP_ANONYMOUS, Status: vma.StatusRegular | vma.StatusAnonPrivate, HasPages: true})
	slices.SortFunc(l.Areas, func(a, b *Area) int { return int(min(max(int64(a.Start-b.Start), -1), 1)) })
	l.Special = nil
	for _, k := range v.kernel {
		moved := &Area{Start: at, End: at + k.Len(), Status: k.Status}
		l.Special = append(l.Special, moved)
		if moved.Is(vma.StatusVDSO) {
			var err error
			if l.Patches, err = v.old.Redirect(v.now, at); err != nil {
				return err
			}
		}
		at = moved.End
	}
	for i := range l.Patches {
		l.Patches[i].Offset += a.Start
	}
	l.OldVDSO = Range{a.Start, a.End}
	return nil
}
