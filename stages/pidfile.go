package stages

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

// WritePidFile makes a file that must not exist and writes a pid to it, without a newline, as criu's readers expect.
func WritePidFile(path string, pid int) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("pid file: %w: remove it if it is an old one", err)
	}
	_, err = f.WriteString(strconv.Itoa(pid))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("pid file: %w", err)
	}
	return nil
}
