package image

import (
	vmapb "github.com/checkpoint-restore/go-criu/v8/crit/images/vma"
	"google.golang.org/protobuf/encoding/protowire"
)

// shmemSizeField is a number in vma_entry far from those that criu gives out. criu skips it.
const shmemSizeField = 7001

// SetShmemSize notes how large the shared anonymous memory behind a mapping is, in bytes, where that is not where the last
// mapping ends: its tail was unmapped, or the mapping is longer than the memory. criu's format has no place for it.
func SetShmemSize(e *vmapb.VmaEntry, size uint64) { setNumber(e, shmemSizeField, size) }

// GetShmemSize reads what SetShmemSize noted; 0 if nothing was.
func GetShmemSize(e *vmapb.VmaEntry) (size uint64) {
	eachNumber(e, func(num protowire.Number, v uint64) {
		if num == shmemSizeField {
			size = v
		}
	})
	return size
}
