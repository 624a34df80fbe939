package arch

import (
	"fmt"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
)

// State is everything a thread has in the processor.
type State struct {
	Regs   Regs
	XState []byte // register set XStateRegSet; zeroes at its end may be left out, see TrimXState
	Extra  Extra  // what this architecture has besides
}

// ToCore puts a thread's state into its core image. A system call that was interrupted by the stop is wound back as the
// kernel would do, so that it is made again after the restore; see Regs.FixRestart. clearTID is the address of
// set_tid_address.
func (s *State) ToCore(core *criu_core.CoreEntry, clearTID uint64) error {
	core.Mtype = March.Enum()
	return s.toCore(core, clearTID)
}

// FromCore is the state of a thread in a core image, laid out for this processor. It fails if the image is of another
// architecture, is damaged, or has state this processor cannot hold.
func FromCore(core *criu_core.CoreEntry) (*State, error) {
	if core.GetMtype() != March {
		return nil, fmt.Errorf("the image is of a %v task, this machine runs %v", core.GetMtype(), March)
	}
	s := new(State)
	if err := s.fromCore(core); err != nil {
		return nil, fmt.Errorf("core image: %w", err)
	}
	return s, nil
}

// TakeCore is FromCore that takes the state out of the image: it is most of it. The address of set_tid_address stays.
func TakeCore(core *criu_core.CoreEntry) (*State, error) {
	s, err := FromCore(core)
	if err == nil {
		s.XState = TrimXState(s.XState)
		dropState(core)
	}
	return s, err
}
