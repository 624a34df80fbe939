package restorers

import (
	"encoding/binary"
	"fmt"

	"cryo/internal/remote"

	criu_sa "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-sa"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/siginfo"
	"golang.org/x/sys/unix"
)

const (
	numSignals      = 64
	sizeofSigset    = 8
	sizeofSigInfo   = 128
	maxQueued       = 1 << 20 // a queue longer than any RLIMIT_SIGPENDING in use is no queue
	altStackDisable = 2       // SS_DISABLE
	altStackOn      = 1       // SS_ONSTACK: a state the kernel reports, not a flag it takes
	uapiSigactBytes = 32
)

// actionSignals are the signals that can have an action, in the order of the image.
var actionSignals = func() (list []unix.Signal) {
	for sig := unix.Signal(1); sig <= numSignals; sig++ {
		if sig != unix.SIGKILL && sig != unix.SIGSTOP {
			list = append(list, sig)
		}
	}
	return list
}()

func checkSignalActions(e *StateEmit) error {
	if !e.Leader() {
		return nil
	}
	if n, want := len(e.Task.GetTc().GetSigactions()), len(actionSignals); n != 0 && n != want {
		return fmt.Errorf("%d signal actions where there are %d signals", n, want)
	}
	for _, sa := range e.Task.GetTc().GetSigactions() {
		if sa.GetCompatSigaction() {
			return fmt.Errorf("a signal action of a 32-bit program: those are not restored yet")
		}
	}
	return nil
}

// emitSignalActions sets every action that is not the default one: an exec'ed task starts with defaults, and what its
// forker had was reset on the way.
func emitSignalActions(e *StateEmit) {
	actions := e.Task.GetTc().GetSigactions()
	for i, sig := range actionSignals {
		if i >= len(actions) {
			return
		}
		a := actions[i]
		if sig != unix.SIGCHLD && a.GetSigaction() == 0 && a.GetFlags() == 0 && a.GetRestorer() == 0 && a.GetMask() == 0 {
			continue // SIGCHLD was ignored for a moment on the way
		}
		e.Call(unix.SYS_RT_SIGACTION, remote.Imm(int(sig)), e.Bytes(sigactionBytes(a)), remote.Imm(0), remote.Imm(sizeofSigset)).Must().Discard()
	}
}

// sigactionBytes is the kernel's struct sigaction of the 64-bit architectures with a restorer field.
func sigactionBytes(sa *criu_sa.SaEntry) []byte {
	b := make([]byte, 0, uapiSigactBytes)
	for _, word := range []uint64{sa.GetSigaction(), sa.GetFlags(), sa.GetRestorer(), sa.GetMask()} {
		b = binary.NativeEndian.AppendUint64(b, word)
	}
	return b
}

func checkSharedSignals(e *StateEmit) error {
	if !e.Leader() {
		return nil
	}
	return checkQueue(e.Task.GetTc().GetSignalsS().GetSignals())
}

func checkPrivateSignals(e *StateEmit) error {
	return checkQueue(e.Thread.GetThreadCore().GetSignalsP().GetSignals())
}

func checkQueue(queue []*siginfo.SiginfoEntry) error {
	if len(queue) > maxQueued {
		return fmt.Errorf("%d pending signals", len(queue))
	}
	for i, entry := range queue {
		info := entry.GetSiginfo()
		if len(info) != sizeofSigInfo {
			return fmt.Errorf("pending signal %d: siginfo of %d bytes, not %d", i, len(info), sizeofSigInfo)
		}
		if sig := signalOf(info); sig < 1 || sig > numSignals {
			return fmt.Errorf("pending signal %d: no signal has the number %d", i, sig)
		}
	}
	return nil
}

func signalOf(info []byte) int32 { return int32(binary.NativeEndian.Uint32(info)) }

// emitSharedSignals queues the signals of the task anew, with all the sender said. All signals are blocked in every
// thread until the end, so none is delivered.
func emitSharedSignals(e *StateEmit) {
	for _, entry := range e.Task.GetTc().GetSignalsS().GetSignals() {
		info := entry.GetSiginfo()
		e.Call(unix.SYS_RT_SIGQUEUEINFO, remote.Imm(e.PID), remote.Imm(signalOf(info)), e.Bytes(info)).Must().Discard()
	}
}

func emitPrivateSignals(e *StateEmit) {
	for _, entry := range e.Thread.GetThreadCore().GetSignalsP().GetSignals() {
		info := entry.GetSiginfo()
		e.Call(unix.SYS_RT_TGSIGQUEUEINFO, remote.Imm(e.PID), remote.Imm(e.TID), remote.Imm(signalOf(info)), e.Bytes(info)).Must().Discard()
	}
}

// emitAltStack sets the alternate stack. That a thread was running on it is not a setting: its stack pointer says so.
func emitAltStack(e *StateEmit) {
	sas := e.Thread.GetThreadCore().GetSas()
	if sas == nil || sas.GetSsFlags()&altStackDisable != 0 {
		return
	}
	b := binary.NativeEndian.AppendUint64(nil, sas.GetSsSp())
	b = binary.NativeEndian.AppendUint32(b, sas.GetSsFlags()&^altStackOn)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint64(b, sas.GetSsSize())
	e.Call(unix.SYS_SIGALTSTACK, e.Bytes(b), remote.Imm(0)).Must().Discard()
}
