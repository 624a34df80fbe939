package restorers

import (
	"fmt"
	"strconv"
	"strings"

	"cryo/internal/procfs"

	"golang.org/x/sys/unix"
)

// Base is what every restored thread has from the tool and need not be set where the image says the same.
type Base struct {
	*procfs.Status
	Nice        int32
	LoginUID    uint32 // of the audit system; noLoginUID if never set or not built in
	OOMScoreAdj int32
}

const noLoginUID = ^uint32(0)

// ReadBase reads it of the running tool.
func ReadBase() (*Base, error) {
	dir, err := procfs.OpenTask(unix.Getpid())
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	b := &Base{LoginUID: noLoginUID}
	if b.Status, err = dir.Status(); err != nil {
		return nil, err
	}
	// The raw system call tells 20 - nice, so that it is never negative.
	prio, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return nil, fmt.Errorf("nice value of the tool: %w", err)
	}
	b.Nice = int32(20 - prio)
	if n, err := readNumber(dir, "loginuid"); err == nil {
		b.LoginUID = uint32(n)
	}
	if n, err := readNumber(dir, "oom_score_adj"); err == nil {
		b.OOMScoreAdj = int32(n)
	}
	return b, nil
}

func readNumber(dir *procfs.Dir, entry string) (int64, error) {
	text, err := dir.Read(entry)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}
