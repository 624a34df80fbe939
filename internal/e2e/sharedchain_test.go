package e2e

import "testing"

// TestSharedChain takes sets of shared memory that is written by children that end at once, and past all mappings. What has not
// changed is left to the set before.
func TestSharedChain(t *testing.T) {
	for _, way := range []struct {
		name  string
		peer  bool
		extra []string
		whole bool // shared memory is stored whole
	}{
		{name: "own"},
		{name: "dedup", extra: []string{"--auto-dedup"}},
		{name: "compressed", extra: []string{"--compress"}, whole: true},
		{name: "peer", peer: true},
	} {
		t.Run(way.name, func(t *testing.T) {
			RequireRoot(t)
			criu := tools.Criu
			if way.peer {
				if criu = tools.Peer; criu == "" {
					t.Skip("CRIU_PEER names no criu")
				}
			}
			var args []string
			if way.peer {
				args = []string{"without SysV"}
			}
			target := tools.StartWorkload(t, "sharer", args...)
			c := newChain(t, target)
			first := pagesOf(t, c.Dump(append(way.extra, "--leave-running")...))
			for range 3 {
				if n := pagesOf(t, c.Dump(append(way.extra, "--leave-running")...)); n > first/2 && !way.whole {
					t.Errorf("the first set has %d bytes, a later one %d", first, n)
				}
			}
			target.Restore(criu, c.Dump(way.extra...))
			target.Go()
		})
	}
}
