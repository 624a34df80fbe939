package restorers

import criu_core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"

// MaskOf is the set of signals a thread blocks.
func MaskOf(c *criu_core.CoreEntry) uint64 {
	if tc := c.GetThreadCore(); tc.BlkSigset != nil {
		return tc.GetBlkSigset()
	}
	return c.GetTc().GetBlkSigset()
}
