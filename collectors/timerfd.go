package collectors

import (
	"fmt"
	"strconv"

	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/timerfd"
	"google.golang.org/protobuf/proto"
)

// Timerfd collects timers behind descriptors (timerfd_create(2), Linux 2.6.25): the clock, expirations not read yet, and
// how long it is until the next one.
type Timerfd struct{}

// Match takes anonymous inodes named timerfd.
func (Timerfd) Match(p *Probe) bool { return p.anonymous("[timerfd]") }

// Collect makes a timerfd_entry from fdinfo (Linux 3.17).
func (Timerfd) Collect(_ *Files, p *Probe, id uint32) (*fdinfo.FileEntry, error) {
	e := &timerfd.TimerfdEntry{Id: proto.Uint32(id), Flags: proto.Uint32(p.Flags), Fown: p.Owner}
	numbers := []struct {
		name string
		base int
		to   func(uint64)
	}{
		{"clockid", 10, func(n uint64) { e.Clockid = proto.Uint32(uint32(n)) }},
		{"ticks", 10, func(n uint64) { e.Ticks = &n }},
		{"settime flags", 8, func(n uint64) { e.SettimeFlags = proto.Uint32(uint32(n)) }},
	}
	for _, f := range numbers {
		n, err := strconv.ParseUint(p.Info.Field(f.name), f.base, 64)
		if err != nil {
			return nil, fmt.Errorf("fdinfo of a timerfd: %s: %w", f.name, err)
		}
		f.to(n)
	}
	for name, to := range map[string][2]**uint64{"it_value": {&e.Vsec, &e.Vnsec}, "it_interval": {&e.Isec, &e.Insec}} {
		var sec, nsec uint64
		if _, err := fmt.Sscanf(p.Info.Field(name), "(%d, %d)", &sec, &nsec); err != nil {
			return nil, fmt.Errorf("fdinfo of a timerfd: %s: %w", name, err)
		}
		*to[0], *to[1] = &sec, &nsec
	}
	return &fdinfo.FileEntry{Tfd: e}, nil
}
