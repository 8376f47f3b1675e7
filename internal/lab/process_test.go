package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

func testProcesses(t *testing.T, onExit func(string)) *Processes {
	t.Helper()
	p := NewProcesses(t.TempDir(), onExit)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func (p *Processes) logged(t *testing.T, name, text string) {
	t.Helper()
	eventually(t, name+" logs "+text, func() bool {
		data, err := os.ReadFile(p.LogFile(name))
		return err == nil && strings.Contains(string(data), text)
	})
}

func TestProcesses_StopRestartKill(t *testing.T) {
	t.Parallel()
	p := testProcesses(t, func(name string) { t.Errorf("%s ended by surprise", name) })
	if err := p.Start(roleCommand("a/agent", "polite")); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(roleCommand("a/agent", "polite")); err == nil {
		t.Error("a second process of the same name was started")
	}
	p.logged(t, "a/agent", "up")
	if err := p.Stop("a/agent"); err != nil || p.Running("a/agent") {
		t.Fatalf("after Stop: %v, running %v", err, p.Running("a/agent"))
	}
	p.logged(t, "a/agent", "down")
	if err := p.Restart("a/agent"); err != nil || !p.Running("a/agent") {
		t.Fatalf("after Restart: %v, running %v", err, p.Running("a/agent"))
	}
	if err := p.Kill("a/agent"); err != nil || p.Running("a/agent") {
		t.Fatalf("after Kill: %v, running %v", err, p.Running("a/agent"))
	}
	if err := p.Pause("a/agent"); err == nil {
		t.Error("a process that has ended was paused")
	}
	if err := p.Stop("b/agent"); err == nil || !strings.Contains(err.Error(), "a/agent") {
		t.Errorf("unknown name: %v; want an error that lists the names", err)
	}
}

func TestProcesses_PauseStopsTheProcess(t *testing.T) {
	t.Parallel()
	p := testProcesses(t, nil)
	if err := p.Start(roleCommand("a/g1", "ticker")); err != nil {
		t.Fatal(err)
	}
	p.logged(t, "a/g1", "\n")
	size := func() int64 {
		i, err := os.Stat(p.LogFile("a/g1"))
		if err != nil {
			t.Fatal(err)
		}
		return i.Size()
	}
	proc, err := p.find("a/g1", false)
	if err != nil {
		t.Fatal(err)
	}
	stopped := func() bool {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", proc.child.Process.Pid))
		return err == nil && strings.Contains(string(data), ") T ")
	}
	if err := p.Pause("a/g1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process stands still", stopped)
	still := size()
	if err := p.Resume("a/g1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process goes on", func() bool { return size() > still })
	if err := p.Pause("a/g1"); err != nil { // Close must end a paused one too
		t.Fatal(err)
	}
}

func TestProcesses_TellsOfADeath(t *testing.T) {
	t.Parallel()
	died := make(chan string, 1)
	p := testProcesses(t, func(name string) { died <- name })
	if err := p.Start(roleCommand("w/store", "short")); err != nil {
		t.Fatal(err)
	}
	if got := <-died; got != "w/store" {
		t.Errorf("%s died, want w/store", got)
	}
	if tail := p.Tail("w/store", 1); tail != "complaint" && tail != "out" {
		t.Errorf("tail %q", tail)
	}
}

func TestProcesses_Run(t *testing.T) {
	t.Parallel()
	p := testProcesses(t, nil)
	out, err := p.Run(t.Context(), roleCommand("once", "short"))
	if string(out) != "out\n" || err == nil || !strings.Contains(err.Error(), "complaint") {
		t.Errorf("%q, %v", out, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Run(ctx, roleCommand("once", "stubborn")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// A lab that is killed leaves neither processes nor its folder.
func TestLab_KilledLeavesNothing(t *testing.T) {
	t.Parallel()
	lab := exec.Command(os.Args[0])
	lab.Env = append(os.Environ(), roleEnv+"=lab", "TMPDIR="+t.TempDir())
	stdin, err := lab.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := lab.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Start(); err != nil {
		t.Fatal(err)
	}
	var dir string
	var pid int
	if _, err := fmt.Fscanln(stdout, &dir, &pid); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(syscall.Kill(pid, 0), lab.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = lab.Wait() // killed
	eventually(t, "the child is gone", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
	eventually(t, "the folder is gone", func() bool { _, err := os.Stat(dir); return errors.Is(err, os.ErrNotExist) })
}

func TestRemoveOrphans(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	gone := fmt.Sprintf("%s/%s%d-1", tmp, runPrefix, dead.Process.Pid)
	mine := fmt.Sprintf("%s/%s%d-2", tmp, runPrefix, os.Getpid())
	odd := tmp + "/" + runPrefix + "x-3"
	for _, dir := range []string{gone, mine, odd} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	removeOrphans()
	for dir, want := range map[string]bool{gone: false, mine: true, odd: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", dir, err == nil, want)
		}
	}
}
