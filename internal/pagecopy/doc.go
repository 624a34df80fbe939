// Package pagecopy moves page contents from a stopped task, or from a file of shared memory, into a pages file.
//
// In a nutshell: the caller puts ranges of pages in ascending order. They are gathered into batches of bounded
// size; workers read a batch each in few system calls and drop the pages that are zero and may be; then, in the
// order of the batches, each announces its runs to the destination and reserves the place of its bytes, and
// writes them while the next is already at it. Memory is bounded by the number of workers, not by the target.
//
// Kernel interfaces: process_vm_readv (Linux 3.2); /proc/PID/mem for memory the task itself may not read
// (mprotect in the task would do as well, but leaves the task changed if the tool dies), and for memory that
// forked tasks share, which process_vm_readv would make them copies of. Images:
// pagemap-PID.img, pagemap-shmem-ID.img, pages-N.img, through the destination.
package pagecopy
