// Package collectors turns the state of live, frozen tasks into image messages.
//
// A [Task] is what travels along the edges of the dump graph. Every stage adds its part to it and hands it on; nothing
// else is shared between stages but the services of an [Env], which are safe for concurrent use. A collector never
// changes what it looks at: the tasks are stopped by package ptrace, and what only a task itself can tell is asked by
// a program of system calls that is carried into it.
//
// The order of things, and which part of a Task is filled when:
//
//	seize          Pid, Proc, Threads, Parent, Children, State         (the tree, frozen)
//	snapshot       Stat, Status, VPid, PGid, Sid
//	collect-fds    Memory and the beginnings of Core, MM, FS: what can be told from outside
//	identify       in task order: IDs, FDs, and the files of exe, cwd, root and mappings
//	parasite-state Session and the rest of Core, MM: what a tracer or only the task itself can tell
//	write-cores    core-N.img; what they were made of is let go
//	parasite-mem   pagemap-N.img, pages-N.img
//	write-tasks    the small images of each task
//	write-images   those of the whole tree
//
// State that is neither a descriptor nor memory is a table of kinds ([StateKinds]), a file each; descriptors are another
// ([Kind]; its rows are in package stages, beside the restore halves).
//
// Identifiers that end up in images (files, shared memory, kernel objects) are allocated in task order, never in the
// order in which concurrent workers finish, so the same tree gives the same set.
//
// Kernel interfaces: /proc/PID/*, kcmp(2) (Linux 3.5), ptrace(2), pidfd_getfd(2) (5.6). Images: all but the page
// files' payload.
package collectors
