package collectors

import (
	"errors"
	"fmt"
	"strconv"

	"cryo/internal/image"
	"cryo/internal/objid"
	"cryo/internal/sockdiag"

	bpfmap_data "github.com/checkpoint-restore/go-criu/v8/crit/images/bpfmap-data"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	file_lock "github.com/checkpoint-restore/go-criu/v8/crit/images/file-lock"
	pipe_data "github.com/checkpoint-restore/go-criu/v8/crit/images/pipe-data"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	sk_packet "github.com/checkpoint-restore/go-criu/v8/crit/images/sk-packet"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// Collector is the dump half of one kind of descriptor.
type Collector interface {
	// Match says whether the file is of this kind. Collectors are asked in the order of their table.
	Match(*Probe) bool
	// Collect makes the entry of a file that is met for the first time; id is its number. What it needs beside
	// the entry (contents, a second entry) it gives to Files. An [Obstacle] as error is noted and the pass goes on.
	Collect(f *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error)
}

// Asker is a Collector that has much to ask of a file.
type Asker interface {
	Collector
	// Ask asks it, before Collect, which finds what is returned as the probe's answer; fd is a duplicate. Several files are
	// asked at the same time.
	Ask(p *Probe, fd int) (any, error)
}

// Kind is one row of the table of kinds: the type its entries carry and who makes them.
type Kind struct {
	Type fdinfo.FdTypes
	Collector
}

// Files is the table of all files that the images name: descriptors, working and root directories, executables, mapped
// files. One open file description has one entry; a path that is named without a descriptor (exe, cwd, root, a mapping)
// has one entry for each inode and mount.
//
// Calls are made in task order by one goroutine, so that ids follow the tree and not the scheduler. Contents (of pipes,
// of deleted files) go to the image set at once and are never held in memory.
type Files struct {
	env     *Env
	kinds   []Kind
	entries []*fdinfo.FileEntry
	probes  []*Probe                  // descriptors of the task being collected
	types   map[uint32]fdinfo.FdTypes // what kind each id of a descriptor became
	named   map[inode]uint32
	remaps  []*remap_file_path.RemapFilePathEntry
	ghosts  map[inode]uint32 // number of the ghost file
	dead    map[int]bool     // pids of dead processes whose /proc files are open

	ttys     terminals
	unix     *unixSockets
	packets  packetSockets
	rings    map[uint64]ringFile         // io_urings by inode number
	netlinks map[uint32]sockdiag.Netlink // those the kernel lists; nil before the first is met
	skQueues *image.Output[*sk_packet.SkPacketEntry]
	self     *Task // the tool, while it holds descriptors in flight; nil before the first
	inFlight []int // those descriptors

	buildIDs map[fileVersion]buildIDWords // of files looked at

	fileLocks   []*file_lock.FileLockEntry
	lockHolders map[lockHolder]bool // whose locks are noted
	sentLocked  map[uint32]*Probe   // files in flight that have locks

	mounts        map[int][]*mountinfo.Info // by pid
	watchedGhosts []watchedGhost
	irmapped      map[inode]string // files met on the search for watched ones; dev as the kernel numbers it
	irmapNext     []string         // where to search on

	userfaults userfaults

	bpfStored map[uint32]bool // BPF maps whose contents are stored
	bpfData   *image.Output[*bpfmap_data.BpfmapDataEntry]

	pipes     map[uint64]bool // pipes whose contents are stored
	lastPath  string          // the last path that was looked up
	lastInode inode           // and where it led to
	pipeBuf   []byte          // contents of the pipe being stored
	peek      [2]int          // an empty pipe of the tool's own, of peekSize bytes
	peekSize  int             // 0: there is none
	pipesData *image.Output[*pipe_data.PipeDataEntry]
	fifoData  *image.Output[*pipe_data.PipeDataEntry]
}

// inode names a file as it is seen through one mount.
type inode struct {
	dev, ino uint64
	mnt      int
}

// NewFiles returns an empty table with the given kinds.
func NewFiles(env *Env, kinds []Kind) *Files {
	return &Files{
		env: env, kinds: kinds, types: map[uint32]fdinfo.FdTypes{}, named: map[inode]uint32{},
		ghosts: map[inode]uint32{}, dead: map[int]bool{}, pipes: map[uint64]bool{},
		ttys: newTerminals(), unix: newUnixSockets(), buildIDs: map[fileVersion]buildIDWords{},
		lockHolders: map[lockHolder]bool{}, sentLocked: map[uint32]*Probe{}, mounts: map[int][]*mountinfo.Info{}, bpfStored: map[uint32]bool{},
	}
}

// Collect turns the probed descriptors of a task into entries of its fdinfo image and of the table. What cannot be
// dumped becomes an obstacle and gets no entry. Which of them are closed on exec the task will say.
func (f *Files) Collect(t *Task, probes []*Probe) error {
	f.probes = probes
	t.FDs = make([]*fdinfo.FdinfoEntry, 0, len(probes))
	entries, words := make([]fdinfo.FdinfoEntry, len(probes)), make([]uint32, 3*len(probes))
	for i, p := range probes {
		if p.silent {
			if err := f.note(p, p.unsupported()); err != nil {
				return err
			}
			continue
		}
		id, _, err := f.number(p)
		if err != nil {
			return err
		}
		typ, known := f.types[id]
		if !known {
			continue // an obstacle
		}
		if err := f.locks(p, id); err != nil {
			return err
		}
		e, w := &entries[i], words[3*i:]
		w[0], w[2] = id, uint32(p.FD)
		e.Id, e.Flags, e.Fd, e.Type = &w[0], &w[1], &w[2], typ.Enum()
		t.FDs = append(t.FDs, e)
		if p.tellsPosition() {
			t.positions = append(t.positions, filePosition{p.FD, p.key(), p.Info.Pos})
		}
	}
	t.ids = f.env.IDs
	return nil
}

// number returns the id of a file, and collects it when it is met for the first time: fresh.
func (f *Files) number(p *Probe) (id uint32, fresh bool, err error) {
	ref := objid.Ref{Pid: p.Task.Pid, Index: p.FD}
	if p.Carrier == nil && p.tellsPosition() {
		ref.Hint = uint64(p.Info.Pos) + 1
	}
	id, fresh, err = f.env.IDs.ID(objid.File, p.key(), ref)
	if err != nil {
		return 0, false, fmt.Errorf("%s: %w", p.Where(), err)
	}
	if fresh {
		err = f.collect(p, id)
	}
	return id, fresh, err
}

// key tells files apart without asking the kernel to compare them. Only what cannot change may be part of it: the
// position, which moves if someone outside of the tree shares the file, is but a hint. All eventfds have the same inode, but ids (Linux 5.2).
func (p *Probe) key() objid.Key {
	key := objid.Key{Dev: p.Stat.Dev, Ino: p.Stat.Ino, Extra: uint64(p.Flags & (unix.O_ACCMODE | unix.O_PATH))}
	if p.FSType != unix.ANON_INODE_FS_MAGIC {
		return key
	}
	if id, err := strconv.ParseUint(p.Info.Field("eventfd-id"), 10, 32); err == nil {
		key.Extra |= id << 32
	}
	return key
}

// collect finds the kind of a file and adds its entry.
func (f *Files) collect(p *Probe, id uint32) error {
	for _, k := range f.kinds {
		if !k.Match(p) {
			continue
		}
		f.env.localizeOwner(p.Owner)
		entry, err := k.Collect(f, p, id)
		if err != nil {
			return f.note(p, err)
		}
		entry.Type, entry.Id = k.Type.Enum(), proto.Uint32(id)
		f.types[id] = k.Type
		f.Add(entry)
		return nil
	}
	return f.note(p, p.unsupported())
}

// note takes an obstacle off an error.
func (f *Files) note(p *Probe, err error) error {
	var o Obstacle
	if errors.As(err, &o) {
		f.env.Obstacles.Add(o)
		return nil
	}
	return fmt.Errorf("%s: %w", p.Where(), err)
}

// Add appends an entry to files.img.
func (f *Files) Add(e *fdinfo.FileEntry) { f.entries = append(f.entries, e) }

// FreshID returns an id for an entry that belongs to no descriptor.
func (f *Files) FreshID() uint32 { return f.env.IDs.Fresh(objid.File) }

// Named returns the id of the file that a link in /proc/PID leads to: "exe", "cwd", "root" or
// "map_files/START-END" (addresses in hex without 0x). Deleted files are remapped to ghosts or links as descriptors
// are; what cannot be remapped becomes an obstacle, and the id is then of no use but valid.
func (f *Files) Named(t *Task, link string) (uint32, error) {
	p := &Probe{Task: t, FD: -1, Entry: link, Owner: nobody}
	var stx unix.Statx_t
	// AT_STATX_DONT_SYNC: no question to a network filesystem's server.
	err := unix.Statx(t.Proc.Fd(), link, unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &stx)
	if err != nil {
		return 0, fmt.Errorf("statx %s: %w", t.Proc.Path(link), err)
	}
	key := inode{dev: unix.Mkdev(stx.Dev_major, stx.Dev_minor), ino: stx.Ino, mnt: int(stx.Mnt_id)}
	special := stx.Mode&unix.S_IFMT == unix.S_IFCHR || stx.Mode&unix.S_IFMT == unix.S_IFBLK
	if id, ok := f.named[key]; ok && !special {
		return id, nil
	}
	fd, err := p.Dup()
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &p.Stat); err != nil {
		return 0, fmt.Errorf("fstat %s: %w", t.Proc.Path(link), err)
	}
	if err := p.askFS(fd); err != nil {
		return 0, err
	}
	id := f.FreshID()
	f.named[key] = id
	reg, err := f.regular(p, id)
	if err != nil {
		return id, f.note(p, err)
	}
	f.Add(&fdinfo.FileEntry{Type: fdinfo.FdTypes_REG.Enum(), Id: proto.Uint32(id), Reg: reg})
	return id, nil
}

