package image

import (
	"cryo/internal/wire"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"google.golang.org/protobuf/encoding/protowire"
)

// timerSlackField is a number in thread_core_entry far from those that criu gives out. criu skips it.
const timerSlackField = 7001

// DefaultTimerSlack is what a thread has that never changed it, in nanoseconds.
const DefaultTimerSlack = 50_000

// SetTimerSlack notes by how much the kernel may delay a thread's timers, in nanoseconds. criu's format has no place for
// it, so it rides as a field that the description does not name, and only where it is not the default.
func SetTimerSlack(e *criu_core.ThreadCoreEntry, nanoseconds uint64) {
	if nanoseconds == DefaultTimerSlack || nanoseconds == 0 {
		return
	}
	b := protowire.AppendTag(wire.Unknown(e), timerSlackField, protowire.VarintType)
	wire.SetUnknown(e, protowire.AppendVarint(b, nanoseconds))
}

// GetTimerSlack reads what SetTimerSlack noted; the default if nothing was.
func GetTimerSlack(e *criu_core.ThreadCoreEntry) uint64 {
	for b := wire.Unknown(e); len(b) > 0; {
		num, typ, n := protowire.ConsumeField(b)
		if n < 0 {
			break
		}
		if num == timerSlackField && typ == protowire.VarintType {
			_, _, tag := protowire.ConsumeTag(b)
			if v, size := protowire.ConsumeVarint(b[tag:]); size > 0 {
				return v
			}
		}
		b = b[n:]
	}
	return DefaultTimerSlack
}
