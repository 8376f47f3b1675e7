package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// ownServer is a database server of one test, which it may lose.
func ownServer(t *testing.T) (srv *pgserver.Server, dir string) {
	t.Helper()
	dir, err := pgserver.TempDir()
	if err == nil {
		srv, err = pgserver.Start(t.Context(), pgserver.Options{Dir: dir + "/pg", Name: "own"})
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(srv.Kill(), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := srv.CreateDatabase(t.Context(), "shop"); err != nil {
		t.Fatal(err)
	}
	return srv, dir
}

// lone is a keeper of site a with a real store and a database that is going to be replaced.
type lone struct {
	t      *testing.T
	client *store.Client
	dsn    func(role string) string
	keeper *Keeper
}

const loneLease = 900 * time.Millisecond

// keepLone runs a keeper of a, which owns both buckets, until the test ends.
func keepLone(t *testing.T, dsn func(role string) string) *lone {
	t.Helper()
	client, _ := oneMemberStore(t)
	fence, err := postgres.OpenFence(t.Context(), dsn("shop_agt"), "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fence.Close)
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 2, Hash: topo.HashMD5,
		Ranges: []topo.Range{{First: 0, Last: 1, Owner: "a", Epoch: 1, State: topo.Open}}}})
	if err := client.Bootstrap(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	k, err := New(Config{Site: "a", Store: client, Fence: fence, Duration: loneLease, W: loneLease / 3, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx, nil) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	x := &lone{t, client, dsn, k}
	eventually(t, "the fence is open", func() bool { return x.write() == nil })
	return x
}

// write is an application's.
func (x *lone) write() error {
	c, err := pgx.Connect(x.t.Context(), x.dsn("shop_app"))
	if err != nil {
		return err
	}
	defer c.Close(context.Background())
	_, err = c.Exec(x.t.Context(), `INSERT INTO item (id) VALUES (1) ON CONFLICT (id) DO UPDATE SET n = item.n + 1`)
	return err
}

func (x *lone) record() (store.Lease, store.Revision) {
	x.t.Helper()
	l, rev, err := x.client.Lease(x.t.Context(), "a")
	if err != nil {
		x.t.Fatal(err)
	}
	return l, rev
}

// staysClosed watches the new database for three leases: refused writes, no lease moment, no renewal.
func (x *lone) staysClosed(problem string) {
	x.t.Helper()
	eventually(x.t, "the keeper says so: "+problem, func() bool { return strings.Contains(x.keeper.Status().Problem, problem) })
	before, _ := x.record()
	for end := time.Now().Add(3 * loneLease); time.Now().Before(end); {
		var refused *pgconn.PgError
		if err := x.write(); !errors.As(err, &refused) || refused.Code != postgres.CodeNotOwned && refused.Code != postgres.CodeLeaseRunOut {
			x.t.Fatalf("a write to another database: %v", err)
		}
	}
	if after, _ := x.record(); after.Sequence != before.Sequence {
		x.t.Errorf("the lease was renewed %d times for another database", after.Sequence-before.Sequence)
	}
	if !x.keeper.Holder() || x.keeper.Differs() == nil {
		x.t.Errorf("status %+v", x.keeper.Status())
	}
}

// takenOver lets b take everything over, waits until the database is adopted, and gives it back.
func (x *lone) takenOver() {
	x.t.Helper()
	ctx := x.t.Context()
	o, rev, err := x.client.Ownership(ctx)
	if err != nil {
		x.t.Fatal(err)
	}
	all := topo.Spans{{First: 0, Last: 1}}
	o = mustT(x.t)(mustT(x.t)(o.StartMove("users", all, "f1", "b")).CommitMove("users", all, "f1"))
	l, leaseRev := x.record()
	was := l.Database
	l.Revoked, l.RevokedBy, l.Sequence = true, "f1", l.Sequence+1
	if _, err := x.client.Commit(ctx, store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: o},
		Lease: &store.LeaseChange{Site: "a", Expect: leaseRev, Next: l}}); err != nil {
		x.t.Fatal(err)
	}
	eventually(x.t, "the database is adopted", func() bool {
		l, _ := x.record()
		return !l.Revoked && l.Rebuild && x.keeper.Differs() == nil && x.keeper.Status().Active
	})
	if l, _ := x.record(); l.Database == was && l.Beat == 0 {
		x.t.Errorf("record %+v", l)
	}
	if err := x.write(); err == nil {
		x.t.Error("a database that owns nothing takes a write")
	}
	x.keeper.Rebuilt()
	if _, rev, err = x.client.Ownership(ctx); err != nil {
		x.t.Fatal(err)
	}
	o = mustT(x.t)(mustT(x.t)(o.StartMove("users", all, "h1", "a")).CommitMove("users", all, "h1"))
	if _, err := x.client.Commit(ctx, store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: o}}); err != nil {
		x.t.Fatal(err)
	}
	eventually(x.t, "it opens at the new epoch", func() bool { return x.write() == nil })
	eventually(x.t, "the record says that it is settled", func() bool { l, _ := x.record(); return !l.Rebuild })
}

// TestPromotedStandbyComesUpClosed: the standby has every ownership bit, and the application finds it by the same DSN.
func TestPromotedStandbyComesUpClosed(t *testing.T) {
	t.Parallel()
	primary, dir := ownServer(t)
	prepare(t, primary, "shop")
	standby, err := primary.Standby(t.Context(), pgserver.Options{Dir: dir + "/standby", Name: "standby"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := standby.Kill(); err != nil {
			t.Error(err)
		}
	})
	x := keepLone(t, func(role string) string {
		return fmt.Sprintf("postgres://%s@127.0.0.1:%d,127.0.0.1:%d/shop?sslmode=disable&target_session_attrs=read-write", role, primary.Port, standby.Port)
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := primary.CaughtUp(ctx, standby); err != nil {
		t.Fatal(err)
	}
	if err := primary.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}
	x.staysClosed("/2, and the lease was kept for")
	x.takenOver()
}

// TestRestoredSnapshotComesUpClosed: the disk goes back to what it was; identity and timeline say nothing of that.
func TestRestoredSnapshotComesUpClosed(t *testing.T) {
	t.Parallel()
	srv, dir := ownServer(t)
	prepare(t, srv, "shop")
	x := keepLone(t, func(role string) string { return srv.DSN(role, "shop") })
	if err := errors.Join(srv.Stop(), srv.Snapshot(t.Context(), dir+"/snapshot"), srv.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	had, _ := x.record()
	eventually(t, "the lease goes on for a while", func() bool {
		l, _ := x.record()
		return l.Sequence >= had.Sequence+5 && x.write() == nil
	})
	if err := errors.Join(srv.Kill(), srv.Rewind(t.Context(), dir+"/snapshot"), srv.Restart(t.Context())); err != nil {
		t.Fatal(err)
	}
	x.staysClosed("the database went back in time")
	x.takenOver()
}
