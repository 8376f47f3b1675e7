// Package gateway takes the requests of users and brings each to the site that owns its key: to this site's
// application, or to a gateway of the owner's site. While a bucket moves it holds the bucket's writes.
//
// The main type is [Gateway]; make one with [New], which binds its addresses, and keep it in [Gateway.Run]. What it
// knows of the ownership is a view: streamed from the site's agent (else another site's, else from disk), never going
// back (I8). The fence in the database has the last word; the gateway makes that a user does not hear of it.
//
// Headers. Between gateways a request carries Atoll-Keyspace, Atoll-Bucket, Atoll-Epoch, Atoll-View, Atoll-Hops; copies
// that users send are taken away. Every answer to a user carries Atoll-Gateway and Atoll-View of the gateway that it
// asked, Atoll-Site and Atoll-Epoch of the site whose application answered, and Atoll-Held (ms) if it was held; an
// answer of the gateway's own carries Atoll-Reason. An application says by 503 with Atoll-Fenced: KEYSPACE/BUCKET/EPOCH
// that the fence refused the write and that it rolled back.
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
	"log/slog"
	"net"
	"net/http"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

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
	Upstreams map[string]string        // name → base URL of this site's application
	Peers     map[topo.SiteID][]string // host:port of other sites' gateways, as they are to be dialled
	Agents    []Agent                  // those of this site first
	Hold      Hold                     // zero fields take their defaults
	StateDir  string                   // the last good view is kept here; "" keeps none
	Grace     time.Duration            // how long requests may take to end at a stop; default 10 s
	Log       *slog.Logger
}

// Listen is where a gateway listens.
type Listen struct {
	Users     string      // ip:port
	TLS       *tls.Config // for users; nil: plain, on loopback or with Plaintext
	Plaintext bool        // allow users without TLS beyond loopback
	Peer      string      // ip:port for other sites' gateways; "" for none
	Admin     string      // loopback ip:port for health and metrics; "" for none
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
	budget    *budget
	metrics   *metrics
	agents    []*agentClient
	ack, save chan struct{} // kicks; one is enough
	listeners listeners
}

type listeners struct{ users, peer, admin net.Listener }

// New checks the configuration, reads the view that an earlier run left, and binds the addresses.
func New(conf Config) (*Gateway, error) {
	conf.Hold.MaxTime = cmp.Or(conf.Hold.MaxTime, 15*time.Second)
	conf.Hold.MaxPerBucket = cmp.Or(conf.Hold.MaxPerBucket, 1000)
	conf.Hold.MaxRequests = cmp.Or(conf.Hold.MaxRequests, 10000)
	conf.Grace = cmp.Or(conf.Grace, 10*time.Second)
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	g := &Gateway{conf: conf, name: string(conf.Site) + "/" + conf.Name, ack: make(chan struct{}, 1), save: make(chan struct{}, 1)}
	g.log = conf.Log.With("gateway", g.name)
	if err := g.build(); err != nil {
		return nil, fmt.Errorf("gateway %s: %w", g.name, err)
	}
	if err := g.bind(); err != nil {
		g.closeListeners()
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
	}
	if len(c.Peers) > 0 && c.ClientTLS == nil {
		return errors.New("other sites' gateways are reached by mutual TLS only; make certificates with `atoll ca`")
	}
	if g.upstreams, err = newUpstreams(c.Upstreams, c.Peers, c.ClientTLS); err != nil {
		return err
	}
	if len(c.Agents) == 0 {
		return errors.New("no agent to take the view from")
	}
	for _, a := range c.Agents {
		g.agents = append(g.agents, newAgentClient(a, a.Site == c.Site, g.name))
	}
	slices.SortStableFunc(g.agents, func(a, b *agentClient) int { return boolRank(b.own) - boolRank(a.own) })
	g.views = newViews(c.Site, g.changed)
	g.flights = newFlights(&g.views.current, c.Keyspaces, g.kickAck)
	g.room = newRoom(c.Hold, g.views.load, g.decide)
	g.lease = newLeaseCopy()
	g.holds = &holdLog{log: g.log, active: make(map[holdKey]topo.Spans)}
	g.budget = newBudget(time.Now())
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
	if g.listeners.users, err = listen("listen", l.Users); err != nil {
		return err
	}
	if l.Peer != "" {
		if g.listeners.peer, err = listen("peer", l.Peer); err != nil {
			return err
		}
	}
	if l.Admin != "" {
		g.listeners.admin, err = listen("admin", l.Admin)
	}
	return err
}

