package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// FenceBenchOptions say how to measure what the fence costs.
type FenceBenchOptions struct {
	Out     string        // folder of the report
	Rounds  int           // turns of each side per case, default 11
	Turn    time.Duration // default 600 ms
	Clients []int         // numbers of clients that are tried, default 1 and 8
	JSON    bool          // print the report as JSON to Stdout, the progress to Stderr
	Stdout  io.Writer     // default os.Stdout
	Stderr  io.Writer     // default os.Stderr
}

func (o *FenceBenchOptions) setDefaults() {
	if o.Rounds == 0 {
		o.Rounds = 11
	}
	if o.Turn == 0 {
		o.Turn = 600 * time.Millisecond
	}
	if o.Clients == nil {
		o.Clients = []int{1, 8}
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
	if o.Out == "" {
		o.Out = "out"
	}
}

// Of the bench's only site and its database.
const (
	fenceSite    = topo.SiteID("a")
	fenceDB      = "bench"
	fenceBuckets = 1024
	fenceFilled  = 50_000 // rows that an update finds
)

// fenceSettings keep the server's own work out of the turns; commits stay as durable as the case says.
var fenceSettings = map[string]string{
	"autovacuum": "off", "checkpoint_timeout": "1h", "max_wal_size": "16GB", "shared_buffers": "256MB",
}

// fenceBench measures what the fence costs: one table with it, a twin without.
type fenceBench struct {
	opts   FenceBenchOptions
	screen *screen
	srv    *pgserver.Server
	admin  *pgx.Conn
	fence  *postgres.Fence // nil before the first table is fenced
}

// BenchFence measures transactions and CPU with and without the fence, on a PostgreSQL server of its own, and writes
// the report. It fails only if it cannot measure: goals are reported, not asserted.
func BenchFence(ctx context.Context, o FenceBenchOptions) (err error) {
	o.setDefaults()
	if err := os.MkdirAll(o.Out, 0o755); err != nil {
		return fmt.Errorf("lab: folder of the report: %w", err)
	}
	progress := o.Stdout
	if o.JSON {
		progress = o.Stderr
	}
	b := &fenceBench{opts: o, screen: newScreen(progress)}
	r := &FenceBenchReport{Rounds: o.Rounds, TurnMS: o.Turn.Milliseconds(), LoadBefore: loadAverage(), At: time.Now().UTC().Format(time.RFC3339)}
	dir, dog, err := newRunFolder()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir), dog.done()) }()
	if err := b.start(ctx, dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.close()) }()
	if r.FlushUS, err = flushTime(dir); err != nil {
		return err
	}
	if err := b.admin.QueryRow(ctx, "SHOW server_version").Scan(&r.PostgreSQL); err != nil {
		return err
	}
	for _, c := range fenceCases(o.Clients) {
		b.screen.say("%s, %s", c.Name, c.how())
		if err := b.measure(ctx, &c); err != nil {
			return fmt.Errorf("lab: %s, %s: %w", c.Name, c.how(), err)
		}
		r.Cases = append(r.Cases, c)
	}
	r.finish()
	return b.publish(r)
}

func (b *fenceBench) start(ctx context.Context, dir string) error {
	srv, err := pgserver.Start(ctx, pgserver.Options{Dir: filepath.Join(dir, "db"), Name: "bench", Settings: fenceSettings})
	if err != nil {
		return err
	}
	b.srv = srv
	if err := srv.CreateDatabase(ctx, fenceDB); err != nil {
		return errors.Join(err, b.close())
	}
	if b.admin, err = pgx.Connect(ctx, srv.DSN(pgserver.Superuser, fenceDB)); err != nil {
		return errors.Join(err, b.close())
	}
	_, err = b.admin.Exec(ctx, "CREATE ROLE "+shopRole+" LOGIN; CREATE ROLE "+agentRole+" LOGIN REPLICATION")
	if err != nil {
		err = errors.Join(err, b.close())
	}
	return err
}

func (b *fenceBench) close() error {
	if b.fence != nil {
		b.fence.Close()
	}
	if b.admin != nil {
		_ = b.admin.Close(context.Background()) // the server ends
	}
	return b.srv.Immediate()
}

