package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

// otherDriver is an error as another driver has it: a value, with more in it.
type otherDriver struct {
	Code, Detail string
	Where        int
}

func (e otherDriver) Error() string    { return "pq: " + e.Code }
func (e otherDriver) SQLState() string { return e.Code }

// bareDriver hands the SQLSTATE on, and nothing else.
type bareDriver string

func (e bareDriver) Error() string    { return string(e) }
func (e bareDriver) SQLState() string { return string(e) }

func TestFenced_ReadsErrorsOfAnyDriver(t *testing.T) {
	t.Parallel()
	const detail = `{"keyspace":"users","bucket":83,"owner":"b","epoch":7}`
	for name, c := range map[string]struct {
		err    error
		fenced bool
		where  string
		owner  topo.SiteID
		lease  bool
	}{
		"pgx":                 {&pgconn.PgError{Code: "AT001", Detail: detail}, true, "users/83/7", "b", false},
		"another driver":      {otherDriver{Code: "AT001", Detail: detail}, true, "users/83/7", "b", false},
		"wrapped":             {fmt.Errorf("order 17: %w", errors.Join(io.EOF, &pgconn.PgError{Code: "AT001", Detail: detail})), true, "users/83/7", "b", false},
		"no lease":            {&pgconn.PgError{Code: "AT002", Detail: `{"keyspace":"catalog","bucket":0,"owner":"a","epoch":18446744073709551615}`}, true, "catalog/0/18446744073709551615", "a", true},
		"owner unknown":       {&pgconn.PgError{Code: "AT001", Detail: `{"keyspace":"users","bucket":83,"owner":"","epoch":0}`}, true, "users/83/0", "", false},
		"no detail":           {&pgconn.PgError{Code: "AT001"}, true, "", "", false},
		"no field":            {bareDriver("AT001"), true, "", "", false},
		"not JSON":            {&pgconn.PgError{Code: "AT001", Detail: "Key (id)=(1) exists."}, true, "", "", false},
		"no keyspace":         {&pgconn.PgError{Code: "AT001", Detail: `{"keyspace":"","bucket":1}`}, true, "", "", false},
		"a number as text":    {&pgconn.PgError{Code: "AT001", Detail: `{"keyspace":"users","bucket":"x"}`}, true, "", "", false},
		"no name":             {&pgconn.PgError{Code: "AT001", Detail: `{"keyspace":"a\r\nX: b","bucket":1}`}, true, "", "", false},
		"no such bucket":      {&pgconn.PgError{Code: "AT001", Detail: `{"keyspace":"users","bucket":65536,"epoch":1}`}, true, "", "", false},
		"truncate":            {&pgconn.PgError{Code: "AT003", Detail: `{"keyspace":"users"}`}, false, "", "", false},
		"a unique constraint": {&pgconn.PgError{Code: "23505", Detail: detail}, false, "", "", false},
		"no database error":   {io.EOF, false, "", "", false},
		"none":                {nil, false, "", "", false},
	} {
		e, ok := sdk.Fenced(c.err)
		if ok != c.fenced {
			t.Errorf("%s: fenced %v", name, ok)
			continue
		}
		w := httptest.NewRecorder()
		if wrote := sdk.WriteFenced(w, c.err); wrote != ok || wrote && w.Code != 503 || w.Header().Get("Atoll-Fenced") != c.where {
			t.Errorf("%s: answered %v: %d %v", name, wrote, w.Code, w.Header())
		}
		if !ok {
			continue
		}
		if e.Where() != c.where || e.Owner != c.owner || e.Lease != c.lease || !errors.Is(e, c.err) {
			t.Errorf("%s: %+v", name, e)
		}
		if again, ok := sdk.Fenced(fmt.Errorf("once more: %w", e)); !ok || again != e {
			t.Errorf("%s: found anew as %v", name, again)
		}
	}
}

// fencedSite is a database with the real fence in it: table item of keyspace users.
type fencedSite struct {
	fence *postgres.Fence
	app   *pgx.Conn
}

const fencedBuckets = 16

