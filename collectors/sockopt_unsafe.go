package collectors

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// socketFilter reads the classic BPF filter attached to a socket (SO_GET_FILTER, Linux 3.8), an instruction in each
// word, in the order code, jt, jf, k from the top whatever the machine's byte order. A filter of the extended kind
// cannot be read.
func socketFilter(fd int) ([]uint64, error) {
	n := uint32(0)
	if err := getFilter(fd, nil, &n); err != nil || n == 0 {
		return nil, err
	}
	prog := make([]unix.SockFilter, n)
	if err := getFilter(fd, prog, &n); err != nil {
		return nil, err
	}
	words := make([]uint64, n)
	for i, f := range prog[:n] {
		words[i] = uint64(f.Code)<<48 | uint64(f.Jt)<<40 | uint64(f.Jf)<<32 | uint64(f.K)
	}
	return words, nil
}

// getFilter asks for n instructions, and how many there are. The option's length counts instructions, not bytes.
func getFilter(fd int, prog []unix.SockFilter, n *uint32) error {
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_GET_FILTER,
		uintptr(unsafe.Pointer(unsafe.SliceData(prog))), uintptr(unsafe.Pointer(n)), 0)
	if errno != 0 {
		return fmt.Errorf("attached filter: %w", errno)
	}
	return nil
}
