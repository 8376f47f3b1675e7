package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/atollhq/atoll/internal/supervise"
	"github.com/atollhq/atoll/topo"
)

// stopGrace is how long a process may take to end after SIGTERM before it is killed.
const stopGrace = 8 * time.Second

// Command describes a process of the lab.
type Command struct {
	Name string      // as the operator of the lab calls it: "a/agent"
	Site topo.SiteID // where it runs; "": beside the lab
	Path string
	Args []string
	Env  []string // added to the lab's own environment
	Dir  string
	As   *syscall.Credential // nil: the lab's own user
}

// starter starts a process at a site, "" for beside the lab.
type starter func(topo.SiteID, *exec.Cmd) (*supervise.Process, error)

// startBeside starts every site's processes beside the lab, as sites whose addresses are loopback's.
func startBeside(_ topo.SiteID, cmd *exec.Cmd) (*supervise.Process, error) {
	return supervise.Start(cmd)
}

// Processes starts, signals and ends the lab's children. Each runs in a process group of its own, so that a Ctrl-C in
// the terminal reaches only the lab, which then ends them in order; each dies with the lab also where the lab is
// killed.
type Processes struct {
	logs   string       // folder of one log per process
	onExit func(string) // called when a process ends that nobody told to; may be nil
	start  starter
	done   chan struct{} // closed by Close

	mu struct {
		sync.Mutex
		byName map[string]*process
		order  []string
		closed bool
	}
}

type process struct {
	*supervise.Process
	cmd   Command
	child *exec.Cmd
	asked bool // guarded by Processes.mu: it was told to end
}

// NewProcesses makes an empty set; logs go to files in the folder.
func NewProcesses(logs string, onExit func(name string)) *Processes {
	p := &Processes{logs: logs, onExit: onExit, start: startBeside, done: make(chan struct{})}
	p.mu.byName = map[string]*process{}
	go p.calm() // ends at Close
	return p
}

// Close stops every process, the last started first. None can be started afterwards.
func (p *Processes) Close() error {
	p.mu.Lock()
	order := p.mu.order
	if !p.mu.closed {
		p.mu.closed = true
		close(p.done)
	}
	p.mu.Unlock()
	var all error
	for _, name := range slices.Backward(order) {
		all = errors.Join(all, p.Stop(name))
	}
	return all
}

// LogFile is where a process writes its standard output and error.
func (p *Processes) LogFile(name string) string {
	return filepath.Join(p.logs, strings.ReplaceAll(name, "/", "-")+".log")
}

// Start starts a process under its name.
func (p *Processes) Start(c Command) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.closed {
		return fmt.Errorf("lab: start %s: the lab is closing", c.Name)
	}
	if old := p.mu.byName[c.Name]; old != nil && !old.ended() {
		return fmt.Errorf("lab: %s runs already", c.Name)
	}
	log, err := os.OpenFile(p.LogFile(c.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("lab: log of %s: %w", c.Name, err)
	}
	defer log.Close()
	child := childOf(c)
	child.Stdout, child.Stderr = log, log
	started, err := p.start(c.Site, child)
	if err != nil {
		return fmt.Errorf("lab: start %s: %w", c.Name, err)
	}
	proc := &process{Process: started, cmd: c, child: child}
	if p.mu.byName[c.Name] == nil {
		p.mu.order = append(p.mu.order, c.Name)
	}
	p.mu.byName[c.Name] = proc
	go p.reap(proc)
	return nil
}

func childOf(c Command) *exec.Cmd {
	child := exec.Command(c.Path, c.Args...)
	child.Dir = c.Dir
	child.Env = append(os.Environ(), c.Env...)
	child.WaitDelay = time.Second
	child.SysProcAttr = &syscall.SysProcAttr{Credential: c.As}
	return child
}

func (p *Processes) reap(proc *process) {
	<-proc.Done
	p.mu.Lock()
	surprise := !proc.asked
	p.mu.Unlock()
	if surprise && p.onExit != nil {
		p.onExit(proc.cmd.Name)
	}
}

func (proc *process) ended() bool {
	select {
	case <-proc.Done:
		return true
	default:
		return false
	}
}

// result is nil where the process ended of itself and well.
func (proc *process) result() error {
	if proc.child.ProcessState.Success() {
		return nil
	}
	return proc.Err()
}

func (p *Processes) find(name string, asked bool) (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	proc := p.mu.byName[name]
	if proc == nil {
		return nil, fmt.Errorf("lab: no process is called %q; there are %s", name, strings.Join(p.mu.order, " "))
	}
	if asked {
		proc.asked = true
	}
	return proc, nil
}

