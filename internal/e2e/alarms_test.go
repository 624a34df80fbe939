package e2e

import "testing"

// TestAlarms dumps a task whose timers fire while it is being dumped: none is lost, and none fires twice.
func TestAlarms(t *testing.T) {
	RequireRoot(t)
	target := tools.StartWorkload(t, "alarms")
	for range 12 {
		images := t.TempDir()
		target.Dump(tools.Criu, images)
		target.Restore(tools.Criu, images)
	}
	target.Go()
}
