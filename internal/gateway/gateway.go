// Package gateway takes the requests of users and brings each to the site that owns its key: to this site's
// application, or to a gateway of the owner's site. While a bucket moves it holds the bucket's writes.
//
// The main type is [Gateway]; make one with [New], which binds its addresses, and keep it in [Gateway.Run]. What it
// knows of the ownership is a view: streamed from the site's agent (else another site's, else from disk), never going
// back (I8). The fence in the database has the last word; the gateway makes that a user does not hear of it.
//
// Headers. Between gateways a request carries Atoll-Keyspace, Atoll-Bucket, Atoll-Epoch, Atoll-View, Atoll-Hops, and
// Atoll-Certificate where its key is in the client's certificate; copies that users send are taken away. Every answer to a user carries Atoll-Gateway and Atoll-View of the gateway that it
// asked, Atoll-Site of the site whose application answered and Atoll-Epoch of the view by which it was asked (one that
// was frozen may name an earlier epoch than the fence had opened by then), and Atoll-Held (ms) if it was held; an
// answer of the gateway's own carries Atoll-Reason. A copy for a candidate (routes with a shadow) carries Atoll-Shadow. An application says by 503 with Atoll-Fenced: KEYSPACE/BUCKET/EPOCH
// that the fence refused the write and that it rolled back. On routes with sessions, answers carry Atoll-Session to whoever
// sent one: "new" at first, then the newest that came; and Atoll-Session-Lost: KEYSPACE/BUCKET/EPOCH where a
// failover lost something that the session had written or seen.
//
// It guarantees that an acknowledgement of a view counts every write and strong read (a read of a route with
// hold_reads) that was let through before the view's holds, and that a write whose outcome is not known is never sent
// again unless it may be executed twice. It refuses to pass on an answer to either that came after the site's lease ran
// out, and one to a strong read that came after the bucket left.
package gateway

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/trace"
	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/bearer"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// Config is all that a gateway needs to know.
type Config struct {
	Site      topo.SiteID
	Name      string // of this gateway within its site
	Listen    Listen
	PeerTLS   *tls.Config                   // for the peer listener; checks that clients are gateways of other sites
	ClientTLS func(topo.SiteID) *tls.Config // towards another site's gateways
	Routes    []topo.Route
	Keyspaces map[topo.KeyspaceID]topo.Keyspace
	Zone      string                   // of this gateway within its site; "": none. Instances there are preferred
	Upstreams map[string]Upstream      // this site's applications, by name
	Peers     map[topo.SiteID][]string // host:port of other sites' gateways, as they are to be dialled
	Agents    []Agent                  // those of this site first
	Hold      Hold                     // zero fields take their defaults
	AccessLog io.Writer                // a JSON line for each answered request; nil: none
	Tracer    trace.Tracer             // nil: the trace context of requests passes as it is
	Pace      Pace                     // zero fields take their defaults
	Tokens    *bearer.Verifier         // for routes whose key is a claim; nil without such
	// TokenCookie is where a token may come besides Authorization: Bearer; "" for nowhere.
	TokenCookie string
	// Alongside runs while the gateway does, its listeners being open: what keeps its certificates, for example. nil: nothing.
	Alongside func(context.Context) error
	StateDir  string        // the last good view is kept here; "" keeps none
	Takeover  bool          // take the sockets of the gateway of this name that runs already, if one does
	Grace     time.Duration // how long requests may take to end at a stop; default 10 s
	Linger    time.Duration // after a takeover, how long users' connections may wait for another request; default 60 s
	Log       *slog.Logger
}

// Listen is where a gateway listens.
type Listen struct {
	Users     string      // ip:port
	TLS       *tls.Config // for users; nil: plain, on loopback or with Plaintext
	Plaintext bool        // allow users without TLS beyond loopback

	Balancers    []netip.Prefix // whose connections to Users begin with a PROXY header, which names the client
	Trusted      []netip.Prefix // proxies whose X-Forwarded-… and Forwarded are kept; of others they are taken away
	MaxConns     int            // of users, default 20000
	MaxPerClient int            // of one client, an address or an IPv6 network of 64 bits, but not of Trusted; 0: no bound of its own

	Peer  string // ip:port for other sites' gateways; "" for none
	Admin string // loopback ip:port for health and metrics; "" for none
}

// Agent is where an agent's API is reached.
type Agent struct {
	Site topo.SiteID
	URL  string // https://host:port
	TLS  *tls.Config
}

// Hold caps what a gateway holds.
type Hold struct {
	MaxTime      time.Duration // per request, default 15 s
	MaxPerBucket int           // default 1000
	MaxRequests  int           // default 10000
}

