// Package iouring makes rings for requests and completions (io_uring(7), Linux 5.1), maps them and winds them on.
//
// A ring is two queues in memory that the kernel shares with programs. Their positions only ever grow, modulo 2^32, and the
// kernel keeps a copy of its own of those it moves: a ring that takes the place of another has to be led to the positions
// of that by requests that do nothing.
package iouring
