package stages

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"cryo/internal/netlock"
	"cryo/internal/nsenter"
	"cryo/internal/options"
	"cryo/internal/procfs"
	"cryo/internal/sockdiag"
)

// A server that is busy has always connections that it has not accepted yet, and the kernel lets nobody take those out of
// their queue and put them back. So, where connections are kept at all, new ones are held back at the doors before the tree
// is stopped, and it is given the time to accept those that are in. The peers notice nothing but that connecting takes a
// second longer.

// drainPatience is how long a tree may take to accept the connections that wait. What remains then is refused as ever.
const drainPatience = 500 * time.Millisecond

// closeDoors holds new connections to the tree back, until openDoors.
func (d *dumper) closeDoors(ctx context.Context) error {
	if !d.o.TCPEstablished || d.o.SkipInFlight || d.o.DryRun || d.o.Verb == options.PreDump || d.o.NetworkLock == options.LockSkip {
		return nil
	}
	ns, err := nsenter.OtherNet(d.o.Tree)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there is no such task, which the freeze will say
	}
	if err != nil {
		return err
	}
	d.entrance = netlock.Where{Table: netlock.Doors(d.runID), Net: ns}
	return nsenter.Net(ns, func() error { return d.keepOut(ctx) })
}

// keepOut is closeDoors in the network namespace of the tree.
func (d *dumper) keepOut(ctx context.Context) error {
	all, err := sockdiag.Listeners()
	if err != nil || len(all) == 0 {
		return err
	}
	byInode := map[uint32]sockdiag.Listener{}
	for _, l := range all {
		byInode[l.Inode] = l
	}
	own := map[uint32]netip.AddrPort{}
	for _, ino := range socketsBelow(d.o.Tree) {
		if l, ok := byInode[ino]; ok {
			own[ino] = l.Local
		}
	}
	if len(own) == 0 {
		return nil
	}
	if d.doors, err = d.undo.Push("let new connections in", 0, func(context.Context) error { return netlock.Unlock(d.entrance) }, netlock.Record(d.entrance)); err != nil {
		return err
	}
	addresses := make([]netip.AddrPort, 0, len(own))
	for _, a := range own {
		addresses = append(addresses, a)
	}
	if err := netlock.KeepOut(d.entrance, addresses); err != nil {
		d.log.Debug(fmt.Sprintf("New connections are not held back: %v", err))
		return nil // connections that are there cannot be locked either, and that is no matter if there are none
	}
	return drain(ctx, own)
}

// openDoors lets new connections in again.
func (d *dumper) openDoors() error {
	if d.doors == nil {
		return nil
	}
	return netlock.Unlock(d.entrance)
}

// drain waits until no connection waits at the listeners any more.
func drain(ctx context.Context, listeners map[uint32]netip.AddrPort) error {
	for end := time.Now().Add(drainPatience); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(time.Millisecond) {
		waiting, err := waitingAt(listeners)
		if err != nil || waiting == 0 {
			return err
		}
	}
	return context.Cause(ctx)
}

// waitingAt is how many connections wait at the listeners, and how many are about to.
func waitingAt(listeners map[uint32]netip.AddrPort) (n int, err error) {
	half, err := sockdiag.HalfOpen()
	if err != nil {
		return 0, err
	}
	all, err := sockdiag.Listeners()
	for _, l := range all {
		if _, own := listeners[l.Inode]; own {
			n += int(l.Waiting)
		}
	}
	for _, a := range listeners {
		n += half[a.Port()]
	}
	return n, err
}

// socketsBelow lists the inodes of the sockets that a tree holds. It still runs: what comes and goes meanwhile may be
// missed.
func socketsBelow(root int) (inodes []uint32) {
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		dir, err := procfs.OpenTask(pids[i])
		if err != nil {
			continue
		}
		if tids, err := dir.Threads(); err == nil {
			children, _ := dir.Children(tids)
			pids = append(pids, children...)
		}
		fds, _ := dir.FDs()
		for _, fd := range fds {
			link, err := dir.Readlink("fd/" + strconv.Itoa(fd))
			if ino, ok := strings.CutPrefix(link, "socket:["); err == nil && ok {
				if n, err := strconv.ParseUint(strings.TrimSuffix(ino, "]"), 10, 32); err == nil {
					inodes = append(inodes, uint32(n))
				}
			}
		}
		dir.Close()
	}
	return inodes
}
