package restorers

import (
	"fmt"

	"cryo/internal/image"
	"cryo/internal/remote"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fown"
	"golang.org/x/sys/unix"
)

// fownOf is who is told by a signal when a file is ready, nil for a file that cannot have an owner.
func fownOf(e *fdinfo.FileEntry) *fown.FownEntry {
	for _, m := range []interface{ GetFown() *fown.FownEntry }{
		e.GetReg(), e.GetPipe(), e.GetIsk(), e.GetNlsk(), e.GetPsk(), e.GetEfd(), e.GetEpfd(), e.GetSgfd(), e.GetTfd(),
		e.GetIfy(), e.GetFfy(), e.GetUsk(), e.GetTty(), e.GetMemfd(), e.GetBpf(), e.GetPidfd(),
	} {
		if o := m.GetFown(); o != nil {
			return o
		}
	}
	return nil
}

// flagsOf are the flags of an open file.
func flagsOf(e *fdinfo.FileEntry) uint32 {
	for _, m := range []interface{ GetFlags() uint32 }{
		e.GetReg(), e.GetPipe(), e.GetIsk(), e.GetNlsk(), e.GetPsk(), e.GetEfd(), e.GetEpfd(), e.GetSgfd(), e.GetTfd(),
		e.GetIfy(), e.GetFfy(), e.GetUsk(), e.GetTty(), e.GetMemfd(), e.GetBpf(), e.GetPidfd(),
	} {
		if f := m.GetFlags(); f != 0 {
			return f
		}
	}
	return 0
}

// Kinds of owners (linux/fcntl.h), in images and in struct f_owner_ex.
const (
	ownerTID  = 0
	ownerPID  = 1
	ownerPgrp = 2
)

// checkOwner refuses an owner that the kernel would not take.
func checkOwner(e *fdinfo.FileEntry) error {
	o := fownOf(e)
	if o.GetPidType() > ownerPgrp || o.GetPid() > maxPID || o.GetSignum() > 64 {
		return image.Errorf(image.Files.File(0), -1, "id %d: fown with pid_type %d, pid %d, signum %d is no owner of a file",
			e.GetId(), o.GetPidType(), o.GetPid(), o.GetSignum())
	}
	return nil
}

// owners sets who gets the signals of the task's files; threads that are no leaders, as owners, in a level of their own.
func (s *Slots) owners(threads bool) error {
	for _, f := range s.t.owns {
		o := fownOf(f.Entry)
		async := flagsOf(f.Entry)&unix.O_ASYNC != 0 && flagsOf(f.Entry)&unix.O_PATH == 0
		if (o.GetPid() == 0 && o.GetSignum() == 0 && !async) || (o.GetPidType() == ownerTID && o.GetPid() != 0) != threads {
			continue
		}
		fd := s.Number(f.ID)
		if fd < 0 {
			return fmt.Errorf("%s: file %d has gone", s.t.Node, f.ID)
		}
		emitOwner(s.b, fd, o)
		if async {
			s.b.Call(unix.SYS_FCNTL, remote.Imm(fd), remote.Imm(unix.F_SETFL), remote.Imm(flagsOf(f.Entry))).Must().Discard()
		}
	}
	return nil
}

// emitNoOwner makes a file signal nobody.
func emitNoOwner(b *remote.Builder, fd remote.Arg) {
	b.Call(unix.SYS_FCNTL, fd, remote.Imm(unix.F_SETOWN_EX), b.Bytes(words32([]uint32{ownerPID, 0}))).Must().Discard()
}

func emitOwner(b *remote.Builder, fd int, o *fown.FownEntry) {
	if o.GetSignum() != 0 {
		b.Call(unix.SYS_FCNTL, remote.Imm(fd), remote.Imm(unix.F_SETSIG), remote.Imm(o.GetSignum())).Must().Discard()
	}
	if o.GetPid() == 0 {
		return
	}
	// The kernel notes the ids of who sets the owner: signals are sent in their name. The saved uid stays, and with it
	// the way back.
	other := o.GetUid() != 0 || o.GetEuid() != 0
	if other {
		b.Call(unix.SYS_SETRESUID, remote.Imm(o.GetUid()), remote.Imm(o.GetEuid()), remote.Imm(-1)).Must().Discard()
	}
	ex := b.Bytes(words32([]uint32{o.GetPidType(), o.GetPid()}))
	b.Call(unix.SYS_FCNTL, remote.Imm(fd), remote.Imm(unix.F_SETOWN_EX), ex).Must().Discard()
	if other {
		b.Call(unix.SYS_SETRESUID, remote.Imm(0), remote.Imm(0), remote.Imm(-1)).Must().Discard()
	}
}
