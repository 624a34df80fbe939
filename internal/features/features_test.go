package features

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// criuNames are the features of criu 4.2, in its order.
const criuNames = `mnt_id mem_dirty_track aio_remap timerfd tun tun_ns userns fdinfo_lock seccomp_suspend seccomp_filters
loginuid cgroupns autofs tcp_half_closed compat_cr uffd uffd-noncoop can_map_vdso sk_ns sk_unix_file net_diag_raw nsid
link_nsid kcmp_epoll timens external_net_ns clone3_set_tid newifindex nftables has_ipt_legacy pidfd_store ns_pid
apparmor_stacking network_lock_nftables sockopt_buf_lock memfd_hugetlb move_mount_set_group openat2 get_rseq_conf
ipv6_freebind pagemap_scan timer_cr_ids overlayfs_maps breakpoints pagemap_scan_guard_pages`

func TestRegistryHasEveryFeatureOfCriu(t *testing.T) {
	names := strings.Fields(criuNames)
	if len(names) != 45 {
		t.Fatalf("the list has %d names, not 45", len(names))
	}
	seen := map[string]bool{}
	for i, f := range All {
		if i < len(names) && f.Name != names[i] {
			t.Errorf("place %d has %s, not %s", i, f.Name, names[i])
		}
		if seen[f.Name] || f.About == "" {
			t.Errorf("%s: twice, or without a description", f.Name)
		}
		seen[f.Name] = true
	}
}

// Probes may not leave anything behind in this process, and their answers must be reasons, not accidents.
func TestProbesDisturbNothing(t *testing.T) {
	before := state(t)
	for _, f := range All {
		err := f.probe()
		t.Logf("%-26s %v", f.Name, err)
		for _, accident := range []error{unix.EFAULT, unix.EBADF, unix.ESRCH, unix.ECHILD} {
			if errors.Is(err, accident) {
				t.Errorf("%s: %v", f.Name, err)
			}
		}
		if after := state(t); after != before {
			t.Fatalf("%s: before %s, after %s", f.Name, before, after)
		}
	}
}

// What every machine that runs these tests has.
func TestKnownFeatures(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, f := range []*Feature{MntID, Kcmp, PrctlMM, SetTid, PtraceSiginfo, SockNS, NSPid, FdinfoLock, SeccompFilters, NetNSID, AioRemap} {
		if err := f.Err(); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func TestErrorNamesTheFeature(t *testing.T) {
	f := define("x", Extra, "9.9", "do y", func() error { return unix.ENOSYS })
	register([]*Feature{f})
	if f.Available() || !errors.Is(f.Err(), unix.ENOSYS) {
		t.Error("a failing probe makes a feature")
	}
	want := "x (do y, in Linux since 9.9): function not implemented"
	if got := f.Err().Error(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// state is what a probe could change: descriptors, children, mappings that are nobody's, namespaces.
func state(t *testing.T) string {
	t.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, fd := range fds {
		target, _ := os.Readlink(filepath.Join("/proc/self/fd", fd.Name()))
		if !strings.HasPrefix(target, "/proc/") { // the directory being read
			names = append(names, fd.Name()+"="+target)
		}
	}
	slices.Sort(names)
	var ns []string
	for _, kind := range []string{"mnt", "net", "user"} {
		link, _ := os.Readlink("/proc/self/ns/" + kind)
		ns = append(ns, link)
	}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()))
	luid, _ := os.ReadFile("/proc/self/loginuid")
	links, _ := os.ReadFile("/proc/net/dev_mcast")
	return fmt.Sprint(names, ns, string(children), string(luid), len(links))
}
