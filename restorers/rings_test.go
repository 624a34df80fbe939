package restorers

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHolesIn(t *testing.T) {
	const page = 0x1000
	for name, c := range map[string]struct{ taken, wanted, want []Range }{
		"nothing is taken": {nil, []Range{{0x100000, 0x102000}}, []Range{{page, minHole}, {minHole, 0x100000}, {0x102000, TaskSize}}},
		"small holes count only where they touch": {
			[]Range{{page, 0x100000}, {0x103000, 0x104000}, {0x105000, 0x106000}, {0x107000, TaskSize}}, []Range{{0x101000, 0x103000}},
			[]Range{{0x100000, 0x101000}},
		},
		"holes above": {
			[]Range{{page, 0x100000}, {0x103000, 0x104000}, {0x110000, TaskSize}}, []Range{{0x100000, 0x102000}},
			[]Range{{0x102000, 0x103000}, {0x104000, 0x110000}},
		},
		"side by side, and above all": {
			[]Range{{page, 0x100000}, {0x104000, TaskSize}, {TaskSize + page, TaskSize + 2*page}}, []Range{{0x102000, 0x103000}, {0x101000, 0x102000}},
			[]Range{{0x100000, 0x101000}, {0x103000, 0x104000}},
		},
	} {
		if d := cmp.Diff(c.want, holesIn(c.taken, c.wanted)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
}
