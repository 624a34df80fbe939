package stages

import "testing"

func TestNextIDs(t *testing.T) {
	set := func(from, to int) map[int]bool {
		ids := map[int]bool{}
		for id := from; id <= to; id++ {
			ids[id] = true
		}
		return ids
	}
	for _, test := range []struct {
		name       string
		last, most int
		ids        map[int]bool
		want       int
	}{
		{"far behind the set", 20000, 32768, set(5000, 5100), 20000},
		{"far before it", 2000, 32768, set(5000, 5100), 2000},
		{"just before it", 4900, 32768, set(5000, 5100), 5100},
		{"just behind it", 5100, 32768, set(5000, 5100), 5100},
		{"within it", 5050, 32768, set(5000, 5100), 5100},
		{"before the end", 32000, 32768, set(5000, 5100), 300},
		{"before the end, the set at the beginning", 32000, 32768, set(301, 400), 400},
		{"before a set at the end", 32000, 32768, set(32100, 32767), 300},
		{"in a new machine", 100, 32768, set(120, 130), 130},
		{"no room anywhere", 400, 1000, set(400, 500), 400},
	} {
		if got := nextIDs(test.last, test.most, test.ids); got != test.want {
			t.Errorf("%s: %d, want %d", test.name, got, test.want)
		}
	}
}
