// Package collectors turns the state of live, frozen tasks into image messages.
//
// A [Task] is what travels along the edges of the dump graph. Every stage adds its part to it and hands it on; nothing
// else is shared between stages but the services of an [Env], which are safe for concurrent use. A collector never
// changes what it looks at: the tasks are stopped by package ptrace, and what only a task itself can tell is asked by
// a program of system calls that is carried into it.
//
// The order of things, and which part of a Task is filled when:
//
//	seize          Pid, Proc, Stat, Threads, Parent, Children, State   (the tree, frozen)
//	collect-fds    Status, Memory, then in task order IDs, FDs, Exe, Cwd, Root
//	parasite-state Session, Core, Creds: what only the task can tell
//	parasite-mem   pagemap-N.img, pages-N.img
//	write-images   all the small images
//
// Identifiers that end up in images (files, shared memory, kernel objects) are allocated in task order, never in the
// order in which concurrent workers finish, so the same tree gives the same set.
//
// Kernel interfaces: /proc/PID/*, kcmp(2) (Linux 3.5), ptrace(2), pidfd_getfd(2) (5.6). Images: all but the page
// files' payload.
package collectors
