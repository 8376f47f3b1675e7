package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// A physical standby lags while its primary gives its buckets away: the marker is out, so another site may own them by
// now. Promoted, the standby has every ownership bit still, and a lease that would run for long.
func TestLaggingStandbyComesUpClosed(t *testing.T) {
	t.Parallel()
	dir, err := pgserver.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	primary, err := pgserver.Start(t.Context(), pgserver.Options{Dir: dir + "/primary", Name: "primary"})
	if err != nil {
		t.Fatal(errors.Join(err, os.RemoveAll(dir)))
	}
	t.Cleanup(func() {
		if err := errors.Join(primary.Kill(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	s := newFenceSite(t, primary, fenceTables, fenceDeployment()).install()
	s.openAll(1)
	s.extend(time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	standby, err := primary.Standby(ctx, pgserver.Options{Dir: dir + "/standby", Name: "standby"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Kill(); err != nil {
			t.Error(err)
		}
	})
	if err := primary.CaughtUp(ctx, standby); err != nil {
		t.Fatal(err)
	}
	there := s.connect(standby.DSN(pgserver.Superuser, s.db))
	for _, sql := range []string{"ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"} {
		if _, err := there.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	waitUntil(t, "the standby receives nothing more", func() bool {
		var receivers int
		if err := there.QueryRow(ctx, "SELECT count(*) FROM pg_stat_wal_receiver").Scan(&receivers); err != nil {
			t.Fatal(err)
		}
		return receivers == 0
	})
	s.close("h1", "users", topo.EpochSpan{Last: 63, Epoch: 1})
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	var bit bool
	if err := there.QueryRow(ctx, "SELECT pg_sequence_last_value(atoll.word_of(id, 0)) & 1 = 1 FROM atoll.keyspace WHERE name = 'users'").Scan(&bit); err != nil || !bit {
		t.Fatalf("the standby knows of the closing (%v): nothing is tested", err)
	}
	app, err := pgx.Connect(ctx, standby.DSN(s.app, s.db))
	if err != nil {
		t.Fatal(err)
	}
	defer closeConn(app)
	for n, sql := range []string{"INSERT INTO item VALUES (%d)", "INSERT INTO part VALUES (%d)", "INSERT INTO seat VALUES ('%dA')"} {
		_, err := app.Exec(ctx, fmt.Sprintf(sql, n))
		if sqlState(err) != CodeLeaseRunOut {
			t.Fatalf("write %d at the promoted standby: %v, want SQLSTATE %s", n+1, err, CodeLeaseRunOut)
		}
	}
}
