package restorers

import (
	"fmt"

	"cryo/arch"
	"cryo/internal/image"
	"cryo/internal/image/userfaultfd"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fs"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/mm"
	remap_file_path "github.com/checkpoint-restore/go-criu/v8/crit/images/remap-file-path"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/seccomp"
)

// Task states as images carry them.
const (
	StateAlive   = 1
	StateDead    = 2
	StateStopped = 3
	StateZombie  = 6 // older criu's word for StateDead
)

// Set is a decoded image set, memory contents left where they are.
type Set struct {
	Source    image.Source
	Inventory *inventory.InventoryEntry
	Tasks     []*Task // in the order of pstree.img; the first is the root
	ByPID     map[int]*Task
	Files     map[uint32]*fdinfo.FileEntry
	Remaps    map[uint32]*remap_file_path.RemapFilePathEntry // by the id of the file that is remapped
	Seccomp   []*seccomp.SeccompFilter                       // all filters of the set

	Userfaults map[uint32]*userfaultfd.UserfaultfdEntry // by the id of the file
}

// MaxID is the highest id of a task or thread.
func (s *Set) MaxID() int {
	most := 0
	for _, t := range s.Tasks {
		for _, th := range t.Threads {
			most = max(most, th.TID)
		}
	}
	return most
}

// Task is one process of the set.
type Task struct {
	PID, PPID, PGID, SID int

	Threads []*Thread // the leader first
	Core    *criu_core.CoreEntry
	IDs     *criu_core.TaskKobjIdsEntry
	MM      *mm.MmEntry
	FS      *fs.FsEntry
	FDs     []*fdinfo.FdinfoEntry
	Layout  *Layout // the mappings of MM; nil for a zombie
	fdinfo  uint64  // id of the image FDs come from

	Parent   *Task
	Children []*Task
}

// Thread is one thread of a task.
type Thread struct {
	TID  int
	Core *criu_core.CoreEntry
	// State is what the thread has in the processor, taken out of Core; nil for a zombie.
	State *arch.State
}

// Dead says whether the task is a zombie.
func (t *Task) Dead() bool {
	s := t.Core.GetTc().GetTaskState()
	return s == StateDead || s == StateZombie
}

func (t *Task) String() string { return fmt.Sprintf("task %d (%s)", t.PID, t.Core.GetTc().GetComm()) }
