package sinks

import (
	"bytes"
	"errors"
	"slices"
	"sync"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
)

// Encrypted is a set whose files are encrypted and authenticated on their way to another sink; see package image. Whoever
// restores it needs the key.
type Encrypted struct {
	to   Sink
	key  image.Key
	seal *image.Seal

	parentID string

	mu    sync.Mutex
	names []string
}

// Encrypt makes a sink that encrypts. Page maps are made by Compress on top of it.
func Encrypt(to Sink, key image.Key) *Encrypted {
	return &Encrypted{to: to, key: key, seal: image.NewSeal(key)}
}

// Create makes an encrypted file.
func (e *Encrypted) Create(name string) (Writer, error) {
	e.mu.Lock()
	e.names = append(e.names, name)
	e.mu.Unlock()
	return e.create(name)
}

func (e *Encrypted) create(name string) (Writer, error) {
	f, err := e.to.Create(name)
	if err != nil {
		return nil, err
	}
	w, err := e.seal.Wrap(name, f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return w, nil
}

// Pagemap: pages cannot be put where they belong by others.
func (e *Encrypted) Pagemap(image.PagemapKind, uint64) (Pagemap, error) {
	return nil, errors.New("pages are encrypted by way of Compress")
}

// Commit writes the list of all files, and then the inventory, which is encrypted as well.
func (e *Encrypted) Commit(inv *inventory.InventoryEntry) error {
	plain, err := encodeInventory(inv)
	if err != nil {
		return err
	}
	if e.parentID != "" {
		if err := writeFile(e, image.ParentID, []byte(e.parentID)); err != nil {
			return err
		}
	}
	slices.Sort(e.names)
	name, list := e.seal.Manifest(append(e.names, inventoryName))
	f, err := e.create(name)
	if err == nil {
		_, err = f.Write(list)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		return err
	}
	var sealed bytes.Buffer
	w, err := e.seal.Wrap(inventoryName, nopCloser{&sealed})
	if err == nil {
		_, err = w.Write(plain)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return err
	}
	return e.to.(rawCommitter).commit(sealed.Bytes())
}

type nopCloser struct{ *bytes.Buffer }

func (nopCloser) Close() error { return nil }

// rawCommitter is a sink that can make a set valid with an inventory that is encoded already.
type rawCommitter interface{ commit(inventory []byte) error }

// encodeInventory is what Commit of the sinks that are rawCommitters begins with.
func encodeInventory(inv *inventory.InventoryEntry) ([]byte, error) {
	var b bytes.Buffer
	enc := image.NewEncoder(&b, inventoryName, image.Inventory.Type)
	err := errors.Join(enc.Entry(inv), enc.Flush())
	return b.Bytes(), err
}

// Abort implements Sink.
func (e *Encrypted) Abort() error { return e.to.Abort() }

// Close implements Sink.
func (e *Encrypted) Close() error { return e.to.Close() }

// NameParent notes which run made the set that this one builds on, in a file that is encrypted like all others.
func (e *Encrypted) NameParent(id string) { e.parentID = id }

// base implements chained: the set is encrypted with the same key.
func (e *Encrypted) base() image.Source {
	if s, ok := e.to.(chained); ok {
		return s.base()
	}
	return nil
}

var _ Sink = (*Encrypted)(nil)
