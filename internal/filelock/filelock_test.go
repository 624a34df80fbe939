package filelock

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]*Lock{
		"1: FLOCK  ADVISORY  READ 9543 fe:00:9978212 0 EOF":    {Kind: Flock},
		"2: POSIX  ADVISORY  WRITE 9543 fe:00:9978212 5 14":    {Kind: POSIX, Type: 1, Start: 5, Len: 10},
		"3: OFDLCK ADVISORY  WRITE -1 fe:00:9978212 20 EOF":    {Kind: OFD, Type: 1, Start: 20},
		"1: LEASE  BREAKING  UNLCK 9543 fe:00:9978228 0 EOF":   {Kind: Lease, Type: 2, Breaking: true},
		"1: LEASE  ACTIVE    WRITE 9543 fe:00:9978228 0 EOF":   {Kind: Lease, Type: 1},
		"1: DELEG  ACTIVE    READ 9543 fe:00:9978228 0 EOF":    nil,
		"1: POSIX  ADVISORY  WRITE 9543 fe:00:9978212 5 4":     nil,
		"1: -> FLOCK  ADVISORY  READ 9543 fe:00:9978212 0 EOF": nil,
		"": nil,
	} {
		got, err := Parse(line)
		if (err == nil) != (want != nil) {
			t.Errorf("Parse(%q): %v", line, err)
		} else if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("Parse(%q): %s", line, diff)
		}
	}
}
