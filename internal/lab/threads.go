package lab

import (
	"debug/buildinfo"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Every program in Go has a thread that watches its other threads (sysmon). While the program has work it looks every
// 20 µs. On a virtual machine each look costs the machine as much time again, and the lab runs a dozen such programs on
// few cores, where a site would have them on machines of their own: a fifth of what the lab used went there
// (docs/adr/029). The kernel's timer slack lets these threads alone sleep longer. It takes a capability that root has;
// without it everything works as before.
const (
	watchSlack = 10 * time.Millisecond // the monitor's longest own sleep: it gets there by itself where nothing happens
	// A store has one processor and writes to disk: what else it has to do waits until the monitor sees that it does.
	storeSlack  = 500 * time.Microsecond
	normalSlack = 50 * time.Microsecond // Linux' default
	calmEvery   = 2 * time.Second
)

// calm slows down the monitor threads of the programs that run, until Close.
func (p *Processes) calm() {
	tick := time.NewTicker(calmEvery)
	defer tick.Stop()
	for {
		calmThreads(os.Getpid(), watchSlack)
		for pid, slack := range p.programsInGo() {
			calmThreads(pid, slack)
		}
		select {
		case <-p.done:
			return
		case <-tick.C:
		}
	}
}

// programsInGo lists the programs that run and are written in Go, with what their monitors' slack should be.
func (p *Processes) programsInGo() map[int]time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	slacks := map[int]time.Duration{}
	for name, proc := range p.mu.byName {
		if proc.ended() || !inGo(proc.cmd.Path) {
			continue
		}
		slacks[proc.child.Process.Pid] = watchSlack
		if strings.HasSuffix(name, "/store") {
			slacks[proc.child.Process.Pid] = storeSlack
		}
	}
	return slacks
}

var goPrograms sync.Map // by path

func inGo(path string) bool {
	known, ok := goPrograms.Load(path)
	if !ok {
		_, err := buildinfo.ReadFile(path)
		known, _ = goPrograms.LoadOrStore(path, err == nil)
	}
	return known.(bool)
}

// calmThreads sets the slack of one program's monitor: its second thread, as the runtime starts it before anything else.
// A thread has its slack from the thread that made it, so those that the monitor made are set right.
func calmThreads(pid int, slack time.Duration) {
	threads := threadsOf(pid)
	for n, thread := range threads {
		file := filepath.Join("/proc", strconv.Itoa(thread), "timerslack_ns")
		want := normalSlack
		if n == 1 {
			want = slack
		}
		text, err := os.ReadFile(file)
		if err != nil {
			return // it has ended, or this is not allowed
		}
		if has, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); time.Duration(has) != want && (n == 1 || time.Duration(has) == slack) {
			_ = os.WriteFile(file, strconv.AppendInt(nil, int64(want), 10), 0)
		}
	}
}

// threadsOf lists the threads of a process, in the order in which it made them.
func threadsOf(pid int) (threads []int) {
	entries, _ := os.ReadDir(filepath.Join("/proc", strconv.Itoa(pid), "task"))
	for _, e := range entries {
		if thread, err := strconv.Atoi(e.Name()); err == nil {
			threads = append(threads, thread)
		}
	}
	slices.Sort(threads)
	return threads
}
