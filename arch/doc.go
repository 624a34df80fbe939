// Package arch holds everything that depends on the processor, chosen by file suffix (amd64, arm64).
//
// What is here:
//
//   - the interpreter of remote programs: position-independent machine code, written in Go's assembler, that runs
//     inside foreign tasks without a stack, without data and without relocations (Code, blob_*.s);
//   - the registers of a stopped thread and what can be asked of them (Regs): program counter, stack pointer,
//     system call number and result, whether a system call waits to be restarted;
//   - the extended processor state (XState*) in the layout the kernel's register sets use;
//   - both of them to and from the core image messages (CoreFromRegs, RegsFromCore);
//   - a signal frame for rt_sigreturn that brings back a whole thread (SigFrame);
//   - the vdso: where its symbols are, whether two are the same, and patches that lead an old one into a new one;
//   - the processor's identification for cpuinfo.img.
//
// The package makes no system call on behalf of a tracee and starts no process; package ptrace does. It imports
// nothing of this module.
package arch