// prepare makes the table and its twin anew, and fences the table as `atoll apply` does.
func (b *fenceBench) prepare(ctx context.Context) error {
	for _, table := range []string{fencedTable, plainTable} {
		for _, sql := range []string{
			"DROP TABLE IF EXISTS " + table,
			"CREATE TABLE " + table + " (id bigint PRIMARY KEY, n int NOT NULL, note text NOT NULL)",
			"GRANT ALL ON " + table + " TO " + shopRole,
			fmt.Sprintf("INSERT INTO %s SELECT g, 0, repeat('x', 40) FROM generate_series(1, %d) g", table, fenceFilled),
			"VACUUM ANALYZE " + table,
		} {
			if _, err := b.admin.Exec(ctx, sql); err != nil {
				return fmt.Errorf("%s: %w", sql, err)
			}
		}
	}
	d := postgres.Deployment{Deployment: "bench", Site: fenceSite, AgentRole: agentRole,
		Keyspaces: map[topo.KeyspaceID]topo.Keyspace{users: {Buckets: fenceBuckets, Hash: topo.HashMD5, Key: topo.IntegerKey}},
		Tables:    []postgres.TableSpec{{Schema: "public", Name: fencedTable, Kind: topo.Keyed, Keyspace: users, Key: "id"}}}
	dsn := b.srv.DSN(pgserver.Superuser, fenceDB)
	plan, err := postgres.Plan(ctx, dsn, d)
	if err != nil {
		return err
	}
	if err := postgres.Apply(ctx, dsn, plan, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	if b.fence == nil {
		if err := b.open(ctx); err != nil {
			return err
		}
	}
	var guards int
	err = b.admin.QueryRow(ctx, "SELECT count(*) FROM pg_trigger WHERE tgrelid = $1::regclass AND NOT tgisinternal AND tgenabled = 'A'", fencedTable).Scan(&guards)
	if err == nil && guards < 5 {
		err = fmt.Errorf("the fenced table has %d guards: nothing would be measured", guards)
	}
	return err
}

// open makes sure that the fence refuses, and then opens it.
func (b *fenceBench) open(ctx context.Context) error {
	c, err := pgx.Connect(ctx, b.srv.DSN(shopRole, fenceDB))
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	_, err = c.Exec(ctx, "UPDATE "+fencedTable+" SET n = 1 WHERE id = 1")
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Code != postgres.CodeNotOwned {
		return fmt.Errorf("the fence, not yet open, answered a write with %w", err)
	}
	if b.fence, err = postgres.OpenFence(ctx, b.srv.DSN(agentRole, fenceDB), fenceSite); err != nil {
		return err
	}
	err = b.fence.OpenBuckets(ctx, postgres.OpenOrder{Handover: "open-1", Keyspace: users,
		Buckets: []topo.EpochSpan{{Last: fenceBuckets - 1, Epoch: 1}}})
	if err != nil {
		return err
	}
	return b.fence.ExtendLease(ctx, time.Now().Add(24*time.Hour), time.Second)
}

func (b *fenceBench) publish(r *FenceBenchReport) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic("BUG: report does not marshal: " + err.Error())
	}
	data = append(data, '\n')
	if err := os.WriteFile(filepath.Join(b.opts.Out, "bench-fence.json"), data, 0o644); err != nil {
		return fmt.Errorf("lab: report: %w", err)
	}
	if b.opts.JSON {
		_, err = b.opts.Stdout.Write(data)
	} else {
		_, err = io.WriteString(b.opts.Stdout, r.text(b.screen))
	}
	return err
}

// flushTime is how long the disk takes to make 8 KiB durable, in µs: the median of a few tries.
func flushTime(dir string) (int64, error) {
	f, err := os.Create(filepath.Join(dir, "flush"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	page := make([]byte, 8192)
	var took []int64
	for range 21 {
		start := time.Now()
		if _, err := f.WriteAt(page, 0); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start).Microseconds())
	}
	slices.Sort(took)
	return took[len(took)/2], nil
}
