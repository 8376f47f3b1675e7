package lab

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

func slackOf(t *testing.T, thread int) time.Duration {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(thread), "timerslack_ns"))
	if err != nil {
		t.Skipf("this machine does not show a thread's slack: %v", err)
	}
	slack, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return time.Duration(slack)
}

func TestCalmThreads(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root may set another thread's slack")
	}
	p := testProcesses(t, nil)
	if err := p.Start(roleCommand("a/agent", "polite")); err != nil {
		t.Fatal(err)
	}
	p.logged(t, "a/agent", "up")
	proc, err := p.find("a/agent", false)
	if err != nil {
		t.Fatal(err)
	}
	pid := proc.child.Process.Pid
	threads := threadsOf(pid)
	if len(threads) < 3 || threads[0] != pid {
		t.Fatalf("threads %v of process %d", threads, pid)
	}
	// As if the monitor had made the third one.
	if err := os.WriteFile(filepath.Join("/proc", strconv.Itoa(threads[2]), "timerslack_ns"), []byte(strconv.FormatInt(int64(watchSlack), 10)), 0); err != nil {
		t.Skipf("this machine does not let the slack be set: %v", err)
	}
	calmThreads(pid, watchSlack)
	for n, thread := range threadsOf(pid) {
		want := normalSlack
		if n == 1 {
			want = watchSlack
		}
		if got := slackOf(t, thread); got != want {
			t.Errorf("thread %d: slack %v, want %v", n, got, want)
		}
	}
	calmThreads(1<<30, watchSlack) // no such process: nothing happens
}

func TestInGo(t *testing.T) {
	t.Parallel()
	if !inGo(os.Args[0]) || inGo("/bin/sh") || inGo("/nowhere") {
		t.Error("a program in Go is one that carries the toolchain's word")
	}
}
