package vma

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Mapping is one mapping of a task as the kernel lists it. Addresses and the offset are in bytes.
type Mapping struct {
	Start, End uint64
	Offset     uint64 // in the mapped file
	Prot       uint32 // unix.PROT_*
	Shared     bool   // MAP_SHARED
	Dev, Inode uint64 // of the mapped file, both 0 when there is none
	Name       string // path of the file, or what the kernel calls the area: "[heap]"
}

// Len is the length in bytes.
func (m *Mapping) Len() uint64 { return m.End - m.Start }

// HasFile says whether the kernel has a file behind the mapping; shared anonymous memory has one too.
func (m *Mapping) HasFile() bool { return m.Dev != 0 || m.Inode != 0 }

// Deleted says whether the mapped file has no name any more.
func (m *Mapping) Deleted() bool { return m.HasFile() && strings.HasSuffix(m.Name, deletedSuffix) }

// Path is the name of the mapped file without the kernel's remark that it was deleted.
func (m *Mapping) Path() string { return strings.TrimSuffix(m.Name, deletedSuffix) }

// Link is the name of the mapping's link in /proc/PID/map_files.
func (m *Mapping) Link() string { return fmt.Sprintf("%x-%x", m.Start, m.End) }

// String is the mapping in the form of /proc/PID/maps.
func (m *Mapping) String() string {
	prot := []byte("---p")
	for i, bit := range []uint32{unix.PROT_READ, unix.PROT_WRITE, unix.PROT_EXEC} {
		if m.Prot&bit != 0 {
			prot[i] = "rwx"[i]
		}
	}
	if m.Shared {
		prot[3] = 's'
	}
	return fmt.Sprintf("%x-%x %s %08x %02x:%02x %d %s", m.Start, m.End, prot, m.Offset,
		unix.Major(m.Dev), unix.Minor(m.Dev), m.Inode, m.Name)
}

const deletedSuffix = " (deleted)"
