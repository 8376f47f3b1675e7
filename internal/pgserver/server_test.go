package pgserver

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"
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
