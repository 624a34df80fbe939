package remote

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cryo/arch"
	"cryo/internal/procfs"
	"cryo/internal/ptrace"
	"cryo/internal/vma"
)

// Escape says how a thread in which the engine makes a single system call, before it has memory of its own in the task
// or when that is going, gets back to its own work should the tracer die just then: the call is made at an instruction
// that a return follows; the return goes to code that calls rt_sigreturn, which restores the whole thread from a
// signal frame. The code is the C library's or the Go runtime's. The frame is put into the part of the main
// stack that has never been used, which is zero; it is zero again afterwards.
//
// The zero Escape is none.
type Escape struct {
	call, sigreturn uint64
	scratch         uint64
}

// Ok says whether there is an escape.
func (e Escape) Ok() bool { return e.call != 0 && e.sigreturn != 0 && e.scratch != 0 }

// FindEscape looks for the way of escape of a task. It reads the task's memory and needs no stop. That there is none is
// no error.
func FindEscape(pid int) (e Escape, err error) {
	dir, err := procfs.OpenTask(pid)
	if err != nil {
		return e, err
	}
	defer dir.Close()
	maps, err := vma.Code(pid)
	if err != nil {
		return e, err
	}
	for _, place := range []int{loader, cLibrary, program} {
		for _, m := range maps {
			if m.Prot == unix.PROT_READ|unix.PROT_EXEC && !m.Shared && placeOf(m.Name) == place && !(e.call != 0 && e.sigreturn != 0) {
				e.look(pid, m)
			}
		}
	}
	stat, err := dir.Stat()
	if err != nil {
		return e, err
	}
	stack, err := vma.Range(pid, stat.StartStack, stat.StartStack+1)
	for _, m := range stack {
		if m.Name == "[stack]" && m.Prot&(unix.PROT_READ|unix.PROT_WRITE) == unix.PROT_READ|unix.PROT_WRITE {
			e.scratch = m.Start
		}
	}
	if err == nil && e.Ok() {
		e.remember()
	}
	return e, err
}

// Where the code of an escape may be, the smallest first: most often all of it is in the first that a task has.
const (
	loader = iota
	cLibrary
	program
)

func placeOf(name string) int {
	switch {
	case strings.Contains(name, "/ld-"): // musl's loader is its C library
		return loader
	case strings.Contains(name, "/libc.") || strings.Contains(name, "/libc-"):
		return cLibrary
	}
	return program
}

// holds says whether a thread with these registers is about to escape.
func (e Escape) holds(r *arch.Regs) bool {
	pc := r.PC()
	within := pc-e.call < arch.EscapeOverlap || pc-e.sigreturn < arch.EscapeOverlap
	return e.Ok() && within && r.StackPointer()-e.scratch < maxEscape
}

// escapePatience is how long a thread may take to get back to its own work.
const escapePatience = time.Second

// leaveEscape lets a thread go on that stopped while it escaped from the call of a tool that was killed just before, and
// captures it again.
func (t *Thread) leaveEscape(e Escape) error {
	ctx, cancel := context.WithTimeout(context.Background(), escapePatience)
	defer cancel()
	for e.holds(&t.Regs) {
		err := ptrace.Cont(t.TID, 0)
		if err == nil && !pause(ctx) {
			err = fmt.Errorf("thread %d does not get back to its own work after a tool was killed: %w", t.TID, ctx.Err())
		}
		if err == nil {
			err = stopAgain(ctx, t.TID)
		}
		var again *Thread
		if err == nil {
			again, err = Capture(t.TID)
		}
		if err != nil {
			return err
		}
		again.Seccomp, again.Options = t.Seccomp, t.Options
		*t = *again
	}
	return nil
}

// recentEscapes are the escapes found last: tasks of a tree that were forked from one another have their code at the same
// addresses.
var recentEscapes struct {
	sync.Mutex
	list []Escape
}

const maxRecentEscapes = 4

