package sinks

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"cryo/internal/image"
)

// Extract puts the next set of a stream into a directory, as it comes: nothing is kept in memory, and inventory.img is
// written last, when the commit has come. It reads no byte behind that, so that what follows can be extracted elsewhere. A set that
// builds on another one has to find it by the Parent of the directory's options. If it fails nothing is left; io.EOF says
// that there was no set.
func Extract(to *Dir, from ...io.Reader) error {
	frames := frameReader(pipeFrames{from[0]})
	if len(from) > 1 {
		frames = newShardReader(from)
	}
	if err := frames.begin(); err != nil {
		if err != io.EOF {
			err = fmt.Errorf("image stream: %w", err)
		}
		return err
	}
	e := &extractor{to: to}
	err := readSet(frames, e)
	if err == nil {
		err = e.checkBase()
	}
	if err == nil {
		err = to.commit(e.inventory.Bytes())
	}
	if err != nil {
		return errors.Join(fmt.Errorf("image stream: %w", err), to.Abort())
	}
	return nil
}

// extractor puts files into a directory, but the inventory.
type extractor struct {
	to        *Dir
	inventory kept
	parent    kept // what it builds on
	builds    bool
}

// kept is a file that is kept in memory: one that everybody knows to be small.
type kept struct{ bytes.Buffer }

func (k *kept) Write(b []byte) (int, error) {
	if k.Len()+len(b) > maxFrame {
		return 0, errors.New("a file that has to be small is not")
	}
	return k.Buffer.Write(b)
}

func (*kept) Close() error { return nil }

func (e *extractor) create(name string) (io.WriteCloser, error) {
	switch name {
	case inventoryName:
		return &e.inventory, nil
	case image.ParentID:
		e.builds = true
		return &e.parent, nil
	case parentName, inventoryTemp, SumsName:
		return nil, fmt.Errorf("a file %s does not belong into a stream", name)
	}
	return e.to.Create(name)
}

// checkBase compares the set the stream builds on with the one there is, and notes which that is. An encrypted set says it only
// to those who have the key: it is compared when it is read.
func (e *extractor) checkBase() error {
	base := e.to.base()
	switch {
	case e.builds && base == nil:
		return errors.New("its set builds on another one: extract that first, and name it by --prev-images-dir")
	case !e.builds && base != nil:
		return errors.New("its set builds on nothing: leave --prev-images-dir out")
	case !e.builds:
		return nil
	}
	if sealed, err := image.Sealed(base); err != nil {
		return err
	} else if !sealed {
		was, err := image.ReadInventory(base)
		if err != nil {
			return err
		}
		if id := was.GetDumpCriuRunId(); id != e.parent.String() {
			return fmt.Errorf("its set builds on that of run %.64q, and %s was made by run %.64q", e.parent.Bytes(), e.to.opt.Parent, id)
		}
	}
	return writeFile(e.to, image.ParentID, e.parent.Bytes())
}
