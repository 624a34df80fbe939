package restorers

import (
	"fmt"

	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"golang.org/x/sys/unix"
)

// fownOf is who gets the signals of a file.
func fownOf(e *fdinfo.FileEntry) *fown.FownEntry {
	for _, m := range []interface{ GetFown() *fown.FownEntry }{
		e.GetReg(), e.GetPipe(), e.GetIsk(), e.GetNlsk(), e.GetEfd(), e.GetEpfd(), e.GetSgfd(), e.GetTfd(), e.GetIfy(),
		e.GetFfy(), e.GetUsk(), e.GetTty(), e.GetMemfd(),
	} {
		if o := m.GetFown(); o != nil {
			return o
		}
	}
	return nil
}

// Kinds of owners in images (the kernel's enum pid_type) and in struct f_owner_ex.
var ownerKinds = map[uint32]uint32{0: fOwnerPID, 1: fOwnerPID, 2: fOwnerPgrp}

// linux/fcntl.h.
const (
	fOwnerPID  = 1
	fOwnerPgrp = 2

	fSetOwnEx = 15
	fSetSig   = 10
)

// emitOwner sets the owner of the file at fd. The kernel remembers the ids of who sets it, so the task takes them on.
func emitOwner(b *remote.Builder, fd int, o *fown.FownEntry) error {
	kind, ok := ownerKinds[o.GetPidType()]
	if !ok {
		return fmt.Errorf("fown.pid_type %d is not known", o.GetPidType())
	}
	other := o.GetUid() != 0 || o.GetEuid() != 0
	keep := remote.Imm(-1)
	if other {
		b.Call(unix.SYS_SETRESUID, remote.Imm(o.GetUid()), remote.Imm(o.GetEuid()), keep).Must().Discard()
	}
	own := words32([]uint32{kind, o.GetPid()})
	b.Call(unix.SYS_FCNTL, remote.Imm(fd), remote.Imm(fSetOwnEx), b.Bytes(own)).Must().Discard()
	if other {
		b.Call(unix.SYS_SETRESUID, remote.Imm(0), remote.Imm(0), keep).Must().Discard()
	}
	if o.GetSignum() != 0 {
		b.Call(unix.SYS_FCNTL, remote.Imm(fd), remote.Imm(fSetSig), remote.Imm(o.GetSignum())).Must().Discard()
	}
	return nil
}
