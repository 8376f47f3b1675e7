package lease

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// The keeper between a real store and a real database: writes are accepted where the ownership says so, for as long as
// the store answers.
func TestRealStoreAndDatabase(t *testing.T) {
	t.Parallel()
	client, stopStore := oneMemberStore(t)
	fence, app := fencedDatabase(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 2, Hash: topo.HashMD5, Ranges: []topo.Range{
		{First: 0, Last: 0, Owner: "a", Epoch: 1, State: topo.Open}, {First: 1, Last: 1, Owner: "b", Epoch: 1, State: topo.Open},
	}}})
	if err := client.Bootstrap(ctx, o); err != nil {
		t.Fatal(err)
	}
	k, err := New(Config{Site: "a", Store: client, Fence: fence, Duration: 1500 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	opened := k.Opened()
	go func() { ended <- k.Run(ctx, nil) }()
	select {
	case <-opened:
	case err := <-ended:
		t.Fatal(err)
	}
	var keys [2]int // a key in each bucket
	for n := range 20 {
		var b int
		if err := app.QueryRow(ctx, `SELECT atoll.bucket_of($1, 2)`, fmt.Sprint(n)).Scan(&b); err != nil {
			t.Fatal(err)
		}
		keys[b] = n
	}
	insert := func(key int) string {
		_, err := app.Exec(ctx, `INSERT INTO item (id) VALUES ($1) ON CONFLICT (id) DO UPDATE SET n = item.n + 1`, key)
		var refused *pgconn.PgError
		if errors.As(err, &refused) {
			return refused.Code
		}
		if err != nil {
			t.Fatal(err)
		}
		return ""
	}
	if code := insert(keys[0]); code != "" {
		t.Errorf("a write to an owned bucket is refused with %s", code)
	}
	if code := insert(keys[1]); code != postgres.CodeNotOwned {
		t.Errorf("a write to b's bucket: %q", code)
	}
	// Bucket 1 comes here.
	o = mustT(t)(o.StartMove("users", topo.Spans{{First: 1, Last: 1}}, "h1", "a"))
	if err := k.Observe(ctx, o); err != nil {
		t.Fatal(err)
	}
	o = mustT(t)(o.CommitMove("users", topo.Spans{{First: 1, Last: 1}}, "h1"))
	_, rev, err := client.Ownership(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Commit(ctx, store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: o}}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := k.Observe(ctx, o); err != nil {
		t.Fatal(err)
	}
	t.Logf("observed and opened in %s", time.Since(began).Round(100*time.Microsecond))
	if code := insert(keys[1]); code != "" {
		t.Errorf("a write to the bucket that came is refused with %s", code)
	}
	// Longer than a lease: it is renewed.
	until, _ := k.Deadline()
	eventually(t, "the lease is extended", func() bool { now, ok := k.Deadline(); return ok && now.After(until.Add(time.Second)) })
	if code := insert(keys[0]); code != "" {
		t.Errorf("after renewals: %s", code)
	}
	// Without a store the database closes by itself, and not before the keeper's own deadline is over.
	stopStore()
	eventually(t, "the fence closes", func() bool { return insert(keys[0]) == postgres.CodeLeaseRunOut })
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func oneMemberStore(t *testing.T) (*store.Client, func()) {
	t.Helper()
	dir := t.TempDir()
	if err := pki.Init(dir, "shop"); err != nil {
		t.Fatal(err)
	}
	if err := pki.Issue(dir, pki.Role{Kind: pki.Site, Name: "a"}); err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(dir, "site-a")
	if err != nil {
		t.Fatal(err)
	}
	clients, peers := freeAddr(t), freeAddr(t)
	cfg := store.MemberConfig{
		Deployment: "shop", Site: "a", Dir: filepath.Join(dir, "store"), ListenClient: clients, ListenPeer: peers,
		AdvertiseClient: clients, AdvertisePeer: peers, InitialCluster: map[topo.SiteID]string{"a": peers},
	}
	cfg.CA, cfg.Cert, cfg.Key = id.Files()
	ready, ended := make(chan struct{}), make(chan error, 1)
	cfg.Ready = func() { close(ready) }
	ctx, stop := context.WithCancel(context.Background())
	go func() { ended <- store.RunMember(ctx, cfg) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	client, err := store.Open(ctx, store.Config{
		Deployment: "shop", Endpoints: []store.Endpoint{{Site: "a", Addr: clients}}, Prefer: "a",
		TLS: func(s topo.SiteID) *tls.Config { return id.ClientTLS(s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		client.Close()
		stop()
	})
	return client, func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func fencedDatabase(t *testing.T) (*postgres.Fence, *pgx.Conn) {
	t.Helper()
	ctx := context.Background()
	srv := pgserver.Shared(t)
	db := srv.Database(t)
	agent, app := prepare(t, srv, db)
	fence, err := postgres.OpenFence(ctx, srv.DSN(agent, db), "a")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(fence.Close)
	conn, err := pgx.Connect(ctx, srv.DSN(app, db))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(ctx) })
	return fence, conn
}

// prepare puts a table and its fence into a database, and returns the roles of agent and application.
func prepare(t *testing.T, srv *pgserver.Server, db string) (agent, app string) {
	t.Helper()
	ctx := context.Background()
	agent, app = db+"_agt", db+"_app"
	admin, err := pgx.Connect(ctx, srv.DSN(pgserver.Superuser, db))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close(ctx) })
	if _, err := admin.Exec(ctx, "CREATE TABLE item (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0); CREATE ROLE "+app+
		" LOGIN; CREATE ROLE "+agent+" LOGIN REPLICATION; GRANT ALL ON item TO "+app); err != nil {
		t.Fatal(err)
	}
	plan, err := postgres.Plan(ctx, srv.DSN(pgserver.Superuser, db), postgres.Deployment{
		Deployment: "shop", Site: "a", AgentRole: agent,
		Keyspaces: map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 2, Hash: topo.HashMD5, Key: topo.IntegerKey}},
		Tables:    []postgres.TableSpec{{Schema: "public", Name: "item", Kind: topo.Keyed, Keyspace: "users", Key: "id"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := postgres.Apply(ctx, srv.DSN(pgserver.Superuser, db), plan, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	return agent, app
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func mustT(t *testing.T) func(topo.Ownership, error) topo.Ownership {
	return func(o topo.Ownership, err error) topo.Ownership {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return o
	}
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

// TestLapsedLeaseEndsWritersInTheDatabase: the store is gone, and so are the application's transactions at lapse + W,
// though nobody asked them to commit.
func TestLapsedLeaseEndsWritersInTheDatabase(t *testing.T) {
	t.Parallel()
	client, stopStore := oneMemberStore(t)
	fence, app := fencedDatabase(t)
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 2, Hash: topo.HashMD5,
		Ranges: []topo.Range{{First: 0, Last: 1, Owner: "a", Epoch: 1, State: topo.Open}}}})
	if err := client.Bootstrap(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	const w = 400 * time.Millisecond
	k, err := New(Config{Site: "a", Store: client, Fence: fence, Duration: 1500 * time.Millisecond, W: w, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx, nil) }()
	eventually(t, "the site is open", func() bool { return k.OpenedVersion() > 0 })
	for _, sql := range []string{"BEGIN", "INSERT INTO item (id) VALUES (1)"} {
		if _, err := app.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	stopStore()
	eventually(t, "the lease lapses", func() bool { _, live := k.Deadline(); return !live })
	lapsed := time.Now()
	eventually(t, "the writer's session is ended", func() bool { return k.Status().WritersEnded == 1 })
	if late := time.Since(lapsed); late > w+500*time.Millisecond {
		t.Errorf("ended %s after the lapse; W is %s", late, w)
	}
	if _, err := app.Exec(ctx, "COMMIT"); err == nil {
		t.Error("it committed")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
