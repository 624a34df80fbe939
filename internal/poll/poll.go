// Package poll asks descriptors what they are ready for, by poll(2).
package poll

import "golang.org/x/sys/unix"

// Now says what of events a descriptor is ready for, and POLLERR, POLLHUP where they are so. It does not wait. A signal, as
// the Go runtime sends them to its own threads, is no answer: the kernel is asked again then.
func Now(fd int, events int16) (int16, error) {
	ready := []unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		_, err := unix.Poll(ready, 0)
		if err != unix.EINTR {
			return ready[0].Revents, err
		}
	}
}
