package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// newPooledSite is an installed site whose application comes through a pgbouncer in transaction mode: its statements
// run on a server connection that other clients used a moment before. The agent connects straight to the server, as it
// must for its streams.
func newPooledSite(t *testing.T, size int) *fenceSite {
	t.Helper()
	s := newInstalledSite(t)
	s.appDSN = s.srv.PoolerFor(t, size, s.app, pgserver.Superuser).DSN(s.app, s.db)
	return s
}

// A client keeps its one connection while its transactions run on whichever server connection is free. Each meets the
// fence as it is at that moment, and the refusal reaches the client whole.
func TestPooler_EachTransactionMeetsTheFence(t *testing.T) {
	t.Parallel()
	s := newPooledSite(t, 3)
	s.openAll(1)
	b := s.bucketOf("7")
	for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeExec, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeSimpleProtocol} {
		config, err := pgx.ParseConfig(s.appDSN)
		if err != nil {
			t.Fatal(err)
		}
		config.DefaultQueryExecMode = mode
		c, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeConn(c) })
		write := func() error {
			return pgx.BeginFunc(t.Context(), c, func(tx pgx.Tx) error {
				_, err := tx.Exec(t.Context(), "INSERT INTO item VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET n = item.n + 1", int64(7), 1)
				return err
			})
		}
		epoch := topo.Epoch(1)
		for _, r := range s.state().Rows["users"] {
			if r.Bucket == b {
				epoch = r.Epoch
			}
		}
		for range 3 {
			if err := write(); err != nil {
				t.Fatalf("mode %v, epoch %d: %v", mode, epoch, err)
			}
			s.close(topo.HandoverID(fmt.Sprint("h", epoch)), "users", at(b, epoch))
			e := wantCode(t, write(), CodeNotOwned)
			if want := fmt.Sprintf(`"bucket" : %d,`, b); !strings.Contains(e.Detail, want) || !strings.Contains(e.Hint, "Atoll-Fenced: users/") {
				t.Errorf("mode %v: detail %q, hint %q", mode, e.Detail, e.Hint)
			}
			epoch++
			s.open("users", at(b, epoch))
		}
		s.exec(s.adminDSN, "SELECT setval('atoll.lease', 1)")
		wantCode(t, write(), CodeLeaseRunOut)
		s.extend(time.Minute)
	}
}

// A closing waits for a transaction behind the pooler, names the application that runs it, and can end it: then the
// client hears of a lost connection to the server, not of a commit, and the pooler goes on.
func TestPooler_WritersAreWaitedOutAndEnded(t *testing.T) {
	t.Parallel()
	s := newPooledSite(t, 3)
	s.openAll(1)
	b := s.bucketOf("7")
	order := CloseOrder{Handover: "h1", Keyspace: "users", Buckets: []topo.EpochSpan{at(b, 1)}, Bound: 20 * time.Second}
	begin := func(c *pgx.Conn) {
		mustExec(t, c, "SET application_name = 'slow report'")
		mustExec(t, c, "BEGIN")
		mustExec(t, c, "INSERT INTO item VALUES (7) ON CONFLICT (id) DO UPDATE SET n = item.n + 1")
	}

	slow, brisk := s.connect(s.appDSN), s.connect(s.appDSN)
	begin(slow)
	done := make(chan error, 1)
	go func() {
		_, err := s.fence.CloseBuckets(context.Background(), order)
		done <- err
	}()
	waitUntil(t, "the closing has begun", func() bool { return !s.state().Bits["users"].Contains(b) })
	_, err := brisk.Exec(t.Context(), "UPDATE item SET n = 5 WHERE id = 8")
	if err != nil {
		t.Errorf("another bucket, meanwhile: %v", err)
	}
	_, err = brisk.Exec(t.Context(), "INSERT INTO part VALUES (7)")
	wantCode(t, err, CodeNotOwned)
	select {
	case err := <-done:
		t.Fatalf("the closing ended (%v) before the transaction behind the pooler", err)
	case <-time.After(100 * time.Millisecond):
	}
	mustExec(t, slow, "COMMIT")
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	s.open("users", at(b, 2))
	begin(slow)
	order = CloseOrder{Handover: "h2", Keyspace: "users", Buckets: []topo.EpochSpan{at(b, 2)}, Bound: 50 * time.Millisecond}
	if _, err := s.fence.CloseBuckets(t.Context(), order); err == nil || !strings.Contains(err.Error(), "(slow report)") {
		t.Errorf("got %v, want the application's name behind the pooler", err)
	}
	order.EndBlockers = true
	if _, err := s.fence.CloseBuckets(t.Context(), order); err != nil {
		t.Fatal(err)
	}
	if _, err := slow.Exec(t.Context(), "COMMIT"); err == nil {
		t.Error("the client heard of a commit of a transaction that was ended")
	}
	_, err = brisk.Exec(t.Context(), "UPDATE item SET n = 6 WHERE id = 7")
	wantCode(t, err, CodeNotOwned)
	s.open("users", at(b, 3))
	again := s.connect(s.appDSN)
	mustExec(t, again, "UPDATE item SET n = 7 WHERE id = 7")
}

// The race of TestFenceRace, its writers behind a pooler.
func TestPooler_FenceRace(t *testing.T) {
	duration := 5 * time.Second
	if testing.Short() {
		duration = 3 * time.Second
	}
	// As many server connections as there are writers: one that prepared a transaction needs one to commit it while
	// others wait for its locks.
	runFenceRace(t, newPooledSite(t, 6), duration)
}
