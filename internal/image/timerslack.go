package image

import (
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
	if nanoseconds != DefaultTimerSlack {
		setNumber(e, timerSlackField, nanoseconds)
	}
}

// GetTimerSlack reads what SetTimerSlack noted; the default if nothing was.
func GetTimerSlack(e *criu_core.ThreadCoreEntry) uint64 {
	slack, found := uint64(DefaultTimerSlack), false
	eachNumber(e, func(num protowire.Number, v uint64) {
		if num == timerSlackField && !found {
			slack, found = v, true
		}
	})
	return slack
}