// Finish is for what can only be said when all files are known: sockets whose other end stays outside. Call it when all
// tasks are collected, before the obstacles are looked at.
func (f *Files) Finish() error {
	if err := f.env.IDs.Settle(); err != nil {
		return err
	}
	f.locksInFlight()
	f.checkWatchedGhosts()
	if err := f.env.NetNS.finish(f.env); err != nil {
		return err
	}
	if err := f.unix.finish(f); err != nil {
		return err
	}
	return f.finishTTYs()
}

// Write writes the images of the table: files.img, remap-fpath.img, filelocks.img, and completes those of contents.
func (f *Files) Write() error {
	set := f.env.Images
	errs := []error{image.Write(set, image.Files, 0, f.entries...)}
	if len(f.remaps) > 0 {
		errs = append(errs, image.Write(set, image.RemapFpath, 0, f.remaps...))
	}
	if len(f.fileLocks) > 0 {
		errs = append(errs, image.Write(set, image.FileLocks, 0, f.fileLocks...))
	}
	return errors.Join(append(errs, f.userfaults.write(set), f.writeTTYs(), f.Close())...)
}

// Close completes the images of contents; more than once does no harm.
func (f *Files) Close() error {
	var errs []error
	for _, out := range []**image.Output[*pipe_data.PipeDataEntry]{&f.pipesData, &f.fifoData} {
		if *out != nil {
			errs = append(errs, (*out).Close())
			*out = nil
		}
	}
	if f.bpfData != nil {
		errs = append(errs, f.bpfData.Close())
		f.bpfData = nil
	}
	if f.skQueues != nil {
		errs = append(errs, f.skQueues.Close())
		f.skQueues = nil
	}
	f.closeInFlight()
	f.closeOwnPipe()
	f.userfaults.close()
	return errors.Join(errs...)
}

// unsupported describes a descriptor that no kind matches.
func (p *Probe) unsupported() error {
	link, err := p.Link()
	if err != nil {
		return err
	}
	what := "a file of a kind that cannot be dumped (" + link + ")"
	if p.silent {
		what = "a file that tells nothing any more (" + link + ")"
	}
	switch p.mode() {
	case unix.S_IFSOCK:
		what = "a socket (" + link + "), a kind that cannot be dumped yet"
	case unix.S_IFCHR, unix.S_IFBLK:
		what = fmt.Sprintf("device %s (%d:%d), which keeps state in the kernel that cannot be dumped", link,
			unix.Major(p.Stat.Rdev), unix.Minor(p.Stat.Rdev))
	}
	return p.Obstacle(what, "close it before the dump")
}
