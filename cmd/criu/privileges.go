package main

import (
	"errors"
	"fmt"
	"os"

	"cryo/internal/options"

	"golang.org/x/sys/unix"
)

// privileges refuses a user without the capabilities that every verb needs: CAP_SYS_ADMIN or, since Linux 5.9,
// CAP_CHECKPOINT_RESTORE; and one who is not root and does not accept what follows from that.
func privileges(o *options.Options) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	has := func(c int) bool { return data[c/32].Effective&(1<<(c%32)) != 0 }
	if !has(unix.CAP_SYS_ADMIN) && !has(unix.CAP_CHECKPOINT_RESTORE) {
		self, err := os.Executable()
		if err != nil {
			self = os.Args[0]
		}
		return fmt.Errorf("neither CAP_SYS_ADMIN nor CAP_CHECKPOINT_RESTORE is effective: run as root, or once: "+
			"setcap cap_checkpoint_restore+eip %s", self)
	}
	if os.Geteuid() == 0 {
		return nil
	}
	if !o.Unprivileged {
		return errors.New("running as another user than root has limits: accept them with --unprivileged")
	}
	// File capabilities make a process undumpable, and its own /proc entries root's.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("make own /proc entries accessible: %w", err)
	}
	return nil
}