var errStopping = errors.New("the gateway is being stopped")

// Gateway is one gateway of a site.
type Gateway struct {
	conf      Config
	name      string // SITE/NAME
	log       *slog.Logger
	table     *route.Table
	views     *views
	flights   *flights
	room      *room
	lease     *leaseCopy
	holds     *holdLog
	upstreams *upstreams
	quotas    map[*route.Route]*quota
	movers    map[*route.Route]*mover
	shadows   *shadows
	stops     *stops
	metrics   *metrics
	readers   *readers
	streams   *longLived
	access    *accessLog
	agents    []*agentClient
	heard     heard         // when an agent last said something
	ack, save chan struct{} // kicks; one is enough
	renamed   chan struct{} // a kick, too
	known     atomic.Pointer[string]
	inherited *inherited  // nil: it began by itself
	leaving   atomic.Bool // another process has taken over
	farewell  func()      // tells a successor that this process has ended
	listeners listeners
}

type listeners struct {
	users       *userListener
	peer, admin net.Listener
}

// New checks the configuration, reads the view that an earlier run left, and binds the addresses.
func New(conf Config) (*Gateway, error) {
	conf.Hold.MaxTime = cmp.Or(conf.Hold.MaxTime, 15*time.Second)
	conf.Hold.MaxPerBucket = cmp.Or(conf.Hold.MaxPerBucket, 1000)
	conf.Hold.MaxRequests = cmp.Or(conf.Hold.MaxRequests, 10000)
	conf.Grace = cmp.Or(conf.Grace, 10*time.Second)
	conf.Linger = cmp.Or(conf.Linger, time.Minute)
	conf.Pace = conf.Pace.withDefaults()
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{conf: conf, name: string(conf.Site) + "/" + conf.Name, ack: make(chan struct{}, 1), save: make(chan struct{}, 1), renamed: make(chan struct{}, 1)}
	g.known.Store(&g.name)
	g.log = conf.Log.With("gateway", g.name)
	if err := g.build(); err != nil {
		return nil, fmt.Errorf("gateway %s: %w", g.name, err)
	}
	if err := g.bind(); err != nil {
		g.closeListeners()
		if g.inherited != nil {
			_ = g.inherited.conn.Close()
		}
		return nil, fmt.Errorf("gateway %s: %w", g.name, err)
	}
	g.restoreView()
	return g, nil
}

