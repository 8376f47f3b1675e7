package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/uuid"
)

// lockState takes the lock on this agent's state, and leaves its incarnation there. previous is the incarnation of
// the run that held the lock before, which has ended: the lock goes with the process. The keeper may take over its
// lease at once. Without the lock (another agent of the site runs on this machine) previous is empty, and the keeper
// stands by.
func lockState(path, incarnation string) (unlock func(), previous string, err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, "", fmt.Errorf("state folder: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, "", fmt.Errorf("state: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return func() {}, "", nil
		}
		return nil, "", fmt.Errorf("lock %s: %w", path, err)
	}
	unlock = func() { _ = f.Close() } // the lock goes with the file
	held := make([]byte, 64)
	n, _ := f.ReadAt(held, 0) // empty, the first time
	if id, err := uuid.Parse(strings.TrimSpace(string(held[:n]))); err == nil {
		previous = id.String()
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt([]byte(incarnation+"\n"), 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		unlock()
		return nil, "", fmt.Errorf("state %s: %w", path, err)
	}
	return unlock, previous, nil
}
