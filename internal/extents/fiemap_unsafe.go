package extents

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The structures of linux/fiemap.h.
type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemap struct {
	start, length uint64
	flags, mapped uint32
	count, _      uint32
	extents       [128]fiemapExtent
}

const (
	ioctlFiemap = 0xc020660b // FS_IOC_FIEMAP

	fiemapSync      = 1 << 0  // write out what has no place on the disk yet, so that it is listed
	extentLast      = 1 << 0  // nothing follows
	extentUnwritten = 1 << 11 // reserved, reads as zeros
)

func byFiemap(fd int, size int64) ([]Extent, error) {
	var list []Extent
	var m fiemap
	for start := uint64(0); start < uint64(size); {
		m = fiemap{start: start, length: uint64(size) - start, flags: fiemapSync, count: uint32(len(m.extents))}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), ioctlFiemap, uintptr(unsafe.Pointer(&m))); errno != 0 {
			return nil, fmt.Errorf("ioctl(FS_IOC_FIEMAP): %w", errno)
		}
		if m.mapped == 0 {
			break
		}
		for _, e := range m.extents[:min(m.mapped, m.count)] {
			if e.flags&extentUnwritten == 0 {
				list = add(list, int64(e.logical), int64(e.logical+e.length), size)
			}
			start = max(start, e.logical+e.length)
			if e.flags&extentLast != 0 {
				return list, nil
			}
		}
	}
	return list, nil
}
