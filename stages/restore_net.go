package stages

import (
	"context"
	"fmt"
	"os"
	"strconv"

	"cryo/internal/actions"
	"cryo/internal/netlock"
	"cryo/internal/nsenter"
	"cryo/internal/options"
	"cryo/restorers"
)

// checkJoins refuses what cannot be joined.
func (r *restorer) checkJoins() error {
	for _, j := range r.o.JoinNS {
		if j.NS != "net" {
			return fmt.Errorf("--join-ns %s:%s: only network namespaces can be joined yet", j.NS, j.File)
		}
	}
	return nil
}

// openNet finds or makes the network namespace of the tree: one to join, which is as it is to be, or a new one, which is
// filled. It stays nil for a tree that lives in the tool's own.
func (r *restorer) openNet(p *restorePlan) (err error) {
	for _, j := range r.o.JoinNS[:min(len(r.o.JoinNS), 1)] { // of a kind the first counts
		path := j.File
		if pid, err := strconv.Atoi(path); err == nil {
			path = fmt.Sprintf("/proc/%d/ns/net", pid)
		}
		if r.net, err = os.Open(path); err != nil {
			return fmt.Errorf("--join-ns: %w", err)
		}
	}
	if p.net != nil && p.net.New {
		if r.net, err = nsenter.NewNet(); err != nil {
			return err
		}
	}
	err = nsenter.Net(r.net, func() error {
		if p.net != nil {
			if err := p.net.Fill(r.o.WeakSysctls, p.files); err != nil {
				return fmt.Errorf("network namespace: %w", err)
			}
		}
		return p.files.OpenTuns()
	})
	if err != nil || p.net == nil || !p.net.New {
		return err
	}
	if len(p.files.Connections()) == 0 || p.set.Inventory.GetNetworkLockMethod() == uint32(options.LockSkip) {
		return nil
	}
	lock := r.lockOf(p)
	if locked, err := netlock.Locked(lock); locked || err != nil {
		return err // criu stores the lock among the rules of the namespace
	}
	return netlock.LockAll(lock)
}

// announceNamespaces lets scripts add to the namespaces of a tree that has any of its own. The root is in them from its
// first moment on, and has done nothing yet.
func (r *restorer) announceNamespaces(ctx context.Context, p *restorePlan) error {
	if r.net == nil && !p.cgroups.Namespace() && p.cloneFlags() == 0 {
		return nil
	}
	for _, phase := range []actions.Phase{actions.SetupNamespaces, actions.PostSetupNamespaces} {
		if err := r.scripts.Run(ctx, phase); err != nil {
			return err
		}
	}
	return nil
}

// planNet reads the network namespace of the set, unless one is joined in its place.
func (r *restorer) planNet(s *restorers.Set) (*restorers.NetNS, error) {
	if err := r.checkJoins(); err != nil {
		return nil, err
	}
	if len(r.o.JoinNS) > 0 {
		return nil, nil
	}
	return restorers.PlanNetNS(s)
}
