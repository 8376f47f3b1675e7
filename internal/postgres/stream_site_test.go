package postgres

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

//go:embed schema.sql
var streamSchema string

var usersKeyspace = map[topo.KeyspaceID]topo.Keyspace{
	"users":   {Buckets: 64, Hash: topo.HashMD5, Key: topo.TextKey},
	"catalog": {Buckets: 1, Hash: topo.HashMD5, Key: topo.TextKey},
}

// streamSite is a database with atoll's tables and a publication; no fence.
type streamSite struct {
	t      testing.TB
	id     topo.SiteID
	dsn    string // a superuser's
	agent  string // what links use; the same unless a test says otherwise
	tables []TableSpec

	mu    sync.Mutex
	given map[change.Position][]byte // what links gave to it to be kept, in the form in which it is
}

var streamSites atomic.Int64

// newStreamSites makes two sites with the same tables. Their names are unique in the test binary, because replication
// origins belong to the whole server.
func newStreamSites(t testing.TB, ddl string, tables ...TableSpec) (a, b *streamSite) {
	t.Helper()
	srv := pgserver.Shared(t)
	n := streamSites.Add(1)
	var out [2]*streamSite
	for i, letter := range []string{"a", "b"} {
		s := &streamSite{t: t, id: topo.SiteID(fmt.Sprintf("%s%d", letter, n)), tables: tables, dsn: srv.DSN(pgserver.Superuser, srv.Database(t))}
		s.agent = s.dsn
		t.Cleanup(func() { // before the database goes
			comesAbout(t, func() bool { // a connection that just ended may hold it for a moment
				conn, err := pgx.Connect(context.Background(), s.dsn)
				if err != nil {
					return false
				}
				defer conn.Close(context.Background())
				_, err = conn.Exec(context.Background(), "SELECT pg_replication_origin_drop(roname) FROM pg_replication_origin WHERE roname = $1", OriginName(s.other()))
				return err == nil
			})
		})
		s.exec(streamSchema)
		s.exec(ddl)
		names := []string{"atoll.bucket", "atoll.marker"}
		for _, spec := range tables {
			names = append(names, spec.SQL())
		}
		s.exec("CREATE PUBLICATION atoll FOR TABLE " + strings.Join(names, ", ") + " WITH (publish_via_partition_root = true)")
		out[i] = s
	}
	return out[0], out[1]
}

func (s *streamSite) other() topo.SiteID {
	letter := "b"
	if s.id[0] == 'b' {
		letter = "a"
	}
	return topo.SiteID(letter) + s.id[1:]
}

func (s *streamSite) connect() *pgx.Conn {
	s.t.Helper()
	conn, err := pgx.Connect(context.Background(), s.dsn)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (s *streamSite) exec(sql string, args ...any) {
	s.t.Helper()
	conn, err := pgx.Connect(context.Background(), s.dsn)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), sql, args...); err != nil {
		s.t.Fatalf("%s: %v\n%s", s.id, err, sql)
	}
}

// text runs a query of one column and joins its rows with newlines.
func (s *streamSite) text(sql string, args ...any) string {
	s.t.Helper()
	conn, err := pgx.Connect(context.Background(), s.dsn)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, _ := conn.Query(context.Background(), "SELECT coalesce(x::text, '<null>') FROM ("+sql+") q(x)", args...)
	out, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", s.id, err, sql)
	}
	return strings.Join(out, "\n")
}

func (s *streamSite) want(want, sql string, args ...any) {
	s.t.Helper()
	if got := s.text(sql, args...); got != want {
		s.t.Fatalf("%s: %s\ngot  %s\nwant %s", s.id, sql, got, want)
	}
}

func (s *streamSite) position() change.Position {
	s.t.Helper()
	p, err := parseLSN(s.text("SELECT pg_current_wal_insert_lsn()"))
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *streamSite) capture(target topo.SiteID) *Capture {
	s.t.Helper()
	c, err := OpenCapture(context.Background(), CaptureConfig{DSN: s.agent, Site: s.id, Target: target, Deployment: "test-" + string(s.id),
		Tables: s.tables, Keyspaces: usersKeyspace, Logger: streamLog(s.t), PartBytes: 64 << 10, IdleEvery: 20 * time.Millisecond})
	if err != nil {
		s.t.Fatal(err)
	}
	return c
}

