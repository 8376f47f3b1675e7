package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// second is site b's server; site a's is the shared one.
var second *pgserver.Server

func TestMain(m *testing.M) {
	if os.Getenv(childSpec) != "" {
		os.Exit(runChild())
	}
	os.Exit(func() int {
		dir, err := pgserver.TempDir()
		if err == nil {
			second, err = pgserver.Start(context.Background(), pgserver.Options{Dir: filepath.Join(dir, "pg"), Name: "b"})
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() {
			if err := errors.Join(second.Kill(), os.RemoveAll(dir)); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
		}()
		return pgserver.RunMain(m)
	}())
}

// world is two full sites with their databases, and a store of one member, all real, on loopback.
type world struct {
	t      *testing.T
	dir    string
	text   string // of spec
	spec   *spec.Spec
	sites  map[topo.SiteID]*site
	people *api.Client // an operator, at a's agent

	publish func(topo.SiteID, dns.Document) error // by whose agent; nil: nowhere

	loseStore func() // ends the store's member
}

type site struct {
	id                topo.SiteID
	server            *pgserver.Server
	admin, app, agent string // DSNs
	running           context.CancelFunc
	ended             chan error
}

var worlds atomic.Int64

const specText = `
version: 1
deployment: %[1]s
seed: a
sites:
  a: {store: {client: "%[2]s", peer: "%[3]s"}, agent: {api: "%[4]s", link: "%[5]s"}, database: {dsn_env: NONE}, gateways: {g1: {listen: "127.0.0.1:1", peer: "127.0.0.1:2"}}}
  b: {agent: {api: "%[6]s", link: "%[7]s"}, database: {dsn_env: NONE}, gateways: {g1: {listen: "127.0.0.1:3", peer: "127.0.0.1:4"}}}
%[8]skeyspaces:
  users: {buckets: 64, key: integer}
tables:
  public.item: {kind: keyed, keyspace: users, key: id}
policies:
  lease: {duration: 3s}
  switch: {fence_bound: 2s, catch_bound: 15s, drain_bound: 300ms}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldOn(t, pgserver.Shared(t))
}

// newWorldOn is a world whose site a has its database on the given server.
func newWorldOn(t *testing.T, first *pgserver.Server) *world {
	t.Helper()
	return newWorldOf(t, first)
}

// server is one of this test's own: slots and replication origins are of a whole server, so each site needs another.
func server(t *testing.T) *pgserver.Server {
	t.Helper()
	dir, err := pgserver.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s, err := pgserver.Start(t.Context(), pgserver.Options{Dir: dir + "/pg", Name: "own"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Kill() })
	return s
}

// newWorldOf is a world of a, b and further sites, each of these with a server of its own.
func newWorldOf(t *testing.T, first *pgserver.Server, further ...topo.SiteID) *world {
	t.Helper()
	dir := t.TempDir()
	deployment := fmt.Sprintf("w%d", worlds.Add(1))
	var ports []any
	for range 6 {
		ports = append(ports, freeAddr(t))
	}
	more := ""
	for i, id := range further {
		more += fmt.Sprintf("  %s: {agent: {api: %q, link: %q}, database: {dsn_env: NONE}, gateways: {g1: {listen: \"127.0.0.1:%d\", peer: \"127.0.0.1:%d\"}}}\n",
			id, freeAddr(t), freeAddr(t), 5+2*i, 6+2*i)
	}
	text := fmt.Sprintf(specText, append(append([]any{deployment}, ports...), more)...)
	s, err := spec.Parse("atoll.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s.PKI, s.State = filepath.Join(dir, "pki"), filepath.Join(dir, "state")
	if err := pki.Init(s.PKI, deployment); err != nil {
		t.Fatal(err)
	}
	roles := []pki.Role{{Kind: pki.Site, Name: "a"}, {Kind: pki.Site, Name: "b"}, {Kind: pki.Operator, Name: "ann"}}
	for _, id := range further {
		roles = append(roles, pki.Role{Kind: pki.Site, Name: string(id)})
	}
	for _, role := range roles {
		if err := pki.Issue(s.PKI, role); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{t: t, dir: dir, text: text, spec: s, sites: map[topo.SiteID]*site{}}
	w.startStore()
	for id, server := range map[topo.SiteID]*pgserver.Server{"a": first, "b": second} {
		w.sites[id] = w.newSite(id, server)
	}
	for _, id := range further {
		w.sites[id] = w.newSite(id, server(t))
	}
	w.people = w.client("a")
	return w
}

func (w *world) client(site topo.SiteID) *api.Client {
	w.t.Helper()
	ann, err := pki.Load(w.spec.PKI, "operator-ann")
	if err != nil {
		w.t.Fatal(err)
	}
	c := api.NewClient(w.spec.Sites[site].Agent.API, ann.ClientTLS(site), nil)
	w.t.Cleanup(c.Close)
	return c
}

func (w *world) identity(site topo.SiteID) *pki.Identity {
	w.t.Helper()
	id, err := pki.Load(w.spec.PKI, "site-"+string(site))
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

func freeAddr(t *testing.T) string {
	t.Helper()
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// member is the store's only one.
func (w *world) member() store.MemberConfig {
	w.t.Helper()
	ca, cert, key := w.identity("a").Files()
	addr := w.spec.Sites["a"].Store
	return store.MemberConfig{Deployment: w.spec.Deployment, Site: "a", Dir: filepath.Join(w.dir, "store"),
		ListenClient: addr.ListenClient, ListenPeer: addr.ListenPeer, AdvertiseClient: addr.Client, AdvertisePeer: addr.Peer,
		InitialCluster: map[topo.SiteID]string{"a": addr.Peer}, CA: ca, Cert: cert, Key: key,
		Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond}
}

func (w *world) startStore() {
	w.t.Helper()
	conf := w.member()
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	conf.Ready = func() { close(ready) }
	go func() { ended <- store.RunMember(ctx, conf) }()
	select {
	case <-ready:
	case err := <-ended:
		w.t.Fatalf("store: %v", err)
	case <-time.After(30 * time.Second):
		w.t.Fatal("store is not ready after 30 s")
	}
	w.loseStore = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("store: %v", err)
		}
	})
	w.t.Cleanup(w.loseStore)
}

// newSite makes a database with the application's table, its roles, and the fence.
func (w *world) newSite(id topo.SiteID, server *pgserver.Server) *site {
	w.t.Helper()
	db := server.Database(w.t)
	s := &site{id: id, server: server, admin: server.DSN(pgserver.Superuser, db), app: server.DSN(db+"_app", db), agent: server.DSN(db+"_agt", db)}
	w.exec(s.admin, fmt.Sprintf("CREATE ROLE %[1]s_app LOGIN; CREATE ROLE %[1]s_agt LOGIN REPLICATION", db),
		"CREATE TABLE public.item (id bigint PRIMARY KEY, n int NOT NULL)", fmt.Sprintf("GRANT ALL ON public.item TO %s_app", db))
	if id == w.spec.Seed {
		w.exec(s.admin, "INSERT INTO item SELECT i, 0 FROM generate_series(1, 200) i")
	}
	ctx := w.t.Context()
	d := Deployment(w.spec, id, db+"_agt")
	plan, err := postgres.Plan(ctx, s.admin, d)
	if err != nil {
		w.t.Fatal(err)
	}
	if err := postgres.Apply(ctx, s.admin, plan, slog.New(slog.DiscardHandler)); err != nil {
		w.t.Fatal(err)
	}
	if problems := postgres.Preflight(ctx, s.admin, s.agent, d); len(problems) > 0 {
		w.t.Fatalf("preflight: %v", problems)
	}
	w.t.Cleanup(func() { // slots outlive a database's tests, and would keep it from being dropped
		if err := postgres.Remove(context.Background(), s.admin, slog.New(slog.DiscardHandler)); err != nil {
			w.t.Errorf("remove: %v", err)
		}
	})
	return s
}

// start runs a site's agent; stop ends it wherever it is.
func (w *world) start(id topo.SiteID) {
	w.t.Helper()
	s := w.sites[id]
	ctx, cancel := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	log := slog.New(slog.NewTextHandler(testWriter{w.t}, &slog.HandlerOptions{Level: slog.LevelInfo}))
	conf := Config{Spec: w.spec, Site: id, DSN: s.agent, Identity: w.identity(id), Log: log, Ready: func() { close(ready) }}
	if publish := w.publish; publish != nil {
		conf.Publish = func(_ context.Context, d dns.Document) error { return publish(id, d) }
	}
	go func() { ended <- Run(ctx, conf) }()
	select {
	case <-ready:
	case err := <-ended:
		w.t.Fatalf("agent %s: %v", id, err)
	}
	s.running, s.ended = cancel, ended
	w.t.Cleanup(func() { w.stop(id) })
}

func (w *world) stop(id topo.SiteID) {
	w.t.Helper()
	s := w.sites[id]
	if s.running == nil {
		return
	}
	s.running()
	s.running = nil
	select {
	case err := <-s.ended:
		if err != nil {
			w.t.Errorf("agent %s: %v", id, err)
		}
	case <-time.After(20 * time.Second):
		w.t.Fatalf("agent %s does not end", id)
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSuffix(string(p), "\n"))
	return len(p), nil
}

func (w *world) exec(dsn string, statements ...string) {
	w.t.Helper()
	if err := w.try(dsn, statements...); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) try(dsn string, statements ...string) error {
	c, err := pgx.Connect(w.t.Context(), dsn)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close(context.Background()) }()
	for _, sql := range statements {
		if _, err := c.Exec(w.t.Context(), sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
	}
	return nil
}

// value reads one integer as the administrator.
func (w *world) value(id topo.SiteID, sql string) (n int) {
	w.t.Helper()
	c, err := pgx.Connect(w.t.Context(), w.sites[id].admin)
	if err == nil {
		defer func() { _ = c.Close(context.Background()) }()
		err = c.QueryRow(w.t.Context(), sql).Scan(&n)
	}
	if err != nil {
		w.t.Fatalf("%s at %s: %v", sql, id, err)
	}
	return n
}

// eventually waits for a condition of the world.
func (w *world) eventually(what string, is func() bool) {
	w.t.Helper()
	bound := time.After(40 * time.Second)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-bound:
			w.t.Fatalf("waited in vain until %s", what)
		}
	}
}

func code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// gateway is a client of the view stream that does nothing but acknowledge.
type gateway struct {
	w        *world
	client   *api.Client
	seen     atomic.Uint64
	opened   atomic.Uint64
	inFlight atomic.Int64
	moving   atomic.Pointer[topo.HandoverID]
}

func (w *world) gateway(site topo.SiteID) *gateway {
	w.t.Helper()
	g := &gateway{w: w, client: api.NewClient(w.spec.Sites[site].Agent.API, w.identity(site).ClientTLS(site), nil)}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := g.client.View(ctx, "g1", g.take); ctx.Err() == nil {
			w.t.Errorf("view of %s: %v", site, err)
		}
	}()
	w.t.Cleanup(func() {
		cancel()
		<-ended
		g.client.Close()
	})
	return g
}

func (g *gateway) take(u api.ViewUpdate) error {
	g.opened.Store(u.OpenedVersion)
	if len(u.Ownership) == 0 {
		return nil
	}
	o, err := topo.DecodeOwnership(u.Ownership)
	if err != nil {
		return err
	}
	if r, _ := o.At("users", 0); r.State == topo.Moving {
		g.moving.Store(&r.Handover)
	}
	g.seen.Store(o.Version)
	g.ack(o.Version)
	return nil
}

func (g *gateway) ack(version uint64) api.LeaseState {
	a := api.ViewAck{Gateway: "g1", Generation: 1, Version: version}
	if id := g.moving.Load(); id != nil {
		a.InFlight = map[topo.HandoverID]int{*id: int(g.inFlight.Load())}
	}
	state, err := g.client.Ack(context.Background(), a)
	if err != nil {
		g.w.t.Errorf("acknowledge: %v", err)
	}
	return state
}

func (g *gateway) version() uint64 { return g.seen.Load() }
