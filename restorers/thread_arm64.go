package restorers

import criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"

func clearTidAddress(core *criu_core.CoreEntry) uint64 { return core.GetTiAarch64().GetClearTidAddr() }
