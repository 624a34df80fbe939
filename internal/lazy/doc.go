// Package lazy brings pages into restored tasks while they run.
//
// A restore that is lazy maps memory and leaves the pages that may come late (image.PELazy) out. It hands a userfaultfd of
// each task to a server, which answers the faults of the tasks with the pages they want and brings in all others beside
// that. When a task has everything its userfaultfd is closed, and its memory is as if it had always been there.
//
// # Who hands over what
//
// Restore and server share a UNIX stream socket, in criu's protocol, so that either side may be criu's:
//
//	pid as int32, then one byte with the userfaultfd (SCM_RIGHTS)   a task, as its images name it
//	-pid as int32                                                   a dead one
//	0x52535446 as int32                                             the restore is complete
//
// # What a server hears of a task
//
// The tasks know nothing of it, so the kernel tells the server what they do with their memory, and each waits until that
// has been read: a fork (with the descriptor of the child), a mapping moved, unmapped, or emptied by madvise. A fault may
// be read before the move that made its address; but until the move has been read, too, no page can be placed (EAGAIN), so
// a fault that cannot be served is looked up again after what comes next. Layout changes under the write lock of a task's
// space, pages are placed under its read lock, so a fork sees either a page that is in or one that is still to come.
//
// # When the server ends too early
//
// A userfaultfd that is closed leaves zeros where pages are missing. So a server that cannot go on kills the tasks that
// still miss something, and its guardian does that if the server itself is killed.
//
// Kernel: userfaultfd with events (4.11). Images: page maps and pages, those of parents too.
package lazy
