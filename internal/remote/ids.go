package remote

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// idsLag is how long an id may stay taken when its task is gone. The kernel takes a thread that ends off all lists, and lets
// its process be waited for, a moment before it gives the id back.
const idsLag = 2 * time.Second

// retryTaken makes something that wants ids, one for each pid namespace from the innermost on, and tries again while the
// ids are taken and nobody is to be seen who has them.
func retryTaken(ids func() []int, make func() error) error {
	for pause, end := 50*time.Microsecond, time.Now().Add(idsLag); ; pause = min(2*pause, 10*time.Millisecond) {
		err := make()
		if errors.Is(err, unix.EAGAIN) {
			return fmt.Errorf("%w: allow more processes (pids.max of the control group, ulimit -u, kernel.threads-max)", err)
		}
		if !errors.Is(err, unix.EEXIST) || held(ids()) || time.Now().After(end) {
			return err
		}
		time.Sleep(pause)
	}
}

// held says whether a task or thread has the id, as it is called here.
func held(ids []int) bool {
	if len(ids) == 0 {
		return true
	}
	_, err := os.Lstat(fmt.Sprintf("/proc/%d", ids[len(ids)-1]))
	return err == nil
}
