// Package inprocess runs remote programs in the calling process itself, on the calling thread. It is for tests: of the
// interpreter and the signal frames of a processor that is only emulated, where nothing can be traced.
//
// A program comes back by an operation that goes on at ComeBack with any base, or through a signal frame whose program
// counter is ComeBack.
package inprocess

import "runtime"

// saved is the stack pointer of enter's caller and, where they are in registers, the return address and the running
// goroutine.
//
//lint:ignore U1000 the assembler uses it
var saved [3]uintptr

func enter(code, base, op uintptr)
func comeBackAddr() uintptr

// ComeBack is the address of code that returns from Enter, from whatever state.
func ComeBack() uintptr { return comeBackAddr() }

// Enter runs the interpreter at code on the program buffer at base from the operation at op. Only one thread may do so at
// a time.
func Enter(code, base, op uintptr) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	enter(code, base, op)
}
