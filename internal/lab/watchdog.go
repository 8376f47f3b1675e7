package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	runPrefix = "atoll-lab-"
	keptFile  = "keep" // in a run folder that shall outlive its lab
	runEnv    = "ATOLL_LAB_RUN"
)

// watchdogScript waits for the end of its standard input, which is the lab's end unless the lab said "done" before.
// Then it kills what still carries the run folder in its environment, or has its working directory there (a
// postmaster), and removes the folder. It is sh, so that it holds no page of a binary that may be replaced meanwhile.
const watchdogScript = `
trap '' INT TERM HUP
read -r word
[ "$word" = done ] && exit 0
for p in /proc/[0-9]*; do
	pid=${p#/proc/}
	[ "$pid" = $$ ] && continue
	case $(readlink "$p/cwd" 2>/dev/null) in "$1"/*) kill -9 "$pid" 2>/dev/null; continue;; esac
	grep -qzx "` + runEnv + `=$1" "$p/environ" 2>/dev/null && kill -9 "$pid" 2>/dev/null
done
n=0
while [ $n -lt 50 ]; do
	for disk in "$1"/*-db; do umount -l "$disk" 2>/dev/null; done
	rm -rf "$1" 2>/dev/null
	[ -e "$1" ] || exit 0
	n=$((n+1))
	sleep 0.1
done
`

// watchdog removes what a killed lab leaves behind.
type watchdog struct {
	child *exec.Cmd
	tell  io.WriteCloser
}

// newRunFolder makes the folder of one run and its watchdog, and removes the folders of labs that died together with
// their watchdogs.
func newRunFolder() (string, *watchdog, error) {
	removeOrphans()
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%d-", runPrefix, os.Getpid()))
	if err != nil {
		return "", nil, fmt.Errorf("lab: run folder: %w", err)
	}
	// Databases run as another user when the lab is root, and must be able to pass through.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", nil, fmt.Errorf("lab: run folder: %w", err)
	}
	child := exec.Command("sh", "-c", watchdogScript, "atoll-lab-watchdog", dir)
	child.Dir = "/"
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C is not for it
	tell, err := child.StdinPipe()
	if err == nil {
		err = child.Start()
	}
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("lab: start the watchdog: %w", err), os.RemoveAll(dir))
	}
	return dir, &watchdog{child: child, tell: tell}, nil
}

// done dismisses the watchdog: the lab has cleaned up itself.
func (w *watchdog) done() error {
	_, err := io.WriteString(w.tell, "done\n")
	return errors.Join(err, w.tell.Close(), w.child.Wait())
}

// removeOrphans removes run folders whose lab no longer runs. Failing is no reason not to start a new lab.
func removeOrphans() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), runPrefix+"*-*"))
	for _, dir := range dirs {
		var pid int
		if _, err := fmt.Sscanf(strings.TrimPrefix(filepath.Base(dir), runPrefix), "%d-", &pid); err != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(dir, keptFile)); err == nil {
			continue
		}
		if syscall.Kill(pid, 0) == syscall.ESRCH {
			_ = os.RemoveAll(dir)
		}
	}
}