func newFencedSite(t *testing.T) fencedSite {
	t.Helper()
	ctx := context.Background()
	srv := pgserver.Shared(t)
	db := srv.Database(t)
	agent, app := db+"_agt", db+"_app"
	admin, err := pgx.Connect(ctx, srv.DSN(pgserver.Superuser, db))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(ctx)
	for _, sql := range []string{"CREATE ROLE " + agent + " LOGIN REPLICATION", "CREATE ROLE " + app + " LOGIN",
		"CREATE TABLE item (id text PRIMARY KEY, n int NOT NULL DEFAULT 0)", "GRANT ALL ON item TO " + app} {
		if _, err := admin.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	d := postgres.Deployment{Deployment: "shop", Site: "a", AgentRole: agent,
		Keyspaces: map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: fencedBuckets, Hash: topo.HashMD5, Key: topo.TextKey}},
		Tables:    []postgres.TableSpec{{Schema: "public", Name: "item", Kind: topo.Keyed, Keyspace: "users", Key: "id"}}}
	plan, err := postgres.Plan(ctx, srv.DSN(pgserver.Superuser, db), d)
	if err != nil {
		t.Fatal(err)
	}
	if err := postgres.Apply(ctx, srv.DSN(pgserver.Superuser, db), plan, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	s := fencedSite{}
	if s.fence, err = postgres.OpenFence(ctx, srv.DSN(agent, db), "a"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.fence.Close)
	if s.app, err = pgx.Connect(ctx, srv.DSN(app, db)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.app.Close(ctx) })
	return s
}

func (s fencedSite) open(t *testing.T, epoch topo.Epoch) {
	t.Helper()
	order := postgres.OpenOrder{Handover: "open-1", Keyspace: "users", Buckets: []topo.EpochSpan{{Last: fencedBuckets - 1, Epoch: epoch}}}
	if err := errors.Join(s.fence.OpenBuckets(t.Context(), order), s.fence.ExtendLease(t.Context(), time.Now().Add(time.Minute), 0)); err != nil {
		t.Fatal(err)
	}
}

func (s fencedSite) close(t *testing.T, ho topo.HandoverID, b topo.BucketID, epoch topo.Epoch) {
	t.Helper()
	order := postgres.CloseOrder{Handover: ho, Keyspace: "users", Buckets: []topo.EpochSpan{{First: b, Last: b, Epoch: epoch}}, Bound: 10 * time.Second}
	if _, err := s.fence.CloseBuckets(t.Context(), order); err != nil {
		t.Fatal(err)
	}
}

func (s fencedSite) write(ctx context.Context, key string) error {
	_, err := s.app.Exec(ctx, "INSERT INTO item VALUES ($1) ON CONFLICT (id) DO UPDATE SET n = item.n + 1", key)
	return err
}

// What the real fence says is understood, before the lease, under it, and after the bucket has gone.
func TestFenced_TheRealFence(t *testing.T) {
	t.Parallel()
	s := newFencedSite(t)
	b, err := route.Bucket(topo.HashMD5, "user-1", fencedBuckets)
	if err != nil {
		t.Fatal(err)
	}
	expect := func(step string, lease bool, owner topo.SiteID, epoch topo.Epoch) {
		t.Helper()
		e, ok := sdk.Fenced(s.write(t.Context(), "user-1"))
		if !ok || e.Keyspace != "users" || e.Bucket != b || e.Lease != lease || e.Owner != owner || e.Epoch != epoch {
			t.Errorf("%s: %v %+v", step, ok, e)
		}
	}
	expect("nothing is open", false, "", 0)
	s.open(t, 3)
	if err := s.write(t.Context(), "user-1"); err != nil {
		t.Fatal(err)
	}
	s.close(t, "h1", b, 3)
	if err := s.fence.RecordOwners(t.Context(), topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: fencedBuckets, Hash: topo.HashMD5,
		Ranges: []topo.Range{{First: 0, Last: fencedBuckets - 1, Owner: "b", Epoch: 4, State: topo.Open}}}})); err != nil {
		t.Fatal(err)
	}
	expect("it is b's", false, "b", 4)
	if _, err := s.app.Exec(t.Context(), "TRUNCATE item"); err == nil {
		t.Error("TRUNCATE was not refused")
	} else if _, ok := sdk.Fenced(err); ok {
		t.Error("TRUNCATE is refused everywhere, and is no errand for a gateway")
	}
}

func ExampleWriteFenced() {
	save := func() error { // a transaction that the fence refused, and that was rolled back
		return &pgconn.PgError{Code: "AT001", Detail: `{"keyspace":"users","bucket":83,"owner":"b","epoch":7}`}
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		err := save()
		switch {
		case sdk.WriteFenced(w, err): // the gateway sends the request to the owner
		case err != nil:
			http.Error(w, "something went wrong here", http.StatusInternalServerError)
		}
	}
	w := httptest.NewRecorder()
	handler(w, httptest.NewRequest(http.MethodPost, "/orders", nil))
	fmt.Println(w.Code, w.Header().Get("Atoll-Fenced"))
	// Output: 503 users/83/7
}
