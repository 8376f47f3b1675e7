package pgserver

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/supervise"
)

func TestMain(m *testing.M) { Main(m) }

func TestServer_SurvivesACrash(t *testing.T) {
	ctx := context.Background()
	dir, err := TempDir()
	if err != nil {
		t.Fatal(err)
	}
	s, err := Start(ctx, Options{Dir: dir + "/pg", Name: "crash"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Kill(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(s.Pause(), s.Resume()); err != nil {
		t.Fatal(err)
	}
	if err := s.exec(ctx, "CREATE TABLE kept (n int); INSERT INTO kept VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	for _, crash := range []func() error{s.Immediate, s.Kill} {
		if err := crash(); err != nil {
			t.Fatal(err)
		}
		if err := s.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.exec(ctx, "INSERT INTO kept SELECT n FROM kept"); err != nil {
			t.Fatal(err)
		}
	}
}

// A server that stands elsewhere is reached by its socket, by its caller and by this package.
func TestServer_StartedElsewhere(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	dir, err := TempDir()
	if err != nil {
		t.Fatal(err)
	}
	starts := 0
	s, err := Start(ctx, Options{Dir: dir + "/pg", Name: "elsewhere", Start: func(cmd *exec.Cmd) (*supervise.Process, error) {
		starts++
		return supervise.Start(cmd)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Kill(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(s.Restart(ctx), s.CreateDatabase(ctx, "there")); err != nil {
		t.Fatal(err)
	}
	for dsn, overTCP := range map[string]bool{s.CallerDSN(Superuser, "there"): false, s.DSN(Superuser, "there"): true} {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		var tcp bool
		if err := conn.QueryRow(ctx, "SELECT inet_server_addr() IS NOT NULL").Scan(&tcp); err != nil || tcp != overTCP {
			t.Errorf("%s: over TCP %v, %v; want %v", dsn, tcp, err, overTCP)
		}
	}
	if starts != 2 {
		t.Errorf("%d starts, want 2", starts)
	}
}

func TestShared_DatabasesAreFresh(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	s := Shared(t)
	conn, err := pgx.Connect(ctx, s.DSN(Superuser, s.Database(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	var level string
	if err := conn.QueryRow(ctx, "SHOW wal_level").Scan(&level); err != nil || level != "logical" {
		t.Fatalf("wal_level %q, %v; want logical", level, err)
	}
}