// findEscape is FindEscape for a stopped thread. It tries the escapes found in other tasks before it reads through the whole
// of this one, if the mappings of the task are known or the kernel tells single ones (6.11).
func findEscape(t *Thread, maps []vma.Mapping) (Escape, error) {
	recentEscapes.Lock()
	recent := slices.Clone(recentEscapes.list)
	recentEscapes.Unlock()
	for _, e := range recent {
		if e.isIn(t, maps) {
			return e, nil
		}
	}
	return FindEscape(t.TID)
}

// remember puts an escape before those found earlier.
func (e Escape) remember() {
	recentEscapes.Lock()
	defer recentEscapes.Unlock()
	recentEscapes.list = append([]Escape{e}, recentEscapes.list...)
	if len(recentEscapes.list) > maxRecentEscapes {
		recentEscapes.list = recentEscapes.list[:maxRecentEscapes]
	}
}

// isIn says whether the code of an escape is in the task of t too, and takes over where its stack begins. known are the
// mappings of the task, nil if they are not known.
func (e *Escape) isIn(t *Thread, known []vma.Mapping) bool {
	text := make([]byte, 2*arch.EscapeOverlap)
	at, after := text[:arch.EscapeOverlap], text[arch.EscapeOverlap:]
	if ptrace.ReadMemory(t.TID, e.call, at) != nil || ptrace.ReadMemory(t.TID, e.sigreturn, after) != nil {
		return false
	}
	if call, _ := arch.FindEscape(at); call != 0 {
		return false
	}
	if _, sigreturn := arch.FindEscape(after); sigreturn != 0 {
		return false
	}
	addrs := [...]uint64{e.call, e.sigreturn, t.Regs.StackPointer()}
	maps, err := vma.Pick(known, addrs[:]...), error(nil)
	if known == nil {
		maps, err = vma.At(t.TID, addrs[:]...)
	}
	if err != nil || maps[0].Prot&maps[1].Prot&unix.PROT_EXEC == 0 || maps[2].Name != "[stack]" || maps[2].Prot&unix.PROT_WRITE == 0 {
		return false
	}
	e.scratch = maps[2].Start
	return true
}

// codeID identifies the code of a mapping.
type codeID struct {
	dev, ino     uint64
	offset, size uint64
}

// escapes remembers where in a file the code is, as addresses relative to the mapping, 0 for none; most tasks of a tree
// run the same library. What it says is checked against the task's memory.
var escapes sync.Map // codeID -> Escape

// look looks for what e lacks in one mapping.
func (e *Escape) look(pid int, m vma.Mapping) {
	id := codeID{m.Dev, m.Inode, m.Offset, m.Len()}
	if known, ok := escapes.Load(id); ok && m.Inode != 0 {
		e.adopt(pid, m, known.(Escape))
		return
	}
	found := scan(pid, m)
	if m.Inode != 0 {
		escapes.Store(id, found)
	}
	e.adopt(pid, m, found)
}

// adopt takes over what e lacks and found has, if it is there in the task.
func (e *Escape) adopt(pid int, m vma.Mapping, found Escape) {
	text := make([]byte, arch.EscapeOverlap)
	at := func(offset uint64) bool {
		return offset != 0 && ptrace.ReadMemory(pid, m.Start+offset, text) == nil
	}
	if e.call == 0 && at(found.call) {
		if call, _ := arch.FindEscape(text); call == 0 {
			e.call = m.Start + found.call
		}
	}
	if e.sigreturn == 0 && at(found.sigreturn) {
		if _, sigreturn := arch.FindEscape(text); sigreturn == 0 {
			e.sigreturn = m.Start + found.sigreturn
		}
	}
}

