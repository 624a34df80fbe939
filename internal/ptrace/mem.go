package ptrace

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ReadMemory fills buf from a task's memory at addr. The task need not be stopped, and any thread may call it.
func ReadMemory(tid int, addr uint64, buf []byte) error {
	return copyMemory("read", unix.ProcessVMReadv, tid, addr, buf)
}

// WriteMemory copies buf into a task's writable memory at addr.
func WriteMemory(tid int, addr uint64, buf []byte) error {
	return copyMemory("write", unix.ProcessVMWritev, tid, addr, buf)
}

func copyMemory(verb string, move func(int, []unix.Iovec, []unix.RemoteIovec, uint) (int, error),
	tid int, addr uint64, buf []byte) error {
	for len(buf) > 0 {
		local := [1]unix.Iovec{{Base: &buf[0]}}
		local[0].SetLen(len(buf))
		n, err := move(tid, local[:], []unix.RemoteIovec{{Base: uintptr(addr), Len: len(buf)}}, 0)
		if err == nil && n == 0 {
			err = unix.EFAULT
		}
		if err != nil {
			return fmt.Errorf("%s %d bytes at %#x of task %d: %w", verb, len(buf), addr, tid, err)
		}
		buf, addr = buf[n:], addr+uint64(n)
	}
	return nil
}

// Piece is data and where in a task it goes.
type Piece struct {
	Addr uint64
	Data []byte
}

// WritePieces copies several pieces into a task's writable memory, one after the other: if the caller is killed meanwhile,
// what is written is the pieces before some point, and part of the one at that point. A piece within one page is written
// as a whole or not at all.
func WritePieces(tid int, pieces ...Piece) error {
	local, remote := make([]unix.Iovec, len(pieces)), make([]unix.RemoteIovec, len(pieces))
	total := 0
	for i, p := range pieces {
		local[i].Base = unsafe.SliceData(p.Data)
		local[i].SetLen(len(p.Data))
		remote[i] = unix.RemoteIovec{Base: uintptr(p.Addr), Len: len(p.Data)}
		total += len(p.Data)
	}
	n, err := unix.ProcessVMWritev(tid, local, remote, 0)
	if err == nil && n != total {
		err = unix.EFAULT
	}
	if err != nil {
		return fmt.Errorf("write %d bytes in %d pieces to task %d: %w", total, len(pieces), tid, err)
	}
	return nil
}

// PokeMemory copies buf into a task's memory at addr whatever its protection is, and keeps the instruction cache right.
// A private page that is not writable is copied first, as a debugger's breakpoint is. It is slower than WriteMemory.
func PokeMemory(tid int, addr uint64, buf []byte) error {
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", tid), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err = f.WriteAt(buf, int64(addr)); err != nil {
		return fmt.Errorf("write %d bytes at %#x of task %d: %w", len(buf), addr, tid, err)
	}
	return nil
}
