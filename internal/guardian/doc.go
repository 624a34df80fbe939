// Package guardian keeps the undo steps of a run where they outlive the process that made them.
//
// The tool (the ward) starts a second, small process of the same executable, the guardian, and tells it how to take back
// each change before it makes it. If the ward dies, by SIGKILL, by the OOM killer or by a bug, the guardian does what the
// ward would have done: it takes the changes back, or, if the ward had passed its point of no return, finishes.
//
// Nearly always nothing is left to be done. So what the ward starts is only a sentry: a program of package remote in a memfd,
// which holds the guardian's end of the socket and sleeps. It becomes the guardian by exec when the ward has died, when
// it closes the journal with something left in it, or when the socket is full. Else it is killed in the end.
// Where nothing in a memfd may be executed (vm.memfd_noexec) the guardian itself is started.
//
// # Protocol
//
// The two share a pair of SOCK_SEQPACKET sockets. The ward sends, the guardian never answers: a message that is in the
// socket of a living guardian is as safe as one that it has read, so a record costs one sendmsg and the ward need not
// wait for the guardian to come up. A message is one JSON object of at most 64 KiB with at most 16 descriptors (SCM_RIGHTS).
//
//	record  id, kind, data, descriptors   undo this if the ward dies before it commits; last recorded first
//	finish  id, kind, data, descriptors   do this if the ward dies after it committed; first recorded first
//	forget  id                            it is done, or no longer wanted
//	commit                                the point of no return: all records before it are dropped
//	close                                 the ward wants no more; what has not been forgotten is done at once
//
// The records of a dump that kills its tasks are: remove the inventory, unmap the blob, thaw and so on, each as record; then
// one finish a task, "kill it"; then commit. Changes that must be taken back on both sides of the commit, such as the blob
// in a task that is left running, are sent as record and as finish.
//
// The guardian acts when the ward has exited, as its pidfd says: only then has the kernel let go of the ward's tracees.
// The end of the socket alone is not the sign, nor is it needed: a task forked by the ward may hold a copy of the socket.
//
// # What the guardian is immune to
//
// It has a session of its own, blocks and ignores every signal but those for faults such as SIGSEGV, which the sentry
// blocks too, and holds nothing open but its socket, the ward's pidfd, its log and what was sent to it. It dies with the ward
// where both are killed at once: by cgroup.kill, by SIGKILL to each, with their machine or pid namespace.
//
// Kernel interfaces: SCM_RIGHTS, pidfd_open (5.3), pidfd_send_signal (5.1), memfd_create, ptrace by package remote.
// It touches no image but removes files it was told to.
package guardian
