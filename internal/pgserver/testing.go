package pgserver

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/supervise"
)

var shared struct {
	once sync.Once
	srv  *Server
	dir  string
	err  error
}

// Main runs a package's tests and removes the server that [Shared] started. Call it from TestMain.
func Main(m *testing.M) { os.Exit(RunMain(m)) }

// RunMain is Main for callers that have more to do before they exit.
func RunMain(m *testing.M) int {
	code := m.Run()
	if shared.srv != nil {
		if err := shared.srv.Kill(); err != nil {
			fmt.Fprintln(os.Stderr, "pgserver:", err)
			code = 1
		}
	}
	if shared.dir != "" {
		if err := os.RemoveAll(shared.dir); err != nil {
			fmt.Fprintln(os.Stderr, "pgserver:", err)
		}
	}
	return code
}

// Shared returns the one server of this test binary, started at the first call. The package's TestMain must call
// Main.
func Shared(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() {
		if shared.dir, shared.err = TempDir(); shared.err != nil {
			return
		}
		shared.srv, shared.err = Start(context.Background(), Options{Dir: shared.dir + "/pg", Name: "shared"})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.srv
}

// TempDir makes a folder that servers run by another user can reach.
func TempDir() (string, error) {
	dir, err := os.MkdirTemp("", "atoll-pg-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// PoolerFor runs a pgbouncer in front of this server until the test ends.
func (s *Server) PoolerFor(t testing.TB, size int, roles ...string) *Pooler {
	t.Helper()
	dir, err := TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	p, err := NewPooler(PoolerOptions{Dir: dir, Server: s.Port, Roles: roles, PoolSize: size})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command(p.Path, p.Args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = "/", &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.As}
	proc, err := supervise.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { proc.Stop(5 * time.Second) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for {
		conn, err := pgx.Connect(ctx, p.DSN(roles[0], "postgres"))
		if err == nil {
			_ = conn.Close(ctx)
			return p
		}
		select {
		case <-proc.Done:
			t.Fatalf("pgbouncer ended (%v): %s", proc.Err(), log.String())
		case <-ctx.Done():
			t.Fatalf("pgbouncer does not answer: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

var databases atomic.Int64

// Database makes a fresh database for a test, dropped when it ends, and returns its name.
func (s *Server) Database(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("t%d_%s", databases.Add(1), strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, t.Name())))
	name = name[:min(len(name), 50)]
	if err := s.CreateDatabase(context.Background(), name); err != nil {
		t.Fatalf("create database: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := s.dropDatabase(ctx, name); err != nil {
			t.Logf("drop database %s: %v", name, err)
		}
	})
	return name
}

// dropDatabase ends everything that holds the database (slots, prepared transactions, sessions) and drops it.
func (s *Server) dropDatabase(ctx context.Context, name string) error {
	conn, err := pgx.Connect(ctx, s.DSN(Superuser, name))
	if err != nil {
		return err
	}
	rows, _ := conn.Query(ctx, "SELECT gid FROM pg_prepared_xacts WHERE database = $1", name)
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, gid := range gids {
		if _, e := conn.Exec(ctx, "ROLLBACK PREPARED '"+strings.ReplaceAll(gid, "'", "''")+"'"); e != nil {
			err = e
		}
	}
	if err == nil {
		_, err = conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
			WHERE database = $1 AND active_pid IS NOT NULL`, name)
	}
	if err == nil {
		// A walsender may take a moment to let go of its slot.
		_, err = conn.Exec(ctx, `DO $$
			DECLARE s name;
			BEGIN
				FOR i IN 1..200 LOOP
					EXIT WHEN NOT EXISTS (SELECT FROM pg_replication_slots WHERE database = current_database() AND active);
					PERFORM pg_sleep(0.01);
				END LOOP;
				FOR s IN SELECT slot_name FROM pg_replication_slots WHERE database = current_database() AND NOT active LOOP
					PERFORM pg_drop_replication_slot(s);
				END LOOP;
			END $$`)
	}
	if closeErr := conn.Close(ctx); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return s.exec(ctx, "DROP DATABASE "+pgx.Identifier{name}.Sanitize()+" WITH (FORCE)")
}
