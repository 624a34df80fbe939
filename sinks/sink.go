// Package sinks holds the places an image set is written to.
//
//   - Dir: a directory, as criu 4.2 writes it (same names, same bytes);
//   - PageServer: a directory for the metadata and criu's page server protocol for the pages; Serve is the
//     other end of it;
//   - Streamer: the sockets of criu-image-streamer (--stream);
//   - Stream: one framed stream with checksums and a commit trailer (-D -), whose format frames.go describes;
//     ReadStream and Extract are the other end of it.
//
// A set becomes valid by one step, the last: Commit puts inventory.img there when everything else is complete.
// A run that fails before it calls Abort, and nothing is left. Sets on the way back are image.Sources; those of
// streams live here beside their writers.
//
// Page bytes are moved once: Direct hands out the file and the offset where the kernel, or the task itself,
// may write them. Where there is no such file (a socket, a pipe) they go through Write.
package sinks

import (
	"errors"
	"fmt"
	"io"
	"os"

	"cryo/internal/image"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
)

// Writer is one image file being written.
type Writer = image.Writer

// Sink is where a dump goes. Create and Pagemap may be called concurrently.
type Sink interface {
	// Create makes an image file: mode 0600, never through a link, in place of one that an older run left.
	Create(name string) (Writer, error)
	// Pagemap opens the page map of an object and its pages file. The ids of pages files follow the order of
	// the calls. One goroutine fills one page map from its first Add to its Close without waiting for another:
	// a page server takes them one after the other.
	Pagemap(kind image.PagemapKind, id uint64) (Pagemap, error)
	// Commit makes the set valid, when all files are closed: inventory.img comes last and by one step.
	Commit(inv *inventory.InventoryEntry) error
	// Abort removes all that this run created. It may be called after a failed Commit, after one that did not
	// fail, which it takes back where that is possible, and twice.
	Abort() error
	// Close gives back what the sink holds and changes nothing.
	Close() error
}

// Pagemap is one object whose pages are stored: runs in ascending order, and the bytes of those that are
// PEPresent in the same order.
type Pagemap interface {
	// Add appends a run of pages at vaddr with flags image.PE*. Neighbours with equal flags become one entry. The
	// bytes of a run that is PEPresent come before the next Add, unless they go where Direct says.
	Add(vaddr, pages uint64, flags uint32) error
	// HasParent says whether runs may be PEParent: the set before this one has the object too.
	HasParent() (bool, error)
	// Direct tells the file and the offset where the next bytes belong, for whoever can write there without
	// the detour through Write; ok is false where there is no such file.
	Direct() (f *os.File, off int64, ok bool)
	// Reserve sets the next n bytes aside and returns their offset in Direct's file, so that several workers
	// can fill one. They count as written.
	Reserve(n int64) (off int64)
	// Advance tells that n bytes were written at the offset Direct returned.
	Advance(n int64)
	// Write appends the next bytes.
	io.Writer
	// Close completes page map and pages; as many bytes must have been written as runs announced.
	Close() error
}

// runs checks and merges what is added to a page map; what is common to all of them.
type runs struct {
	name    string
	last    image.Run // not yet emitted; no pages: there is none
	present int64     // bytes that the runs announce
	emit    func(image.Run) error
}

func (r *runs) add(vaddr, pages uint64, flags uint32) error {
	run := image.Run{Addr: vaddr, Pages: pages, Flags: flags}
	switch {
	case pages == 0:
		return nil
	case vaddr%image.PageSize != 0 || pages > (1<<63)/image.PageSize || run.End() < vaddr:
		return fmt.Errorf("%s: %d pages at %#x are no pages", r.name, pages, vaddr)
	case r.last.Pages != 0 && vaddr < r.last.End():
		return fmt.Errorf("%s: pages at %#x come after %#x", r.name, vaddr, r.last.End())
	}
	if flags&image.PEPresent != 0 {
		r.present += int64(run.Bytes())
	}
	if r.last.Pages != 0 && r.last.End() == vaddr && r.last.Flags == flags {
		r.last.Pages += pages
		return nil
	}
	err := r.flush()
	r.last = run
	return err
}

func (r *runs) flush() error {
	if r.last.Pages == 0 {
		return nil
	}
	run := r.last
	// The end is kept to check the order of what follows.
	r.last = image.Run{Addr: run.End()}
	return r.emit(run)
}

// finish emits the last run and compares announced with written bytes.
func (r *runs) finish(written int64) error {
	err := r.flush()
	if written != r.present {
		err = errors.Join(err, fmt.Errorf("%s: %d bytes of pages were written where the runs announce %d", r.name, written, r.present))
	}
	return err
}
