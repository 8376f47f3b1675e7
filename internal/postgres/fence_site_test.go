package postgres

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// fenceSite is one site's database for a test: an application's tables, their owner, an application role that only
// has ordinary grants, an agent role, and (after install) the fence.
type fenceSite struct {
	t                *testing.T
	srv              *pgserver.Server
	db               string
	owner, app       string // role names
	d                Deployment
	adminDSN, appDSN string // admin: the superuser
	agentDSN         string
	fence            *Fence
}

// fenceTables is the schema that most tests use.
const fenceTables = `
CREATE TABLE public.item (id bigint PRIMARY KEY, n int NOT NULL DEFAULT 0, w text);
CREATE TABLE public.part (id bigint NOT NULL, n int NOT NULL DEFAULT 0, w text, PRIMARY KEY (id)) PARTITION BY HASH (id);
CREATE TABLE public.part_0 PARTITION OF public.part FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE public.part_1 PARTITION OF public.part FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE public.parent (id bigint PRIMARY KEY, v int);
CREATE TABLE public.child (id bigint PRIMARY KEY, parent bigint REFERENCES public.parent ON DELETE CASCADE ON UPDATE CASCADE, v int);
CREATE TABLE public.seat (id text PRIMARY KEY, sold boolean NOT NULL DEFAULT false);
CREATE TABLE public.note (id uuid PRIMARY KEY, body text);
`

func fenceDeployment() Deployment {
	return Deployment{
		Deployment: "shop", Site: "a",
		Keyspaces: map[topo.KeyspaceID]topo.Keyspace{
			"users":   {Buckets: 64, Hash: topo.HashMD5, Key: topo.IntegerKey},
			"catalog": {Buckets: 1, Hash: topo.HashMD5, Key: topo.TextKey},
		},
		Tables: []TableSpec{
			{Schema: "public", Name: "item", Kind: topo.Keyed, Keyspace: "users", Key: "id"},
			{Schema: "public", Name: "part", Kind: topo.Keyed, Keyspace: "users", Key: "id"},
			{Schema: "public", Name: "parent", Kind: topo.Keyed, Keyspace: "users", Key: "id"},
			{Schema: "public", Name: "child", Kind: topo.Keyed, Keyspace: "users", Key: "id"},
			{Schema: "public", Name: "seat", Kind: topo.Home, Keyspace: "catalog"},
			{Schema: "public", Name: "note", Kind: topo.Shared},
		},
	}
}

// newFenceSite makes the database and its tables; nothing of Atoll is in it yet.
func newFenceSite(t *testing.T, srv *pgserver.Server, ddl string, d Deployment) *fenceSite {
	t.Helper()
	db := srv.Database(t)
	s := &fenceSite{t: t, srv: srv, db: db, owner: db + "_own", app: db + "_app", d: d}
	s.d.AgentRole = db + "_agt"
	s.adminDSN = srv.DSN(pgserver.Superuser, db)
	s.appDSN = srv.DSN(s.app, db)
	s.agentDSN = srv.DSN(s.d.AgentRole, db)
	s.exec(s.adminDSN,
		"CREATE ROLE "+s.owner+" LOGIN; CREATE ROLE "+s.app+" LOGIN; CREATE ROLE "+s.d.AgentRole+" LOGIN REPLICATION",
		"GRANT CREATE ON SCHEMA public TO "+s.owner,
		"GRANT CREATE ON DATABASE "+db+" TO "+s.owner)
	s.exec(srv.DSN(s.owner, db), ddl, "GRANT ALL ON ALL TABLES IN SCHEMA public TO "+s.app)
	return s
}

// install applies the plan and opens the fence.
func (s *fenceSite) install() *fenceSite {
	s.t.Helper()
	s.apply()
	f, err := OpenFence(context.Background(), s.agentDSN, s.d.Site)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(f.Close)
	s.fence = f
	return s
}

func (s *fenceSite) apply() {
	s.t.Helper()
	ctx := context.Background()
	plan, err := Plan(ctx, s.adminDSN, s.d)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := Apply(ctx, s.adminDSN, plan, testLog(s.t)); err != nil {
		s.t.Fatal(err)
	}
}

// openAll opens every bucket at an epoch and writes a lease of a minute.
func (s *fenceSite) openAll(epoch topo.Epoch) {
	s.t.Helper()
	for ks, k := range s.d.Keyspaces {
		s.open(ks, topo.EpochSpan{Last: topo.BucketID(k.Buckets - 1), Epoch: epoch})
	}
	s.extend(time.Minute)
}

func (s *fenceSite) open(ks topo.KeyspaceID, spans ...topo.EpochSpan) {
	s.t.Helper()
	if err := s.fence.OpenBuckets(context.Background(), OpenOrder{Handover: "open-1", Keyspace: ks, Buckets: spans}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *fenceSite) extend(d time.Duration) {
	s.t.Helper()
	if err := s.fence.ExtendLease(context.Background(), time.Now().Add(d), 0); err != nil {
		s.t.Fatal(err)
	}
}

func (s *fenceSite) close(ho topo.HandoverID, ks topo.KeyspaceID, spans ...topo.EpochSpan) {
	s.t.Helper()
	if _, err := s.fence.CloseBuckets(context.Background(), CloseOrder{Handover: ho, Keyspace: ks, Buckets: spans, Bound: 5 * time.Second}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *fenceSite) state() FenceState {
	s.t.Helper()
	st, err := s.fence.State(context.Background())
	if err != nil {
		s.t.Fatal(err)
	}
	return st
}

func (s *fenceSite) connect(dsn string) *pgx.Conn {
	s.t.Helper()
	c, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { closeConn(c) })
	return c
}

func (s *fenceSite) exec(dsn string, statements ...string) {
	s.t.Helper()
	c := s.connect(dsn)
	defer closeConn(c)
	for _, sql := range statements {
		if _, err := c.Exec(context.Background(), sql); err != nil {
			s.t.Fatalf("%s: %v", sql, err)
		}
	}
}

// try runs statements one by one on one connection of the application and returns the first error.
func (s *fenceSite) try(statements ...string) error {
	c := s.connect(s.appDSN)
	defer closeConn(c)
	for _, sql := range statements {
		if _, err := c.Exec(context.Background(), sql); err != nil {
			return err
		}
	}
	return nil
}

func wantCode(t *testing.T, err error, code string) *pgconn.PgError {
	t.Helper()
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != code {
		t.Fatalf("got error %v, want SQLSTATE %s", err, code)
	}
	return pgErr
}

// waitUntil waits for a condition of the database.
func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

type fenceTestWriter struct{ t *testing.T }

func (w fenceTestWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

func testLog(t *testing.T) *slog.Logger {
	return slog.New(slog.NewTextHandler(fenceTestWriter{t}, nil))
}
