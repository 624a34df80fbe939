package restorers

import (
	"errors"
	"fmt"
	"io/fs"

	"cryo/internal/image"

	"golang.org/x/sys/unix"
)

// PIDNS is the pid namespace of a set. All ids in images are those of that namespace; the tool calls a task by another one
// ([Node.Host]) unless the namespace is its own.
//
// Where it is not the one the dump's tool was in it is made anew: the root is cloned with CLONE_NEWPID (Linux 2.6.24) and is
// its init, and whoever the tasks clone is born in there. No id is taken in it, and none of the tool's is in the way.
type PIDNS struct {
	New bool // it is one to be made
}

// initPID is the first process of a pid namespace, with which all others end.
const initPID = 1

// OwnPIDNS says whether the set has a pid namespace of its own: another one than the dump's tool was in.
func (s *Set) OwnPIDNS() bool {
	id, own := s.Tasks[0].IDs.GetPidNsId(), s.Inventory.GetRootIds()
	return id != 0 && own != nil && id != own.GetPidNsId()
}

// HasPIDNS is OwnPIDNS of a set that is not read whole.
func HasPIDNS(src image.Source) (bool, error) {
	s := &Set{Source: src, ByPID: map[int]*Task{}}
	var err error
	if s.Inventory, err = image.ReadInventory(src); err != nil {
		return false, err
	}
	if err := s.readTree(); err != nil {
		return false, err
	}
	s.Tasks[0].IDs, err = image.Read(src, image.IDs, uint64(s.Tasks[0].PID))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // of a root that is dead
	}
	return s.OwnPIDNS(), err
}

// PlanPIDNS finds out which namespace the set wants, and refuses one that cannot be made.
func PlanPIDNS(s *Set) (*PIDNS, error) {
	root, n := s.Tasks[0], &PIDNS{New: s.OwnPIDNS()}
	outside, err := image.ReadOptional(s.Source, image.Pidns, uint64(root.IDs.GetPidNsId()))
	if err != nil {
		return nil, err
	}
	switch {
	case len(outside) > 0 && outside[0].GetExtKey() != "":
		return nil, fmt.Errorf("the pid namespace of the tree stayed outside of the dump (%s): to restore into one is not built yet", outside[0].GetExtKey())
	case n.New && root.PID != initPID:
		return nil, fmt.Errorf("the root, %s, is not the init of its pid namespace: a new one cannot begin with it", root)
	case !n.New && root.PID == initPID:
		return nil, errors.New("the root has pid 1, but the set has no pid namespace of its own, whose init that could be")
	}
	return n, nil
}

// CloneFlags are those that make the root.
func (n *PIDNS) CloneFlags() uint64 {
	if n.New {
		return unix.CLONE_NEWPID
	}
	return 0
}
