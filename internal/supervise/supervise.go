// Package supervise runs the processes of a site as children: it restarts what ends, and stops all in reverse order.
//
// It guarantees that no child outlives the supervisor, also when that is killed. It refuses to hide a child that
// cannot start: a child that ends at once, again and again, is reported each time with how it ended.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Child is a process to keep running.
type Child struct {
	Name   string
	Path   string
	Args   []string
	Env    []string // nil: the supervisor's own
	Output io.Writer
	Renew  <-chan struct{} // a word starts a new process that takes over from the running one, which then ends by itself; nil: never
}

// Grace is how long a child may take to end after it was asked to.
const Grace = 10 * time.Second

// back-off between restarts of one child; a run of settled length resets it.
const (
	firstWait = 200 * time.Millisecond
	longest   = 10 * time.Second
	settled   = 30 * time.Second
)

// Run starts the children in order and keeps them running until ctx ends; then it stops them in reverse order, each
// only after the one behind it has ended, and returns nil. A child whose program does not exist is an error at once.
func Run(ctx context.Context, log *slog.Logger, children ...Child) error {
	for _, c := range children {
		if _, err := exec.LookPath(c.Path); err != nil {
			return fmt.Errorf("start %s: %w", c.Name, err)
		}
	}
	type running struct {
		cancel context.CancelFunc
		done   chan struct{}
	}
	var all []running
	for _, c := range children {
		// Each child has a context of its own, so that they end one after the other, not all with ctx.
		childCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		r := running{cancel, make(chan struct{})}
		all = append(all, r)
		go func() {
			defer close(r.done)
			keep(childCtx, log.With("child", c.Name), c)
		}()
	}
	<-ctx.Done()
	for _, r := range slices.Backward(all) {
		r.cancel()
		<-r.done
	}
	return nil
}

// keep is one child's life: it ends only with ctx.
func keep(ctx context.Context, log *slog.Logger, c Child) {
	wait := firstWait
	for {
		began := time.Now()
		err := once(ctx, log, c)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > settled {
			wait = firstWait
		}
		log.Error("child ended; it is started again", "how", err, "in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, longest)
	}
}

// once runs the child until it ends, or until ctx does and it is stopped.
func once(ctx context.Context, log *slog.Logger, c Child) error {
	p, err := c.start(log)
	if err != nil {
		return err
	}
	for {
		select {
		case <-p.Done:
			return p.Err()
		case <-ctx.Done():
			p.Stop(Grace)
			return p.Err()
		case <-c.Renew:
			p = renew(ctx, log, c, p)
		}
	}
}

func (c Child) start(log *slog.Logger) (*Process, error) {
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env, cmd.Stdout, cmd.Stderr = c.Env, c.Output, c.Output
	p, err := Start(cmd)
	if err == nil {
		log.Info("child started", "pid", cmd.Process.Pid)
	}
	return p, err
}

// renew starts a successor beside a running child and returns whichever is left. The two settle between them who goes: a
// successor that cannot do the work ends, and the child goes on.
func renew(ctx context.Context, log *slog.Logger, c Child, old *Process) *Process {
	next, err := c.start(log)
	if err != nil {
		log.Error("the child was not renewed", "error", err)
		return old
	}
	select {
	case <-old.Done:
		log.Info("the child before has ended", "pid", old.PID(), "how", old.Err())
		return next
	case <-next.Done:
		log.Error("the child was not renewed", "how", next.Err())
		return old
	case <-ctx.Done():
		old.Stop(Grace)
		return next // stopped by whoever asked
	}
}

// Process is a started child. It is killed when this process dies.
type Process struct {
	Done chan struct{} // closed when the child has ended

	cmd *exec.Cmd
	mu  struct {
		sync.Mutex
		err error
	}
}

// Start starts cmd in a process group of its own. The parent-death signal is sent when the thread that forked ends,
// not the process; so that thread waits for the child and does nothing else.
func Start(cmd *exec.Cmd) (*Process, error) { return StartWithin(cmd, nil) }

// StartWithin starts cmd from a thread that enter has moved somewhere, for example into a network namespace, where the
// child then lives. That thread does nothing else before or after. nil enters nothing.
func StartWithin(cmd *exec.Cmd, enter func() error) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	p := &Process{Done: make(chan struct{}), cmd: cmd}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var err error
		if enter == nil {
			defer runtime.UnlockOSThread()
		} else {
			err = enter() // and the thread, which stays locked, ends with this goroutine
		}
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		if err == nil {
			err = errors.New("exit status 0")
		}
		p.mu.Lock()
		p.mu.err = err
		p.mu.Unlock()
		close(p.Done)
	}()
	return p, <-started
}

// Stop asks the child to end, and after grace kills its process group. It returns when the child has ended.
func (p *Process) Stop(grace time.Duration) {
	_ = syscall.Kill(p.cmd.Process.Pid, syscall.SIGTERM) // ESRCH: it has ended, and Done is closed
	select {
	case <-p.Done:
	case <-time.After(grace):
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.Done
	}
}

// PID of the child, also after it has ended.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Err says how the child ended; nil while it runs.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.err
}
