// Package extents finds the parts of a sparse file that hold data: by ioctl(FS_IOC_FIEMAP) (Linux 2.6.28), which is
// fast for files of many holes, or by lseek(SEEK_DATA, SEEK_HOLE) (3.1), which every filesystem answers.
package extents

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Extent is a part of a file that holds data, in bytes.
type Extent struct{ Off, Len int64 }

// Of lists the parts of the file that hold data, in order and below size. With fiemap it asks the filesystem for its
// extents, if it can tell them.
func Of(fd int, size int64, fiemap bool) ([]Extent, error) {
	if fiemap {
		list, err := byFiemap(fd, size)
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.EINVAL) {
			return list, err
		}
	}
	return bySeek(fd, size)
}

func bySeek(fd int, size int64) ([]Extent, error) {
	var list []Extent
	for off := int64(0); off < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // a hole up to the end
		}
		if err != nil {
			return nil, fmt.Errorf("lseek(SEEK_DATA): %w", err)
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("lseek(SEEK_HOLE): %w", err)
		}
		list = add(list, data, hole, size)
		off = hole
	}
	return list, nil
}

// add appends the extent [from, to), cut off at size and joined with the one before where they touch.
func add(list []Extent, from, to, size int64) []Extent {
	to = min(to, size)
	if from >= to {
		return list
	}
	if n := len(list); n > 0 && list[n-1].Off+list[n-1].Len >= from {
		list[n-1].Len = to - list[n-1].Off
		return list
	}
	return append(list, Extent{from, to - from})
}
