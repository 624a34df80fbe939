package collectors

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapAt maps sampleSize bytes at addr.
func mapAt(addr uint64, flags, fd int) ([]byte, error) {
	at, err := unix.MmapPtr(fd, 0, *(*unsafe.Pointer)(unsafe.Pointer(&addr)), sampleSize, unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_FIXED_NOREPLACE)
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*byte)(at), sampleSize), nil
}
