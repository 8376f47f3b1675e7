package replicate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// database is a site's PostgreSQL with atoll's tables and a publication; no fence.
type database struct {
	t    *testing.T
	site topo.SiteID
	dsn  string
}

var (
	realTables    = []postgres.TableSpec{{Schema: "public", Name: "account", Kind: topo.Keyed, Keyspace: "users", Key: "id"}}
	realKeyspaces = map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 64, Hash: topo.HashMD5, Key: topo.IntegerKey}}
)

func newDatabase(t *testing.T, site topo.SiteID) *database {
	srv := pgserver.Shared(t)
	db := &database{t, site, srv.DSN(pgserver.Superuser, srv.Database(t))}
	schema, err := os.ReadFile("../postgres/schema.sql")
	if err != nil {
		t.Fatal(err)
	}
	db.exec(string(schema))
	db.exec("CREATE TABLE account (id bigint PRIMARY KEY, note text NOT NULL, n int NOT NULL DEFAULT 0)")
	db.exec("CREATE PUBLICATION atoll FOR TABLE account, atoll.bucket, atoll.marker WITH (publish_via_partition_root = true)")
	return db
}

func (db *database) connect() *pgx.Conn {
	db.t.Helper()
	conn, err := pgx.Connect(context.Background(), db.dsn)
	if err != nil {
		db.t.Fatal(err)
	}
	return conn
}

func (db *database) exec(sql string, args ...any) {
	db.t.Helper()
	conn := db.connect()
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		db.t.Fatalf("%s: %v", sql, err)
	}
}

// sum is the same for equal contents.
func (db *database) sum() (out string) {
	db.t.Helper()
	conn := db.connect()
	defer conn.Close(context.Background())
	err := conn.QueryRow(context.Background(), "SELECT count(*) || ' rows ' || md5(string_agg(a::text, ',' ORDER BY id)) FROM account a").Scan(&out)
	if err != nil {
		db.t.Fatal(err)
	}
	return out
}

func (db *database) Vector(ctx context.Context) (topo.Vector, error) {
	conn, err := pgx.Connect(ctx, db.dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return postgres.Vector(ctx, conn)
}

func (db *database) Markers(ctx context.Context, site topo.SiteID, id topo.HandoverID) ([]change.Marker, error) {
	conn, err := pgx.Connect(ctx, db.dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return postgres.Markers(ctx, conn, site, id)
}

func (db *database) capture(ctx context.Context, target topo.SiteID) (Source, error) {
	return postgres.OpenCapture(ctx, postgres.CaptureConfig{DSN: db.dsn, Site: db.site, Target: target,
		Deployment: "shop-" + string(db.site), Tables: realTables, Keyspaces: realKeyspaces, IdleEvery: 200 * time.Millisecond})
}

func (db *database) apply(origin topo.SiteID) func(context.Context) (Sink, error) {
	return func(ctx context.Context) (Sink, error) {
		return postgres.OpenApply(ctx, postgres.ApplyConfig{DSN: db.dsn, Site: db.site, Origin: origin, Tables: realTables})
	}
}

// write inserts and updates accounts from first on until stop is closed.
func (db *database) write(first int, stop <-chan struct{}) error {
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, db.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := conn.Exec(ctx, "INSERT INTO account VALUES ($1, $2)", first+i, strings.Repeat("x", i%500)); err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, "UPDATE account SET n = n + 1 WHERE id = $1", first+i/2); err != nil {
			return err
		}
	}
}

// TestTwoDatabases: two real databases, both written to, become and stay equal while the paths between them break.
func TestTwoDatabases(t *testing.T) {
	t.Parallel()
	a, b := newDatabase(t, "a"), newDatabase(t, "b")
	a.exec("INSERT INTO account SELECT g, md5(g::text) FROM generate_series(1, 20000) g")
	var paths []*path
	var atB *Applied
	for _, dir := range []struct{ from, to *database }{{a, b}, {b, a}} {
		s := serve(t, newOrigin(dir.from.site), func(s *Serve) { s.Open = dir.from.capture })
		p := newPath(t, s.addr)
		applied, err := LoadApplied(t.Context(), dir.to.site, dir.to)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		f := follow(t, newTarget(t, dir.to.site), dir.from.site, p.addr(), func(f *Follow) {
			f.Open, f.Applied, f.CopyFrom = dir.to.apply(dir.from.site), applied, dir.from == a
		})
		eventually(t, "the stream", func() bool { return f.State().Phase == Streaming })
		t.Logf("%s follows %s after %s", dir.to.site, dir.from.site, time.Since(began))
		paths = append(paths, p)
		if dir.to == b {
			atB = applied
		}
	}
	markerLatency(t, a, atB)

	stop := make(chan struct{})
	var writers sync.WaitGroup
	for i, db := range []*database{a, b} {
		writers.Go(func() {
			if err := db.write(100_000*(i+1), stop); err != nil {
				t.Error(err)
			}
		})
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 20 {
		for range rnd.IntN(10) {
			<-tick.C
		}
		p := paths[rnd.IntN(2)]
		if rnd.IntN(4) == 0 {
			p.stall()
			<-tick.C
		}
		p.cut(rnd.IntN(2) == 0)
		p.heal()
	}
	close(stop)
	writers.Wait()
	began := time.Now()
	eventually(t, "equal databases", func() bool { return a.sum() == b.sum() })
	t.Logf("equal %s after the last write: %s", time.Since(began), a.sum())
}

// markerLatency measures from the commit of a marker to the moment at which the other site knows that it is there.
func markerLatency(t *testing.T, a *database, atB *Applied) {
	conn := a.connect()
	defer conn.Close(context.Background())
	var took []time.Duration
	for i := range 50 {
		id := topo.HandoverID(fmt.Sprint("h", i))
		_, err := conn.Exec(t.Context(), `INSERT INTO atoll.marker VALUES ('a', $1, 'closed', 'users', '[{"first": 0, "last": 24, "epoch": 7}]', '{"b": 1}')`, string(id))
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		m, err := atB.WaitMarker(t.Context(), "a", id)
		if err != nil || m.Handover != id || len(m.Buckets) != 1 {
			t.Fatalf("marker %+v: %v", m, err)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("marker from commit to arrival: median %s, 9 of 10 within %s, longest %s", took[25], took[45], took[49])
}
