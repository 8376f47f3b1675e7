package publish

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/atollhq/atoll/internal/dns"
)

const (
	saidMost  = 2 << 10 // of what a command says, for the error
	lingering = 500 * time.Millisecond
)

// Command is a program that gets a document as JSON on its standard input. Exit status 0 says that it is published; with
// any other it is run again later, with what is true then. It must take the same document twice.
type Command struct {
	Args    []string // path and arguments; no shell
	Env     []string
	Timeout time.Duration
}

// Publish runs the program once. A program that takes longer than it may is killed, with all that it started.
func (c Command) Publish(ctx context.Context, doc dns.Document) error {
	input, err := json.Marshal(doc)
	if err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	said := &tail{}
	cmd := exec.CommandContext(bounded, c.Args[0], c.Args[1:]...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Env, bytes.NewReader(append(input, '\n')), said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = lingering
	err = cmd.Run()
	switch {
	case err == nil, errors.Is(err, exec.ErrWaitDelay): // it is done, and something that it started holds on to its output
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case bounded.Err() != nil:
		err = fmt.Errorf("killed after %v", c.Timeout)
	}
	if text := strings.TrimSpace(said.String()); text != "" {
		return fmt.Errorf("%s: %w: %s", c.Args[0], err, text)
	}
	return fmt.Errorf("%s: %w", c.Args[0], err)
}

// tail keeps the end of what is written to it.
type tail struct{ kept []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.kept = append(t.kept, p...)
	if extra := len(t.kept) - saidMost; extra > 0 {
		t.kept = append(t.kept[:0], t.kept[extra:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return string(t.kept) }
