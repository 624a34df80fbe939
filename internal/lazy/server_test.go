package lazy

import (
	"errors"
	"testing"
)

// heldPages are pages that tell when they are closed.
type heldPages struct {
	Pages
	closed bool
}

func (p *heldPages) Fetch(addr, n uint64, deliver Deliver) error {
	return deliver(addr, make([]byte, n))
}

func (p *heldPages) Close() error {
	p.closed = true
	return nil
}

// TestSourceStaysWhileFetched ends the last task that uses a source while somebody still fetches from it.
func TestSourceStaysWhileFetched(t *testing.T) {
	pages := &heldPages{}
	s := &source{Pages: pages}
	s.users.Add(1)
	err := s.Fetch(0, pageSize, func(uint64, []byte) error {
		s.drop()
		if pages.closed {
			t.Error("closed under who fetches")
		}
		return nil
	})
	if err != nil || !pages.closed {
		t.Errorf("%v, closed when nobody uses it: %v", err, pages.closed)
	}
	if err := s.Fetch(0, pageSize, nil); !errors.Is(err, errGone) {
		t.Errorf("fetch from a closed source: %v", err)
	}
}
