package ptrace

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// Kill kills a task whose threads are all traced by the calling thread, and reaps it: first its other threads, because the
// end of the leader is reported only after all of them. So pid has to be the leader's: that of another thread would wait for
// ever. A task that is gone already is no error.
func Kill(pid int) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
		return err
	}
	for _, t := range threads {
		if tid, err := strconv.Atoi(t.Name()); err == nil && tid != pid {
			reap(tid)
		}
	}
	reap(pid)
	return nil
}

// reap waits until a dying thread is gone. Stops it had reported before are passed over; a thread that has been reaped, or
// ended by execve of another, is not there to wait for.
func reap(tid int) {
	for {
		if st, err := Wait(tid); err != nil || st.Gone() {
			return
		}
	}
}
