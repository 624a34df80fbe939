// Package pagemap finds out which pages of a task are there and of what sort they are, as a stream of
// regions, in memory that does not depend on the size of the task.
//
// Kernel interfaces: ioctl PAGEMAP_SCAN on /proc/PID/pagemap (Linux 6.7; guard pages 6.15); elsewhere the
// 64 bits a page of that file (Linux 2.6.25; the file bit 3.5). No image knows this package.
package pagemap
