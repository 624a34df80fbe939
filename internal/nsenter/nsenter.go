// Package nsenter does things in other network namespaces than the tool's.
//
// A thread can move between network namespaces by itself (setns(2), Linux 3.0), but Go moves goroutines between threads. So
// what is to be done elsewhere gets a thread of its own, which ends with it and is never seen by other goroutines. Sockets
// stay in the namespace in which they were made, and so do processes that such a thread starts.
//
// Package vishvananda/netns switches the caller's thread and leaves the rest to the caller.
package nsenter

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ownNet is the calling thread's network namespace.
const ownNet = "/proc/thread-self/ns/net"

// Net calls do in a network namespace; nil stands for the tool's own. What do starts in other goroutines happens in the
// tool's. It needs CAP_SYS_ADMIN, in the namespace's owner as well.
func Net(ns *os.File, do func() error) error {
	if ns == nil {
		return do()
	}
	return In(int(ns.Fd()), unix.CLONE_NEWNET, do)
}

// In calls do in the namespace that fd is open for, of a kind (CLONE_NEW*) that a thread can enter: network, UTS or IPC.
func In(fd, kind int, do func() error) error {
	return onThread(func() error {
		if err := unix.Setns(fd, kind); err != nil {
			return fmt.Errorf("enter a namespace: %w", err)
		}
		return do()
	})
}

// OtherNet opens the network namespace of a process if it is not the tool's own, else it is nil.
func OtherNet(pid int) (*os.File, error) {
	var own, theirs unix.Stat_t
	path := fmt.Sprintf("/proc/%d/ns/net", pid)
	for p, st := range map[string]*unix.Stat_t{ownNet: &own, path: &theirs} {
		if err := unix.Stat(p, st); err != nil {
			return nil, fmt.Errorf("network namespace %s: %w", p, err)
		}
	}
	if own.Ino == theirs.Ino {
		return nil, nil
	}
	return os.Open(path)
}

// NewNet makes a network namespace. It lasts as long as the file is open, or somebody is in there.
func NewNet() (ns *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		ns, err = os.Open(ownNet)
		return err
	})
	return ns, err
}

// Hop moves the calling thread, which must be locked, into a network namespace; back moves it back.
func Hop(ns *os.File) (back func() error, err error) {
	if ns == nil {
		return func() error { return nil }, nil
	}
	own, err := os.Open(ownNet)
	if err != nil {
		return nil, err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		own.Close()
		return nil, fmt.Errorf("enter a network namespace: %w", err)
	}
	return func() error {
		defer own.Close()
		return unix.Setns(int(own.Fd()), unix.CLONE_NEWNET)
	}, nil
}

// onThread calls do on a thread that ends with it: a goroutine that never unlocks its thread takes it along. The first
// thread of a process is spared. It stands for the whole process in /proc, and it would not end.
func onThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			done <- onThread(do) // on another thread, as this one is taken
			runtime.UnlockOSThread()
			return
		}
		done <- do()
	}()
	return <-done
}
