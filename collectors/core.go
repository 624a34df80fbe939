package collectors

import (
	"cryo/arch"

	criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
)

// newCore is an empty core of this architecture.
func newCore() *criu_core.CoreEntry {
	return &criu_core.CoreEntry{Mtype: arch.March.Enum(), ThreadCore: &criu_core.ThreadCoreEntry{}}
}