func listen(what, addr string) (net.Listener, error) {
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
func (g *Gateway) UserAddr() string  { return addrOf(g.listeners.users) }
func (g *Gateway) PeerAddr() string  { return addrOf(g.listeners.peer) }
func (g *Gateway) AdminAddr() string { return addrOf(g.listeners.admin) }

func addrOf(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

func (g *Gateway) closeListeners() {
	for _, l := range []net.Listener{g.listeners.users, g.listeners.peer, g.listeners.admin} {
		if l != nil {
			_ = l.Close()
		}
	}
}

// Run serves until ctx ends or a listener fails. Order of the stop: no new connections; requests end, held ones too,
// within the grace; whoever still waits is told so; only then the view stream ends, which the requests need.
func (g *Gateway) Run(ctx context.Context) error {
	requests, endRequests := context.WithCancelCause(context.WithoutCancel(ctx))
	background, endBackground := context.WithCancel(context.WithoutCancel(ctx))
	bg, background := errgroup.WithContext(background)
	bg.Go(func() error { return g.follow(background) })
	bg.Go(func() error { return g.acknowledge(background) })
	bg.Go(func() error { return g.keepView(background) })

	servers := g.servers(requests)
	serving, ctx := errgroup.WithContext(ctx)
	for _, s := range servers {
		serving.Go(s.serve)
	}
	g.log.Info("serving", "users", g.UserAddr(), "peer", g.PeerAddr(), "admin", g.AdminAddr())
	<-ctx.Done()
	g.stop(servers, endRequests)
	err := serving.Wait()
	g.room.close()
	endBackground()
	if bgErr := bg.Wait(); err == nil && !errors.Is(bgErr, context.Canceled) {
		err = bgErr
	}
	g.upstreams.close()
	for _, a := range g.agents {
		a.close()
	}
	return err
}

// server is one listener with its HTTP server.
type server struct {
	*http.Server
	listener net.Listener
}

func (s *server) serve() error {
	err := error(nil)
	if s.TLSConfig != nil {
		err = s.ServeTLS(s.listener, "", "")
	} else {
		err = s.Serve(s.listener)
	}
	if errors.Is(err, http.ErrServerClosed) {
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
			ErrorLog:          slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
			Protocols:         new(http.Protocols),
		}
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetHTTP2(true)
		return s
	}
	users := &server{Server: base(), listener: g.listeners.users}
	users.Handler, users.TLSConfig = http.HandlerFunc(g.serveUser), g.conf.Listen.TLS
	// A stream's window is far below its connection's, else held uploads stall their neighbours.
	users.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 250, MaxReceiveBufferPerStream: 64 << 10, MaxReceiveBufferPerConnection: 2 << 20}
	out := []*server{users}
	if g.listeners.peer != nil {
		s := &server{Server: base(), listener: g.listeners.peer}
		s.Handler, s.TLSConfig = http.HandlerFunc(g.servePeer), g.conf.PeerTLS
		s.IdleTimeout = 2 * peerIdle
		s.MaxHeaderBytes = 96 << 10 // what users may send, and what the first gateway adds
		s.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 1000, MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 4<<20 - 1}
		out = append(out, s)
	}
	if g.listeners.admin != nil {
		s := &server{Server: base(), listener: g.listeners.admin}
		s.Handler = g.adminHandler()
		out = append(out, s)
	}
	return out
}

// stop ends the servers: within the grace by themselves, then by telling requests, then by force.
func (g *Gateway) stop(servers []*server, endRequests context.CancelCauseFunc) {
	g.log.Info("stopping")
	soft, cancel := context.WithTimeout(context.Background(), g.conf.Grace)
	defer cancel()
	var group errgroup.Group
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
