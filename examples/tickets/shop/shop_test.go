package shop_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/atollhq/atoll/examples/tickets/seed"
	"github.com/atollhq/atoll/examples/tickets/shop"
	"github.com/atollhq/atoll/internal/pgserver"
)

func TestMain(m *testing.M) { pgserver.Main(m) }

// fixture is a shop on a real database. Its gateway is a reverse proxy to the same shop.
type fixture struct {
	t    *testing.T
	shop *shop.Shop
	db   *pgxpool.Pool
	url  string
	log  *logBuffer

	mu    sync.Mutex
	conns []net.Conn // the shop's, to its database
}

type logBuffer struct {
	mu struct {
		sync.Mutex
		bytes.Buffer
	}
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.String()
}

func open(t *testing.T, shape seed.Shape) *fixture {
	t.Helper()
	server := pgserver.Shared(t)
	dsn := server.DSN("postgres", server.Database(t))
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	for range 2 { // init may be repeated
		if err := seed.Schema(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
		if err := seed.Fill(t.Context(), conn, shape); err != nil {
			t.Fatal(err)
		}
	}
	config, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 10
	f := &fixture{t: t, log: &logBuffer{}}
	dial := config.ConnConfig.DialFunc
	config.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err == nil {
			f.mu.Lock()
			f.conns = append(f.conns, c)
			f.mu.Unlock()
		}
		return c, err
	}
	if f.db, err = pgxpool.NewWithConfig(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.db.Close)
	app := httptest.NewUnstartedServer(nil)
	target := &url.URL{Scheme: "http", Host: app.Listener.Addr().String()}
	gateway := httptest.NewServer(httputil.NewSingleHostReverseProxy(target))
	f.shop, err = shop.New(shop.Config{DB: f.db, Gateway: gateway.URL, Site: "test", Slow: true, Log: slog.New(slog.NewTextHandler(f.log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	app.Config.Handler = f.shop.Handler()
	app.Start()
	t.Cleanup(func() { gateway.Close(); app.Close() })
	f.url = gateway.URL
	return f
}

// cut ends the shop's connections to its database; new ones can be made.
func (f *fixture) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		c.Close()
	}
	f.conns = nil
	f.db.Reset()
}

// deliver runs the outbox worker until the test ends.
func (f *fixture) deliver() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.shop.Deliver(ctx) }()
	f.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
}

type reply struct {
	status int
	header http.Header
	body   string
	ID     string `json:"id"`
	Number int    `json:"number"`
	Seat   string `json:"seat"`
	Status string `json:"status"`
	Site   string `json:"site"`
}

// ask sends a request; headers are pairs of name and value.
func (f *fixture) ask(method, path, body string, headers ...string) reply {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), method, f.url+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	if strings.HasPrefix(body, "{") {
		req.Header.Set("Content-Type", "application/json")
	} else if body != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		f.t.Error(err)
		return reply{}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		f.t.Error(err)
	}
	r := reply{status: resp.StatusCode, header: resp.Header, body: string(text)}
	json.Unmarshal(text, &r) // pages and errors hold no order
	return r
}

func (f *fixture) buy(customer, key uuid.UUID, body string) reply {
	f.t.Helper()
	return f.ask("POST", "/buy", body, "X-Customer", customer.String(), "Idempotency-Key", key.String())
}

func anySeat() string { return fmt.Sprintf(`{"event": %q}`, seed.Event(1, 0)) }

func thisSeat(n int) string { return fmt.Sprintf(`{"seat": %q}`, seed.Seat(1, n)) }

func (f *fixture) exec(sql string, args ...any) {
	f.t.Helper()
	if _, err := f.db.Exec(f.t.Context(), sql, args...); err != nil {
		f.t.Fatal(err)
	}
}

// want compares one value from the database, as text.
func (f *fixture) want(want, sql string, args ...any) {
	f.t.Helper()
	if got := f.value(sql, args...); got != want {
		f.t.Errorf("%s: %s, want %s", sql, got, want)
	}
}

func (f *fixture) value(sql string, args ...any) string {
	f.t.Helper()
	var got string
	if err := f.db.QueryRow(f.t.Context(), "SELECT ("+sql+")::text", args...).Scan(&got); err != nil {
		f.t.Fatal(err)
	}
	return got
}

// eventually waits for a value in the database.
func (f *fixture) eventually(want, sql string, args ...any) {
	f.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		got := f.value(sql, args...)
		if got == want {
			return
		}
		select {
		case <-tick.C:
		case <-limit:
			f.t.Fatalf("%s: still %s, want %s; log:\n%s", sql, got, want, f.log)
		}
	}
}

// fence makes the database refuse writes to a table as Atoll's fence does, at the statement or at the commit.
func (f *fixture) fence(table, when, atCommit string) {
	f.t.Helper()
	trigger := "TRIGGER fence AFTER INSERT OR UPDATE ON " + table + " FOR EACH ROW"
	if atCommit != "" {
		trigger = "CONSTRAINT TRIGGER fence AFTER INSERT OR UPDATE ON " + table + " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW"
	}
	f.exec(`CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		RAISE EXCEPTION 'bucket 83 of users is served at b' USING ERRCODE = TG_ARGV[0],
			DETAIL = '{"keyspace":"users","bucket":83,"owner":"b","epoch":7}'; END $$`)
	f.exec("CREATE " + trigger + " WHEN (" + when + ") EXECUTE FUNCTION refuse('AT001')")
}

func (f *fixture) unfence(table string) { f.exec("DROP TRIGGER fence ON " + table) }
