// Package netlock holds the packets of single TCP connections back while the connections are in nobody's hands: their
// sockets are being read, stored on disk or made anew. Without it the kernel would answer a peer with a reset.
//
// The lock is a table of nf_tables of its own, named after the run that made the dump, as criu 4.2 names it: it goes with
// the set, and either tool can take it away on restore. Packets with Mark pass: those by which a restore plays the part of
// the peer.
//
// Kernel interfaces: nf_tables over netlink, inet family (Linux 3.14), concatenations in sets (4.1).
package netlock

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Mark is on packets that pass the lock.
const Mark = 0xC114

// Conn is a connection by its two ends.
type Conn struct{ Local, Remote netip.AddrPort }

// maxName is how much of a name criu 4.2 uses: it keeps it, after "inet ", in 31 bytes.
const maxName = 26

// Table is the name of the lock of a dump. Sets of old tools have no run id, and go by the pid of the root.
func Table(runID string, root int) string {
	if runID == "" {
		return fmt.Sprintf("CRIU-%d", root)
	}
	name := "CRIU-" + runID
	return name[:min(len(name), maxName)]
}

// chunk is how many connections one message holds: the list of elements is an attribute of at most 64 KiB.
const chunk = 200

// Where is a lock: its name, and the network namespace it is in, nil for the tool's own.
type Where struct {
	Table string
	Net   *os.File
}

// conn connects to nf_tables.
func (w Where) conn() (*nftables.Conn, error) {
	var options []nftables.ConnOption
	if w.Net != nil {
		options = append(options, nftables.WithNetNSFd(int(w.Net.Fd())))
	}
	c, err := nftables.New(options...)
	if err != nil {
		return nil, fmt.Errorf("nf_tables: %w", err)
	}
	return c, nil
}

// LockAll makes a lock that no packet passes but marked ones, in either direction.
func LockAll(w Where) error {
	c, err := w.conn()
	if err != nil {
		return err
	}
	t := c.CreateTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: w.Table})
	drop := nftables.ChainPolicyDrop
	addChain(c, t, "input", nftables.ChainHookInput, &drop)
	addChain(c, t, "output", nftables.ChainHookOutput, &drop)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lock a network namespace by nf_tables: %w (--network-lock skip does without)", err)
	}
	return nil
}

// Lock makes the lock of some connections, all or none.
func Lock(w Where, conns []Conn) error {
	c, err := w.conn()
	if err != nil {
		return err
	}
	t := c.CreateTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: w.Table})
	in, out := addChain(c, t, "input", nftables.ChainHookInput, nil), addChain(c, t, "output", nftables.ChainHookOutput, nil)
	for _, f := range families {
		set := &nftables.Set{Table: t, Name: f.set, KeyType: f.key(), Concatenation: true}
		if err := c.AddSet(set, nil); err != nil {
			return fmt.Errorf("nf_tables set: %w", err)
		}
		keys := f.keys(conns)
		for part := range slices.Chunk(keys, chunk) {
			if err := c.SetAddElements(set, part); err != nil {
				return fmt.Errorf("nf_tables set: %w", err)
			}
		}
		for _, chain := range []*nftables.Chain{in, out} {
			c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: f.match(set)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("lock the network by nf_tables: %w (--network-lock skip does without)", err)
	}
	return nil
}

// addChain adds a base chain that lets marked packets pass; policy, if not nil, says what becomes of others.
func addChain(c *nftables.Conn, t *nftables.Table, name string, hook *nftables.ChainHook, policy *nftables.ChainPolicy) *nftables.Chain {
	chain := c.AddChain(&nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: policy})
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(Mark)},
		&expr.Verdict{Kind: expr.VerdictAccept},
	}})
	return chain
}

// family is how one version of IP is matched.
type family struct {
	set      string
	proto    byte
	addr     nftables.SetDatatype
	size     uint32 // bytes of an address
	src, dst uint32 // offsets of the addresses in the header
}

var families = []family{
	{"conns4", unix.NFPROTO_IPV4, nftables.TypeIPAddr, 4, 12, 16},
	{"conns6", unix.NFPROTO_IPV6, nftables.TypeIP6Addr, 16, 8, 24},
}

func (f family) key() nftables.SetDatatype {
	return nftables.MustConcatSetType(f.addr, nftables.TypeInetService, f.addr, nftables.TypeInetService)
}

