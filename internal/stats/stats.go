// Package stats counts what a dump or restore does and writes it the way container engines read it: the images
// stats-dump and stats-restore in the work directory, and criu's lines of --display-stats.
package stats

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"cryo/internal/image"

	pb "github.com/checkpoint-restore/go-criu/v8/crit/images/stats"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Span is a length of time that is measured once or in parts. It is safe for concurrent use; parts that overlap are
// added up.
type Span struct{ total atomic.Int64 }

// Start begins a part; the function it returns ends it.
func (s *Span) Start() (stop func()) {
	start := time.Now()
	return func() { s.Add(time.Since(start)) }
}

// Add adds a measured part.
func (s *Span) Add(d time.Duration) { s.total.Add(int64(d)) }

// micros is the span in microseconds, as the images have it.
func (s *Span) micros() *uint32 {
	us := s.total.Load() / int64(time.Microsecond)
	return proto.Uint32(uint32(min(us, 1<<32-1)))
}

// Dump counts one dump. Its zero value is ready, and its fields may be used concurrently.
type Dump struct {
	Freezing Span // stopping the tree
	Frozen   Span // the tree stands still
	MemDump  Span // finding and fetching pages
	MemWrite Span // writing pages

	PagesScanned, PagesSkippedParent, PagesWritten, PagesLazy atomic.Uint64
	SharedScanned, SharedSkippedParent, SharedWritten         atomic.Uint64 // pages of shared memory
	PagePipes, PagePipeBufs                                   atomic.Uint64
}

// Entry is the image's message.
func (d *Dump) Entry() *pb.StatsEntry {
	count := func(c *atomic.Uint64) *uint64 { return proto.Uint64(c.Load()) }
	return &pb.StatsEntry{Dump: &pb.DumpStatsEntry{
		FreezingTime:         d.Freezing.micros(),
		FrozenTime:           d.Frozen.micros(),
		MemdumpTime:          d.MemDump.micros(),
		MemwriteTime:         d.MemWrite.micros(),
		IrmapResolve:         proto.Uint32(0),
		PagesScanned:         count(&d.PagesScanned),
		PagesSkippedParent:   count(&d.PagesSkippedParent),
		PagesWritten:         count(&d.PagesWritten),
		PagesLazy:            count(&d.PagesLazy),
		PagePipes:            count(&d.PagePipes),
		PagePipeBufs:         count(&d.PagePipeBufs),
		ShpagesScanned:       count(&d.SharedScanned),
		ShpagesSkippedParent: count(&d.SharedSkippedParent),
		ShpagesWritten:       count(&d.SharedWritten),
	}}
}

// Restore counts one restore. Its zero value is ready, and its fields may be used concurrently.
type Restore struct {
	Forking Span // making the tasks
	Restore Span // the whole

	PagesCompared, PagesSkippedCOW, PagesRestored atomic.Uint64
}

// Entry is the image's message.
func (r *Restore) Entry() *pb.StatsEntry {
	return &pb.StatsEntry{Restore: &pb.RestoreStatsEntry{
		PagesCompared:   proto.Uint64(r.PagesCompared.Load()),
		PagesSkippedCow: proto.Uint64(r.PagesSkippedCOW.Load()),
		ForkingTime:     r.Forking.micros(),
		RestoreTime:     r.Restore.micros(),
		PagesRestored:   proto.Uint64(r.PagesRestored.Load()),
	}}
}

// Write puts the image of e in directory dir, in place of an older one.
func Write(dir string, e *pb.StatsEntry) error {
	kind := image.StatsDump
	if e.Restore != nil {
		kind = image.StatsRestore
	}
	name := kind.File(0)
	f, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return fmt.Errorf("statistics: %w", err)
	}
	enc := image.NewEncoder(f, name, kind.Type)
	err = errors.Join(enc.Entry(e), enc.Flush(), f.Close())
	if err == nil {
		err = unix.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("statistics: %w", err)
	}
	return nil
}

// Print writes the lines of --display-stats.
func Print(w io.Writer, e *pb.StatsEntry) error {
	p := printer{w: w}
	if d := e.Dump; d != nil {
		p.line("Displaying dump stats:")
		p.time("Freezing time", d.GetFreezingTime())
		p.time("Frozen time", d.GetFrozenTime())
		p.time("Memory dump time", d.GetMemdumpTime())
		p.time("Memory write time", d.GetMemwriteTime())
		p.time("IRMAP resolve time", d.GetIrmapResolve())
		p.pages("Memory pages scanned", d.GetPagesScanned())
		p.pages("Memory pages skipped from parent", d.GetPagesSkippedParent())
		p.pages("Memory pages written", d.GetPagesWritten())
		p.pages("Lazy memory pages", d.GetPagesLazy())
	}
	if r := e.Restore; r != nil {
		p.line("Displaying restore stats:")
		p.pages("Pages compared", r.GetPagesCompared())
		p.pages("Pages skipped COW", r.GetPagesSkippedCow())
		p.pages("Pages restored", r.GetPagesRestored())
		p.time("Restore time", r.GetRestoreTime())
		p.time("Forking time", r.GetForkingTime())
	}
	return p.err
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format+"\n", args...)
	}
}

func (p *printer) time(what string, us uint32) { p.line("%s: %d us", what, us) }
func (p *printer) pages(what string, n uint64) { p.line("%s: %d (0x%x)", what, n, n) }