// Names lists the processes in the order of their start.
func (p *Processes) Names() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.mu.order...)
}

// Running tells whether a process runs (a paused one does).
func (p *Processes) Running(name string) bool {
	proc, err := p.find(name, false)
	return err == nil && !proc.ended()
}

// Stop asks a process to end and waits; after a while it is killed. Stopping one that has ended does nothing.
func (p *Processes) Stop(name string) error {
	proc, err := p.find(name, true)
	if err != nil || proc.ended() {
		return err
	}
	// A paused process would sleep through its end.
	if err := errors.Join(signalGroup(proc, syscall.SIGTERM), signalGroup(proc, syscall.SIGCONT)); err != nil {
		return err
	}
	select {
	case <-proc.Done:
		return nil
	case <-time.After(stopGrace):
		return p.Kill(name)
	}
}

// Ask asks a process to end and does not wait.
func (p *Processes) Ask(name string) error {
	proc, err := p.find(name, true)
	if err != nil || proc.ended() {
		return err
	}
	return signalGroup(proc, syscall.SIGTERM)
}

// Kill ends a process and its children at once, as a crash.
func (p *Processes) Kill(name string) error {
	proc, err := p.find(name, true)
	if err != nil || proc.ended() {
		return err
	}
	if err := signalGroup(proc, syscall.SIGKILL); err != nil {
		return err
	}
	<-proc.Done
	return nil
}

// KillAll kills processes at one moment: all are signalled before any is waited for. Those that have ended stay so.
func (p *Processes) KillAll(names []string) error {
	var all error
	var killed []*process
	for _, name := range names {
		proc, err := p.find(name, true)
		if err != nil || proc.ended() {
			all = errors.Join(all, err)
			continue
		}
		if err := signalGroup(proc, syscall.SIGKILL); err != nil {
			all = errors.Join(all, err)
			continue
		}
		killed = append(killed, proc)
	}
	for _, proc := range killed {
		<-proc.Done
	}
	return all
}

// Wait waits until a process has ended by itself and returns how.
func (p *Processes) Wait(ctx context.Context, name string) error {
	proc, err := p.find(name, true)
	if err != nil {
		return err
	}
	select {
	case <-proc.Done:
		return proc.result()
	case <-ctx.Done():
		return fmt.Errorf("lab: %s has not ended: %w", name, ctx.Err())
	}
}

// Pause stops a process where it is; Resume lets it go on.
func (p *Processes) Pause(name string) error { return p.signal(name, syscall.SIGSTOP) }

// Resume lets a paused process go on.
func (p *Processes) Resume(name string) error { return p.signal(name, syscall.SIGCONT) }

// Restart starts a process again as it was started before, after ending it in order if it still runs.
func (p *Processes) Restart(name string) error {
	proc, err := p.find(name, false)
	if err != nil {
		return err
	}
	if err := p.Stop(name); err != nil {
		return err
	}
	return p.Start(proc.cmd)
}

func (p *Processes) signal(name string, sig syscall.Signal) error {
	proc, err := p.find(name, false)
	if err != nil {
		return err
	}
	if proc.ended() {
		return fmt.Errorf("lab: %s does not run", name)
	}
	return signalGroup(proc, sig)
}

func signalGroup(proc *process, sig syscall.Signal) error {
	err := syscall.Kill(-proc.child.Process.Pid, sig)
	if err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("lab: signal %s: %w", proc.cmd.Name, err)
	}
	return nil
}

// Run runs a command to its end and returns what it wrote to standard output. Its error carries what it wrote to
// standard error.
func (p *Processes) Run(ctx context.Context, c Command) ([]byte, error) {
	child := childOf(c)
	var out, errs bytes.Buffer
	child.Stdout, child.Stderr = &out, &errs
	proc, err := p.start(c.Site, child)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", c.Name, err)
	}
	select {
	case <-proc.Done:
	case <-ctx.Done():
		_ = syscall.Kill(-child.Process.Pid, syscall.SIGKILL) // it may have ended meanwhile
		<-proc.Done
		return nil, fmt.Errorf("lab: %s: %w", c.Name, ctx.Err())
	}
	if !child.ProcessState.Success() {
		return out.Bytes(), fmt.Errorf("lab: %s (%s %s): %w\n%s", c.Name, filepath.Base(c.Path), strings.Join(c.Args, " "),
			proc.Err(), bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// Tail returns the last lines of a process's log, for messages.
func (p *Processes) Tail(name string, lines int) string {
	data, err := os.ReadFile(p.LogFile(name))
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
