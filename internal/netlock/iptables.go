package netlock

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// UnlockIptables takes away the lock that criu makes of connections with the iptables command: in the tables that command
// keeps in nf_tables (since iptables 1.8), a rule for each direction of each connection, which drops what has not the
// mark. It returns how many rules it has found. Those in the tables of iptables-legacy it does not see.
func UnlockIptables(w Where, conns []Conn) (int, error) {
	c, err := w.conn()
	if err != nil {
		return 0, err
	}
	wanted := map[Conn]bool{} // by source and destination of the packets
	for _, conn := range conns {
		local, remote := unmap(conn.Local), unmap(conn.Remote)
		wanted[Conn{local, remote}], wanted[Conn{remote, local}] = true, true
	}
	found := 0
	for _, f := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		table := &nftables.Table{Family: f, Name: "filter"}
		for _, name := range []string{"INPUT", "OUTPUT"} {
			rules, err := c.GetRules(table, &nftables.Chain{Table: table, Name: name})
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return found, fmt.Errorf("rules of %s: %w", name, err)
			}
			for _, r := range rules {
				if conn, ok := dropped(f, r.Exprs); ok && wanted[conn] {
					if err := c.DelRule(&nftables.Rule{Table: table, Chain: &nftables.Chain{Name: name}, Handle: r.Handle}); err != nil {
						return found, err
					}
					found++
				}
			}
		}
	}
	if found == 0 {
		return 0, nil
	}
	if err := c.Flush(); err != nil {
		return found, fmt.Errorf("take rules of iptables away: %w", err)
	}
	return found, nil
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// headers are the bytes that a rule wants to see in a packet, by place.
type headers map[expr.PayloadBase]map[uint32]byte

// dropped says whose packets, from and to, a rule drops. ok is false for rules that are no such lock.
func dropped(f nftables.TableFamily, exprs []expr.Any) (conn Conn, ok bool) {
	seen := headers{expr.PayloadBaseNetworkHeader: {}, expr.PayloadBaseTransportHeader: {}}
	var load *expr.Payload
	mark, unmarked, drops := false, false, false
	for _, e := range exprs {
		switch e := e.(type) {
		case *expr.Payload:
			load, mark = e, false
		case *expr.Meta:
			load, mark = nil, e.Key == expr.MetaKeyMARK
		case *expr.Cmp:
			if load != nil && e.Op == expr.CmpOpEq {
				seen.want(load.Base, load.Offset, e.Data)
			}
			if mark && e.Op == expr.CmpOpNeq && bytes.Equal(e.Data, binary.NativeEndian.AppendUint32(nil, Mark)) {
				unmarked = true
			}
		case *expr.Match:
			if info, is := e.Info.(*xt.Tcp); is { // older versions of the command
				seen.ports(info)
			}
			unmarked = unmarked || e.Name == "mark"
		case *expr.Verdict:
			drops = e.Kind == expr.VerdictDrop
		}
	}
	if !unmarked || !drops {
		return conn, false
	}
	which := families[0]
	if f == nftables.TableFamilyIPv6 {
		which = families[1]
	}
	src, ok1 := seen.end(which.src, which.size, 0)
	dst, ok2 := seen.end(which.dst, which.size, 2)
	return Conn{src, dst}, ok1 && ok2
}

func (h headers) want(base expr.PayloadBase, at uint32, data []byte) {
	if h[base] == nil {
		return
	}
	for i, b := range data {
		h[base][at+uint32(i)] = b
	}
}

func (h headers) ports(info *xt.Tcp) {
	for at, r := range map[uint32][2]uint16{0: info.SrcPorts, 2: info.DstPorts} {
		if r[0] == r[1] {
			h.want(expr.PayloadBaseTransportHeader, at, binary.BigEndian.AppendUint16(nil, r[0]))
		}
	}
}

// end is the address and port that are wanted at a place in the headers.
func (h headers) end(addr, size, port uint32) (netip.AddrPort, bool) {
	get := func(base expr.PayloadBase, at, n uint32) (b []byte) {
		for i := at; i < at+n; i++ {
			if v, ok := h[base][i]; ok {
				b = append(b, v)
			}
		}
		return b
	}
	a, ok := netip.AddrFromSlice(get(expr.PayloadBaseNetworkHeader, addr, size))
	p := get(expr.PayloadBaseTransportHeader, port, 2)
	if !ok || len(p) != 2 {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(p)), true
}
