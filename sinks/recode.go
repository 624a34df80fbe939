package sinks

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
)

// Recode stores the pages of the set in a directory in another way: compressed, or plainly again. The sets it builds on stay as
// they are. While it works the new files are in a directory beside the old ones; when they take their place the set is not valid
// for a moment, so that nobody takes half of each for a whole.
func Recode(dir string, codec image.Codec, block int) error {
	set, err := image.OpenDir(dir)
	if err != nil {
		return err
	}
	defer set.Close()
	inv, err := image.ReadInventory(set)
	if err != nil {
		return err
	}
	src, err := image.Expand(set)
	if err != nil {
		return err
	}
	temp, err := os.MkdirTemp(dir, "recode-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	opt := DirOptions{}
	if up, err := set.Parent(); err != nil {
		return err
	} else if up != nil {
		up.Close()
		opt.Parent = "../parent"
	}
	plain, err := NewDir(temp, opt)
	if err != nil {
		return err
	}
	defer plain.Close()
	to := Sink(plain)
	if inv.GetImgVersion() == image.FormatV1_2 {
		inv.ImgVersion = ptr(uint32(image.FormatV1_1))
	}
	if codec != image.Plain {
		if to, err = Compress(plain, codec, block); err != nil {
			return err
		}
	}
	old, err := objects(set)
	if err != nil {
		return err
	}
	for _, o := range old {
		if err := recodeObject(src, to, o.kind, o.id); err != nil {
			return err
		}
	}
	if err := to.Commit(inv); err != nil {
		return err
	}
	return exchange(set, temp, old)
}

func ptr[T any](v T) *T { return &v }

// recodeBuffer is several blocks of a compressed file.
const recodeBuffer = 4 << 20

// recodeObject moves the pages of one object.
func recodeObject(src image.Source, to Sink, kind image.PagemapKind, id uint64) (err error) {
	m, err := image.ReadPagemap(src, kind, id)
	if err != nil {
		return err
	}
	defer m.Close()
	pages, err := src.OpenPages(m.PagesID)
	if err != nil {
		return err
	}
	defer pages.Close()
	p, err := to.Pagemap(kind, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	off, buf := int64(0), make([]byte, recodeBuffer)
	for run, err := range m.Runs() {
		if err != nil {
			return err
		}
		if err := p.Add(run.Addr, run.Pages, run.Flags); err != nil {
			return err
		}
		if run.Flags&image.PEPresent == 0 {
			continue
		}
		n := int64(run.Bytes())
		if _, err := io.CopyBuffer(struct{ io.Writer }{p}, io.NewSectionReader(pages, off, n), buf); err != nil {
			return err
		}
		if off += n; off > pages.Size {
			return fmt.Errorf("%s: pages %x-%x are past the end of %s", kind.Kind().File(id), run.Addr, run.End(), image.PagesFile(m.PagesID))
		}
	}
	return nil
}

// exchange puts the files of one directory into a set, the inventory last.
func exchange(set *image.Dir, temp string, old []object) error {
	dir := filepath.Dir(temp)
	if err := errors.Join(os.Remove(filepath.Join(dir, inventoryName)), set.Remove(SumsName)); err != nil {
		return err
	}
	for _, o := range old {
		if err := os.Remove(filepath.Join(dir, image.PagesFile(o.pages))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	names, err := os.ReadDir(temp)
	if err != nil {
		return err
	}
	for _, e := range names {
		if !strings.HasSuffix(e.Name(), ".img") || e.Name() == inventoryName {
			continue
		}
		if err := os.Rename(filepath.Join(temp, e.Name()), filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return unix.Renameat(unix.AT_FDCWD, filepath.Join(temp, inventoryName), set.Fd(), inventoryName)
}