func (s *streamSite) apply(origin topo.SiteID) *Applier {
	s.t.Helper()
	a, err := OpenApply(context.Background(), ApplyConfig{DSN: s.agent, Site: s.id, Origin: origin, Tables: s.tables, Logger: streamLog(s.t)})
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

// streamLog hands warnings to the test.
func streamLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(streamWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type streamWriter struct{ t testing.TB }

func (w streamWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

// streamLink carries one site's changes to the other, as replicate and link do, through the wire form.
type streamLink struct {
	from, to *streamSite
	source   *Capture
	sink     *Applier
	copy     bool // the first time: with an initial copy
	retry    bool // start again after an error
	batches  atomic.Int64
	onApply  func(change.Position, []change.Marker)
	restarts int

	cancel context.CancelFunc
	done   chan struct{}
	mu     sync.Mutex
	err    error
}

func newStreamLink(from, to *streamSite) *streamLink {
	return &streamLink{from: from, to: to, source: from.capture(to.id), sink: to.apply(from.id)}
}

// place makes sure that the target has somewhere to go on from.
func (l *streamLink) place(ctx context.Context) error {
	p, err := l.sink.Progress(ctx)
	if err != nil || p.Known {
		return err
	}
	if !l.copy {
		if err := l.source.Create(ctx); err != nil {
			return err
		}
		at, _, err := l.source.Confirmed(ctx)
		if err != nil {
			return err
		}
		return l.sink.Copy(ctx, initialPlace(at, nil))
	}
	pieces := make(chan change.Copy)
	g, ctx := errgroup.WithContext(ctx)
	var enc change.Encoder
	var dec change.Decoder
	g.Go(func() error {
		defer close(pieces)
		return l.source.Copy(ctx, false, func(ctx context.Context, c change.Copy) error {
			c, err := dec.Copy(enc.AppendCopy(nil, &c))
			if err != nil {
				return err
			}
			select {
			case pieces <- c:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	g.Go(func() error {
		return l.sink.Copy(ctx, func(ctx context.Context) (change.Copy, error) {
			select {
			case c, ok := <-pieces:
				if !ok {
					return c, errors.New("the source ended its copy too early")
				}
				return c, nil
			case <-ctx.Done():
				return change.Copy{}, ctx.Err()
			}
		})
	})
	return g.Wait()
}

func (l *streamLink) once(ctx context.Context) error {
	if err := l.place(ctx); err != nil {
		return err
	}
	p, err := l.sink.Progress(ctx)
	if err != nil {
		return err
	}
	in := make(chan change.Tx)
	var enc change.Encoder
	var dec change.Decoder
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return l.source.Run(ctx, p.Position, p.Epochs, func(ctx context.Context, tx change.Tx) error {
			tx, err := dec.Tx(enc.AppendTx(nil, &tx))
			if err != nil {
				return err
			}
			l.to.lacked(&tx)
			select {
			case in <- tx:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	g.Go(func() error {
		return l.sink.Run(ctx, in, func(at change.Position, markers []change.Marker) {
			l.batches.Add(1)
			if l.onApply != nil {
				l.onApply(at, markers)
			}
			l.source.Confirm(at)
		})
	})
	return g.Wait()
}

// lacked has a transaction kept, as if a third site lacked it.
func (s *streamSite) lacked(tx *change.Tx) {
	if tx.Keep = tx.First && tx.Last && len(tx.Rows) > 0 && len(tx.Markers) == 0; !tx.Keep {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.given == nil {
		s.given = map[change.Position][]byte{}
	}
	s.given[tx.Position] = change.EncodeTx(tx)
}

// wantKept compares what is kept with what was to be, up to what is applied: all of it, whole, and nothing else.
func (s *streamSite) wantKept() {
	s.t.Helper()
	type kept struct {
		Position change.Position
		Body     []byte
	}
	conn := s.connect()
	var reached int64
	if err := conn.QueryRow(context.Background(), "SELECT position FROM atoll.progress").Scan(&reached); err != nil {
		s.t.Fatal(err)
	}
	rows, _ := conn.Query(context.Background(), "SELECT position, body FROM atoll.relay ORDER BY position")
	got, err := pgx.CollectRows(rows, pgx.RowToStructByPos[kept])
	if err != nil {
		s.t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	want := 0
	for at := range s.given {
		if at <= change.Position(reached) {
			want++
		}
	}
	if len(got) != want || want == 0 {
		s.t.Errorf("%s keeps %d transactions, and should keep %d", s.id, len(got), want)
	}
	for _, k := range got {
		if body, ok := s.given[k.Position]; !ok || !bytes.Equal(body, k.Body) {
			s.t.Errorf("%s keeps another transaction at %s than it was given (%v)", s.id, lsn(k.Position), ok)
		}
	}
}

// start runs the link until the test ends or stop is called. When it returns, the target has its place in the stream.
func (l *streamLink) start() *streamLink {
	l.from.t.Helper()
	if err := l.place(context.Background()); err != nil {
		l.from.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel, l.done = cancel, make(chan struct{})
	go func() {
		defer close(l.done)
		for {
			err := l.once(ctx)
			if ctx.Err() != nil {
				return
			}
			l.mu.Lock()
			l.err = err
			l.mu.Unlock()
			if !l.retry {
				return
			}
			l.restarts++
		}
	}()
	l.from.t.Cleanup(l.stop)
	return l
}

func (l *streamLink) stop() {
	l.cancel()
	<-l.done
}

func (l *streamLink) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// settle waits until the target has everything that the source has now.
func (l *streamLink) settle() {
	t := l.from.t
	t.Helper()
	upTo := l.from.position()
	conn, err := pgx.Connect(context.Background(), l.to.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	l.await(func() bool {
		v, err := Vector(context.Background(), conn)
		return err == nil && change.Position(v[l.from.id]) >= upTo
	})
}

func (l *streamLink) await(ok func() bool) {
	t := l.from.t
	t.Helper()
	comesAbout(t, func() bool {
		if err := l.failure(); err != nil && !l.retry {
			t.Fatalf("link %s → %s: %v", l.from.id, l.to.id, err)
		}
		return ok()
	})
}

// fails waits for the link to stop with an error that contains all of the texts.
func (l *streamLink) fails(texts ...string) error {
	t := l.from.t
	t.Helper()
	select {
	case <-l.done:
	case <-time.After(30 * time.Second):
		t.Fatal("the link did not stop")
	}
	err := l.failure()
	for _, text := range texts {
		if err == nil || !strings.Contains(err.Error(), text) {
			t.Fatalf("want an error that says %q; got: %v", text, err)
		}
	}
	return err
}

func comesAbout(t testing.TB, ok func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("it did not come about in two minutes")
		}
	}
}

// equal compares tables row by row in their text form.
func equal(a, b *streamSite, tables ...string) {
	a.t.Helper()
	for _, table := range tables {
		sql := "SELECT t::text FROM " + table + " t ORDER BY t::text COLLATE \"C\""
		left, right := strings.Split(a.text(sql), "\n"), strings.Split(b.text(sql), "\n")
		for i := range max(len(left), len(right)) {
			if i >= len(left) || i >= len(right) || left[i] != right[i] {
				show := func(rows []string) string {
					if i < len(rows) {
						return rows[i][:min(len(rows[i]), 600)]
					}
					return "(no more rows)"
				}
				a.t.Fatalf("table %s: %d rows at %s, %d at %s; first difference:\n%s\n%s", table, len(left), a.id, len(right), b.id, show(left), show(right))
			}
		}
	}
}

// keyedTable declares a table of keyspace users.
func keyedTable(name, key string) TableSpec {
	return TableSpec{Schema: "public", Name: name, Kind: topo.Keyed, Keyspace: "users", Key: key}
}

// initialPlace is the copy of a source that has nothing to copy: it records where the stream begins.
func initialPlace(at change.Position, epochs change.Epochs) func(context.Context) (change.Copy, error) {
	return func(context.Context) (change.Copy, error) {
		return change.Copy{Done: true, Position: at, Epochs: epochs}, nil
	}
}