// keys are the elements of a family's set: each connection as packets of either direction show it.
func (f family) keys(conns []Conn) []nftables.SetElement {
	var list []nftables.SetElement
	for _, c := range conns {
		src, dst := c.Local.Addr().Unmap(), c.Remote.Addr().Unmap()
		if src.Is4() != (f.size == 4) {
			continue
		}
		a, b := end(src, c.Local.Port()), end(dst, c.Remote.Port())
		there := slices.Concat(a, b)
		list = append(list, nftables.SetElement{Key: there})
		if back := slices.Concat(b, a); !slices.Equal(there, back) {
			list = append(list, nftables.SetElement{Key: back})
		}
	}
	// Both ends of a connection within one machine are the same pair of elements.
	slices.SortFunc(list, func(x, y nftables.SetElement) int { return slices.Compare(x.Key, y.Key) })
	return slices.CompactFunc(list, func(x, y nftables.SetElement) bool { return slices.Equal(x.Key, y.Key) })
}

// end is an address and a port, in whole words as concatenations have them.
func end(a netip.Addr, port uint16) []byte {
	return append(binary.BigEndian.AppendUint16(a.AsSlice(), port), 0, 0)
}

// match drops TCP packets whose addresses and ports are in the set. They are put side by side in registers, of which the
// kernel counts 32-bit ones from 8 on.
func (f family) match(set *nftables.Set) []expr.Any {
	words := f.size / 4
	const first = unix.NFT_REG32_00
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: first},
		&expr.Cmp{Op: expr.CmpOpEq, Register: first, Data: []byte{f.proto}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: first},
		&expr.Cmp{Op: expr.CmpOpEq, Register: first, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.src, Len: f.size, DestRegister: first},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 2, DestRegister: first + words},
		&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.size, DestRegister: first + words + 1},
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: first + 2*words + 1},
		&expr.Lookup{SourceRegister: first, SetName: set.Name, SetID: set.ID},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// Doors is the name of a second lock of a dump: that of the doors by which new connections come in.
func Doors(runID string) string { return Table(runID, 0) + "-doors" }

// KeepOut makes a lock that holds new connections back, those to listeners at some addresses: their first packets are
// dropped, and the peers repeat them after a second. What has begun to connect goes on.
func KeepOut(w Where, listeners []netip.AddrPort) error {
	c, err := w.conn()
	if err != nil {
		return err
	}
	t := c.CreateTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: w.Table})
	in := addChain(c, t, "input", nftables.ChainHookInput, nil)
	for _, l := range listeners {
		c.AddRule(&nftables.Rule{Table: t, Chain: in, Exprs: firstPackets(l)})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("hold new connections back by nf_tables: %w", err)
	}
	return nil
}

// firstPackets drops TCP packets to a listener that have the flag SYN but none of ACK and RST.
func firstPackets(l netip.AddrPort) []expr.Any {
	const flagsAt, syn, rst, ack = 13, 0x02, 0x04, 0x10
	equal := func(data ...byte) expr.Any { return &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data} }
	var match []expr.Any
	if a := l.Addr().Unmap(); !a.IsUnspecified() {
		f := families[0]
		if a.Is6() {
			f = families[1]
		}
		match = []expr.Any{
			&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(f.proto),
			&expr.Payload{Base: expr.PayloadBaseNetworkHeader, Offset: f.dst, Len: f.size, DestRegister: 1}, equal(a.AsSlice()...),
		}
	}
	return append(match,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(unix.IPPROTO_TCP),
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: 1}, equal(binary.BigEndian.AppendUint16(nil, l.Port())...),
		&expr.Payload{Base: expr.PayloadBaseTransportHeader, Offset: flagsAt, Len: 1, DestRegister: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn | rst | ack}, Xor: []byte{0}}, equal(syn),
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
}

// Locked says whether the lock is there.
func Locked(w Where) (bool, error) {
	c, err := w.conn()
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("tables of nf_tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == w.Table }), nil
}

// Unlock takes a lock away. One that is not there is no error, nor is a kernel without nf_tables.
func Unlock(w Where) error {
	c, err := w.conn()
	if err == nil {
		c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: w.Table})
		err = c.Flush()
	}
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EPROTONOSUPPORT) {
		return fmt.Errorf("unlock the network: %w", err)
	}
	return nil
}

// Record is what the guardian has to know to take a lock away.
type Record struct {
	Table string
	Net   *os.File `json:"-"`
}

// UndoKind implements guardian.Record.
func (Record) UndoKind() string { return "unlock-network" }

// Descriptors implements guardian.Holder.
func (r Record) Descriptors() []*os.File {
	if r.Net == nil {
		return nil
	}
	return []*os.File{r.Net}
}

// DoRecord does such a record in the guardian.
func DoRecord(_ context.Context, data json.RawMessage, fds []int) error {
	var r Record
	if err := json.Unmarshal(data, &r); err != nil {
		return err
	}
	if len(fds) > 0 {
		fd, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0) // the guardian closes its own
		if err != nil {
			return err
		}
		r.Net = os.NewFile(uintptr(fd), "network namespace")
		defer r.Net.Close()
	}
	return Unlock(Where(r))
}
