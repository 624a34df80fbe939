package stages

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"cryo/pipeline"
	"cryo/restorers"
)

// trackSegment removes a SysV segment that the restore is about to make, if it fails or is killed.
func (r *restorer) trackSegment(s *pipeline.Stage) func(id int, remove func() error) error {
	return func(id int, remove func() error) error {
		if err := r.startGuardian(); err != nil {
			return err
		}
		_, err := s.Undo().Push(fmt.Sprintf("remove SysV segment %d", id), 0, func(context.Context) error { return remove() },
			removeSegment{ID: id, Creator: os.Getpid()})
		return err
	}
}

// removeSegment removes a SysV segment that a restore has made: the one with this id, if it is the restore's.
type removeSegment struct{ ID, Creator int }

// UndoKind implements pipeline.UndoRecord.
func (removeSegment) UndoKind() string { return "remove-sysv" }

func doRemoveSegment(_ context.Context, data json.RawMessage, _ []int) error {
	var r removeSegment
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	return restorers.RemoveSysV(r.ID, r.Creator)
}
