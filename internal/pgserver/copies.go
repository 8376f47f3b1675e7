package pgserver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Standby makes a physical standby of a running server (pg_basebackup) and starts it. It streams until it is promoted.
func (s *Server) Standby(ctx context.Context, opts Options) (*Server, error) {
	opts.Binaries = s.opts.Binaries
	if err := s.newDir(opts.Dir); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, opts.Binaries.Path("pg_basebackup"), "-D", opts.Dir, "-R", "-X", "stream", "--checkpoint=fast", "--no-sync",
		"-h", "127.0.0.1", "-p", strconv.Itoa(s.Port), "-U", Superuser)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.owner}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("pg_basebackup to %s: %w\n%s", opts.Dir, err, out)
	}
	return Start(ctx, opts)
}

// Promote makes a standby a primary of its own timeline, and returns when it is one.
func (s *Server) Promote(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.DSN(Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var done bool
	if err := conn.QueryRow(ctx, "SELECT pg_promote(true, 60)").Scan(&done); err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	if !done {
		return errors.New("promote: it is still a standby after 60 s")
	}
	return nil
}

// CaughtUp waits until a standby has applied everything that its primary s has written so far.
func (s *Server) CaughtUp(ctx context.Context, standby *Server) error {
	from, err := pgx.Connect(ctx, s.DSN(Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer from.Close(ctx)
	at, err := pgx.Connect(ctx, standby.DSN(Superuser, "postgres"))
	if err != nil {
		return err
	}
	defer at.Close(ctx)
	var end string
	if err := from.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&end); err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		var there bool
		if err := at.QueryRow(ctx, "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)", end).Scan(&there); err != nil || there {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the standby has not reached %s: %w", end, context.Cause(ctx))
		}
	}
}

// Snapshot copies the data folder of a stopped server, as a snapshot of its disk would.
func (s *Server) Snapshot(ctx context.Context, dir string) error {
	return s.copyDir(ctx, s.Dir, dir)
}

// Rewind puts a snapshot in the place of a stopped server's data folder.
func (s *Server) Rewind(ctx context.Context, snapshot string) error {
	if s.proc != nil {
		return errors.New("the server runs")
	}
	if err := os.RemoveAll(s.Dir); err != nil {
		return err
	}
	return s.copyDir(ctx, snapshot, s.Dir)
}

func (s *Server) copyDir(ctx context.Context, from, to string) error {
	if s.proc != nil {
		return errors.New("the server runs: a copy of its files would be torn")
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", from, to).CombinedOutput(); err != nil {
		return fmt.Errorf("copy %s: %w\n%s", filepath.Base(from), err, out)
	}
	return nil
}

// newDir makes a data folder that the server's user owns.
func (s *Server) newDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	if s.owner == nil {
		return nil
	}
	if err := os.Chown(dir, int(s.owner.Uid), int(s.owner.Gid)); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	return nil
}