// scan looks through the code of a mapping piece by piece. What starts with its very first byte does not count.
func scan(pid int, m vma.Mapping) (e Escape) {
	const piece = 64 << 10 // a C library has both in its first pieces
	room := make([]byte, piece)
	for at := m.Start; at < m.End && (e.call == 0 || e.sigreturn == 0); at += piece - arch.EscapeOverlap {
		text := room[:min(piece, m.End-at)]
		if ptrace.ReadMemory(pid, at, text) != nil {
			return e
		}
		call, sigreturn := arch.FindEscape(text)
		if call >= 0 && e.call == 0 {
			e.call = at - m.Start + uint64(call)
		}
		if sigreturn >= 0 && e.sigreturn == 0 {
			e.sigreturn = at - m.Start + uint64(sigreturn)
		}
	}
	return e
}

// openEscape puts the leader's signal frame where it escapes through. If the stack is in use that far, there is no
// escape.
func (s *Session) openEscape() error {
	if !s.escape.Ok() || s.frame != 0 {
		return nil
	}
	t := s.leader.thread
	at := alignUp(s.escape.scratch+escapeMark, 64)
	room := frames.Get().(*[]byte)
	defer frames.Put(room)
	frame, err := arch.SigFrame((*room)[:0], &t.Regs, t.XState, t.SigMask, at)
	if err != nil {
		return err
	}
	s.frame, s.frameSize = at, len(frame)
	*room = append(frame, make([]byte, escapeMark+len(frame))...)
	used := (*room)[len(frame):]
	err = ptrace.ReadMemory(t.TID, at-escapeMark, used)
	sp := t.Regs.StackPointer()
	inUse := len(bytes.Trim(used, "\x00")) > 0 && le.Uint64(used) != s.escape.sigreturn // what a killed tool left does not count
	if err != nil || inUse || sp >= at && sp < at+uint64(len(used))+redZone {
		s.frame = 0
		return nil
	}
	mark := used[:escapeMark]
	le.PutUint64(mark, s.escape.sigreturn)
	if ptrace.WritePieces(t.TID, ptrace.Piece{Addr: at - escapeMark, Data: mark}, ptrace.Piece{Addr: at, Data: frame}) != nil {
		s.frame = 0
	}
	return nil
}

// escapeMark is the size of the word before the frame, the address of sigreturn. It is there as long as anything of the frame
// is, so what a killed tool left is known by it. Where SetupEscape wants a word there, it is the same.
const escapeMark = 8

// redZone is memory below the stack pointer that belongs to the thread.
const redZone = 128

// setupCall returns registers with which the leader makes a system call.
func (s *Session) setupCall(nr uint64, args []uint64) (arch.Regs, error) {
	t := s.leader.thread
	if s.frame == 0 {
		return t.Regs.SetupCall(s.instr, nr, args...), nil
	}
	regs, word := t.Regs.SetupEscape(s.escape.call, s.escape.sigreturn, s.frame, nr, args...)
	return regs, ptrace.WriteMemory(t.TID, s.frame-arch.EscapeWord, word)
}

// closeEscape makes the memory of the escape zero again. The leader's registers lead elsewhere by now.
func (s *Session) closeEscape() error {
	if s.frame == 0 {
		return nil
	}
	at := s.frame
	s.frame = 0
	room := frames.Get().(*[]byte)
	defer frames.Put(room)
	*room = append((*room)[:0], make([]byte, s.frameSize+escapeMark)...)
	err := ptrace.WritePieces(s.leader.thread.TID, ptrace.Piece{Addr: at, Data: (*room)[:s.frameSize]},
		ptrace.Piece{Addr: at - escapeMark, Data: (*room)[s.frameSize:]})
	if err != nil {
		return fmt.Errorf("clear the escape of thread %d: %w", s.leader.thread.TID, err)
	}
	return nil
}

// restoreLeader gives the leader its own state back: the mask first, because until the registers are set it would
// escape by itself.
func (s *Session) restoreLeader() error {
	t := s.leader.thread
	return errors.Join(ptrace.SetSigMask(t.TID, t.SigMask), t.putBack(), s.closeEscape())
}
