// Package restorers turns image messages into what a task must do to have the state again that they describe.
//
// A restore has two halves. The plan half (Plan and everything it calls) works on the decoded image set alone: who forks
// whom, which helper stands in for a dead leader, who opens which file and who receives it, where the interpreter fits in
// every address space. It refuses whatever can be refused while no task exists. The emit half writes programs of system
// calls (internal/remote) that the tasks run; the stages decide when.
//
// There is one file a kind of state, named like its mirror in collectors. Images are untrusted: each value that becomes
// an address, a size, a count or a flag is checked where it is read, and the error names file and field.
//
// Kernel: clone3 with set_tid since Linux 5.5, pidfd_getfd since 5.6; what is newer is probed by doing.
package restorers