func (g *Gateway) build() (err error) {
	c := g.conf
	if err := errors.Join(topo.CheckName(string(c.Site)), topo.CheckName(c.Name)); err != nil {
		return err
	}
	if g.table, err = route.Compile(c.Routes, c.Keyspaces); err != nil {
		return err
	}
	for _, r := range c.Routes {
		if _, ok := c.Upstreams[r.Upstream]; !ok {
			return fmt.Errorf("route %s: site %s has no upstream %q", r.Name, c.Site, r.Upstream)
		}
		if c.Tokens == nil && slices.ContainsFunc(r.Key, func(k topo.KeySource) bool { return k.JWT != "" }) {
			return fmt.Errorf("route %s takes its key from a token, but nothing says how tokens are verified", r.Name)
		}
	}
	if len(c.Peers) > 0 && c.ClientTLS == nil {
		return errors.New("other sites' gateways are reached by mutual TLS only; make certificates with `atoll ca`")
	}
	g.quotas = newQuotas(g.table.Routes())
	if g.upstreams, err = newUpstreams(c); err != nil {
		return err
	}
	g.stops = openStops(c.StateDir, string(c.Site)+"-"+c.Name, g.log)
	if g.movers, err = newMovers(g.table.Routes(), g.upstreams.services, g.stops); err != nil {
		return err
	}
	if g.shadows, err = newShadows(g, g.upstreams.services, g.stops); err != nil {
		return err
	}
	if len(c.Agents) == 0 {
		return errors.New("no agent to take the view from")
	}
	for _, a := range c.Agents {
		g.agents = append(g.agents, newAgentClient(a, a.Site == c.Site, g.ackName))
	}
	slices.SortStableFunc(g.agents, func(a, b *agentClient) int { return boolRank(b.own) - boolRank(a.own) })
	g.readers, g.streams = newReaders(g.agents), newLongLived(func() *snapshot { return g.views.load() })
	g.views = newViews(c.Site, g.changed)
	g.flights = newFlights(&g.views.current, c.Keyspaces, g.kickAck)
	g.room = newRoom(c.Hold, g.views.load, g.decide)
	g.lease = newLeaseCopy()
	g.holds = &holdLog{log: g.log, active: make(map[holdKey]topo.Spans)}
	g.access = newAccessLog(c.AccessLog)
	g.metrics = newMetrics(g)
	return nil
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

// changed is called, in order, after each new snapshot became current.
func (g *Gateway) changed(now *snapshot, at time.Time) {
	g.room.settle(now)
	g.holds.update(now, at)
	g.streams.update(now)
	g.kickAck()
	kick(g.save)
}

func (g *Gateway) kickAck() { kick(g.ack) }

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (g *Gateway) bind() (err error) {
	l := g.conf.Listen
	if _, _, err := net.SplitHostPort(l.Users); err != nil {
		return fmt.Errorf("listen address %q: want ip:port", l.Users)
	}
	if l.TLS == nil && !l.Plaintext && !isLoopback(l.Users) {
		return fmt.Errorf("listen address %s is not loopback; give it a certificate (tls), or say plaintext: true if something before it ends TLS", l.Users)
	}
	if l.Peer != "" && g.conf.PeerTLS == nil {
		return fmt.Errorf("peer address %s takes mutual TLS only; make certificates with `atoll ca`", l.Peer)
	}
	if l.Admin != "" && !isLoopback(l.Admin) {
		return fmt.Errorf("admin address %s is not loopback", l.Admin)
	}
	if g.conf.Takeover {
		if g.inherited, err = g.inherit(); err != nil {
			return err
		}
		if g.inherited != nil {
			defer g.inherited.drop()
			name := successorName(g.name, g.inherited.name)
			g.known.Store(&name)
		}
	}
	users, err := g.listen("users", "listen", l.Users)
	if err != nil {
		return err
	}
	g.listeners.users = newUserListener(users, l, g.conf.Pace.Idle, func(why refusedConn) { g.metrics.refusedConns[why].Inc() })
	if l.Peer != "" {
		if g.listeners.peer, err = g.listen("peer", "peer", l.Peer); err != nil {
			return err
		}
	}
	if l.Admin != "" {
		g.listeners.admin, err = g.listen("admin", "admin", l.Admin)
	}
	return err
}

// listen takes over the socket of a role if the running gateway has it at the same address, else makes one.
func (g *Gateway) listen(role, what, addr string) (net.Listener, error) {
	if l := g.inherited.take(role, addr); l != nil {
		return l, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s address: %w; choose another address, or stop what uses it (`ss -ltnp` shows that)", what, err)
	}
	return l, nil
}

func isLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// UserAddr, PeerAddr and AdminAddr are the bound addresses; the last two are empty without such a listener.
func (g *Gateway) UserAddr() string  { return addrOf(g.listeners.users.Listener) }
func (g *Gateway) PeerAddr() string  { return addrOf(g.listeners.peer) }
func (g *Gateway) AdminAddr() string { return addrOf(g.listeners.admin) }

func addrOf(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

func (g *Gateway) closeListeners() {
	if g.listeners.users != nil {
		_ = g.listeners.users.Close()
	}
	for _, l := range []net.Listener{g.listeners.peer, g.listeners.admin} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// Run serves until ctx ends, a listener fails, or something fails that requests need, such as the following of views: a gateway
// without that would go on for a while, and refuse writes then. Order of the stop: no new connections; requests end, held ones too,
// within the grace; whoever still waits is told so; only then the view stream ends, which the requests need.
func (g *Gateway) Run(ctx context.Context) error {
	requests, endRequests := context.WithCancelCause(context.WithoutCancel(ctx))
	background, endBackground := context.WithCancel(context.WithoutCancel(ctx))
	bg, background := errgroup.WithContext(background)
	bg.Go(func() error { return g.follow(background) })
	bg.Go(func() error { return g.acknowledge(background) })
	bg.Go(func() error { return g.keepView(background) })
	bg.Go(func() error { return g.upstreams.run(background) })
	bg.Go(func() error { return g.shadows.run(background) })
	bg.Go(func() error { return g.stops.keep(background) })
	if g.conf.Alongside != nil {
		bg.Go(func() error { return g.conf.Alongside(background) })
	}
	if g.conf.Tokens != nil {
		bg.Go(func() error { return g.conf.Tokens.Run(background) })
	}

	ctx, endServing := context.WithCancel(ctx)
	defer endServing()
	defer context.AfterFunc(background, endServing)()
	err := g.serve(ctx, requests, endRequests)
	endRequests(errStopping)
	g.room.close()
	g.readers.close()
	endBackground()
	if bgErr := bg.Wait(); err == nil && !errors.Is(bgErr, context.Canceled) {
		err = bgErr
	}
	g.upstreams.close()
	for _, a := range g.agents {
		a.close()
	}
	if g.farewell != nil {
		g.farewell()
	}
	return err
}

// serve is the part of Run in which requests are served.
func (g *Gateway) serve(ctx, requests context.Context, endRequests context.CancelCauseFunc) error {
	if g.inherited != nil {
		if err := g.awaitView(ctx); err != nil {
			g.closeListeners()
			_ = g.inherited.conn.Close()
			return err
		}
	}
	servers := g.servers(requests)
	serving, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		serving.Go(s.serve)
	}
	g.log.Info("serving", "users", g.UserAddr(), "peer", g.PeerAddr(), "admin", g.AdminAddr())
	var succeeded <-chan struct{}
	succeeded, g.farewell = g.heirs()
	arriving, endArriving := context.WithCancel(ctx)
	defer endArriving()
	if g.inherited != nil {
		serving.Go(func() error { g.arrive(arriving); return nil })
	}
	select {
	case <-ctx.Done():
	case <-succeeded:
		g.bequeath(ctx)
	}
	g.stop(servers, endRequests)
	endArriving()
	return serving.Wait()
}

// server is one listener with its HTTP server.
type server struct {
	*http.Server
	listener net.Listener
	handed   *atomic.Bool // the listener was closed because another process goes on with it
}

func (s *server) serve() error {
	err := error(nil)
	if s.TLSConfig != nil {
		err = s.ServeTLS(s.listener, "", "")
	} else {
		err = s.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) || s.handed.Load() && errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("listener %s: %w", s.listener.Addr(), err)
}

func (g *Gateway) servers(requests context.Context) []*server {
	base := func() *http.Server {
		s := &http.Server{
			BaseContext:       func(net.Listener) context.Context { return requests },
			ReadHeaderTimeout: 10 * time.Second, // no whole-request time-outs: they would run while a request is held
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    64 << 10,

			DisableGeneralOptionsHandler: true, // OPTIONS * asks about the server itself, which no route is
			ErrorLog:                     slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
			Protocols:                    new(http.Protocols),
		}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetHTTP2(true)
		s.Protocols.SetUnencryptedHTTP2(true) // gRPC without TLS, where plain HTTP is allowed; with TLS it is not used
		return s
	}
	users := &server{Server: base(), listener: g.listeners.users, handed: &g.leaving}
	users.Handler, users.TLSConfig = http.HandlerFunc(g.serveUser), g.conf.Listen.TLS.Clone() // the server adds to it
	// A stream's window is far below its connection's, else held uploads stall their neighbours. Frames fit into it: to allow
	// longer ones than the window is wide would mislead.
	users.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 250, MaxReadFrameSize: 16 << 10, MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 2 << 20}
	out := []*server{users}
	if g.listeners.peer != nil {
		s := &server{Server: base(), listener: g.listeners.peer, handed: &g.leaving}
		s.Handler, s.TLSConfig = http.HandlerFunc(g.servePeer), g.conf.PeerTLS.Clone()
		s.IdleTimeout = 2 * peerIdle
		s.MaxHeaderBytes = 96 << 10 // what users may send, and what the first gateway adds
		s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1000, MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 4<<20 - 1}
		out = append(out, s)
	}
	if g.listeners.admin != nil {
		s := &server{Server: base(), listener: g.listeners.admin, handed: &g.leaving}
		stopping := make(chan struct{})
		s.RegisterOnShutdown(sync.OnceFunc(func() { close(stopping) }))
		s.Handler = g.adminHandler(stopping)
		out = append(out, s)
	}
	return out
}

// stop ends the servers: within the grace by themselves, then by telling requests, then by force.
func (g *Gateway) stop(servers []*server, endRequests context.CancelCauseFunc) {
	g.log.Info("stopping")
	grace := g.conf.Grace
	if g.leaving.Load() {
		grace = max(grace, g.conf.Hold.MaxTime+5*time.Second) // nobody waits for the end, and held requests get their answers
	}
	soft, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	var group errgroup.Group
	group.Go(func() error { g.streams.close(grace/2, soft.Done()); return nil })
	for _, s := range servers {
		group.Go(func() error { return s.Shutdown(soft) })
	}
	clean := group.Wait()
	endRequests(errStopping)
	if clean == nil {
		return
	}
	hard, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, s := range servers {
		if s.Shutdown(hard) != nil {
			_ = s.Close()
		}
	}
}
