package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"google.golang.org/protobuf/proto"
)

// Creator makes the files of a new image set. sinks.Sink is one.
type Creator interface {
	// Create makes a file that must not exist yet, mode 0600. Close reports what went wrong on the way.
	Create(name string) (Writer, error)
}

// Writer is one image file being written.
type Writer interface {
	io.Writer
	// Close completes the file.
	Close() error
}

// maxEntries bounds what ReadAll keeps; more are only to be read as a stream.
const maxEntries = 16 << 20

// Output is an image of one kind being written to a set.
type Output[M proto.Message] struct {
	*Encoder
	w Writer
}

// Create starts the image of this kind and id in set. The caller closes it.
func Create[M proto.Message](set Creator, k Kind[M], id uint64) (*Output[M], error) {
	name := k.File(id)
	w, err := set.Create(name)
	if err != nil {
		return nil, err
	}
	return &Output[M]{NewEncoder(w, name, k.Type), w}, nil
}

// Close flushes and closes the image.
func (o *Output[M]) Close() error { return errors.Join(o.Flush(), o.w.Close()) }

// Write writes a whole image: one entry a message. id counts only where the file name has one.
func Write[M proto.Message](set Creator, k Kind[M], id uint64, entries ...M) error {
	o, err := Create(set, k, id)
	if err != nil {
		return err
	}
	for _, m := range entries {
		if err := o.Entry(m); err != nil {
			return errors.Join(err, o.w.Close())
		}
	}
	return o.Close()
}

// Open starts reading the image of this kind and id; fs.ErrNotExist when the set has none.
func Open[M proto.Message](src Source, k Kind[M], id uint64) (*Decoder, io.Closer, error) {
	name := k.File(id)
	f, err := src.Open(name)
	if err != nil {
		return nil, nil, err
	}
	d, err := NewDecoder(f, name, k.Type)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return d, f, nil
}

// Read returns the only entry of an image: none or two are an error.
func Read[M proto.Message](src Source, k Kind[M], id uint64) (M, error) {
	var only, none M
	n := 0
	for m, err := range Entries(src, k, id) {
		if err != nil {
			return none, err
		}
		if n++; n > 1 {
			return none, Errorf(k.File(id), 1, "there is to be only one entry")
		}
		only = m
	}
	if n == 0 {
		return none, Errorf(k.File(id), -1, "there is no entry")
	}
	return only, nil
}

// ReadAll returns all entries of an image. Where the set has no such image the error is fs.ErrNotExist; see
// ReadOptional.
func ReadAll[M proto.Message](src Source, k Kind[M], id uint64) ([]M, error) {
	var all []M
	for m, err := range Entries(src, k, id) {
		if err != nil {
			return nil, err
		}
		if len(all) == maxEntries {
			return nil, Errorf(k.File(id), maxEntries, "more entries than are accepted")
		}
		all = append(all, m)
	}
	return all, nil
}

// ReadOptional is ReadAll for an image that is left out when it would be empty.
func ReadOptional[M proto.Message](src Source, k Kind[M], id uint64) ([]M, error) {
	all, err := ReadAll(src, k, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return all, err
}

// Entries goes over the entries of an image as a stream, each a new message. The last pair holds the error,
// if there was one. Payloads are skipped. Kinds whose first entry is another message (page maps, ghost files)
// are not for it.
func Entries[M proto.Message](src Source, k Kind[M], id uint64) iter.Seq2[M, error] {
	return func(yield func(M, error) bool) {
		var none M
		d, f, err := Open(src, k, id)
		if err != nil {
			yield(none, err)
			return
		}
		defer f.Close()
		defer d.release()
		for {
			m, err := d.Next()
			if err == io.EOF {
				return
			}
			if err != nil {
				yield(none, err)
				return
			}
			e, ok := m.(M)
			if !ok {
				yield(none, fmt.Errorf("image %s has a head of its own: read it by its own function", d.file))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// The img_version of an inventory. Version 1 had one magic number a file and is not read.
const (
	// FormatV1_1 is what this package writes.
	FormatV1_1 = 2
	// FormatV1_2 is what criu writes after 4.2 when pages are compressed; see Expand.
	FormatV1_2 = 3
	// FormatShared is our own: v1.1 or v1.2 with pages that tasks share stored once. criu refuses it.
	FormatShared = 1001
)

// ErrNoInventory is what CheckInventory returns for a set that is none.
var ErrNoInventory = errors.New("no inventory.img")

// ReadInventory reads inventory.img, the file that makes a set valid.
func ReadInventory(src Source) (*inventory.InventoryEntry, error) {
	inv, err := Read(src, Inventory, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w in %s: the dump that made it did not finish, or %[2]s is no image set", ErrNoInventory, src)
	}
	if err != nil {
		return nil, err
	}
	if v := inv.GetImgVersion(); v != FormatV1_1 && v != FormatV1_2 && v != FormatShared {
		return nil, Errorf(Inventory.File(0), 0, "img_version is %d; only the formats v1.1 (%d) and v1.2 (%d) are read", v, FormatV1_1, FormatV1_2)
	}
	return inv, nil
}
