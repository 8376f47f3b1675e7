// Package store keeps what all sites must agree on: the ownership document, the sites' leases, handover records and
// the audit. It is etcd: embedded, in a process of its own ([RunMember]), or external by configuration. The main type
// is [Client].
//
// It guarantees: every read is linearizable; every write is one transaction that compares the revisions it relies on;
// a write whose answer was lost is looked up in the history, never assumed; each try has a short deadline of its own
// and goes on to the next member, so that a dead, paused or cut-off member costs one try. Watches are hints only.
//
// It refuses records of a newer format, and never uses etcd's leases or locks: they are re-armed at each change of
// leader, and renewals bypass the log (see "State in the store" in the ownership design).
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/raft/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/grpc/status"

	"github.com/atollhq/atoll/topo"
)

var (
	// ErrNotFound: the record does not exist; for ownership, the deployment is not bootstrapped.
	ErrNotFound = errors.New("not in the store")
	// ErrConflict: a record was not as expected; nothing was written. Read again and decide again.
	ErrConflict = errors.New("changed by another writer")
	// ErrUnavailable: no member answered before the context ended.
	ErrUnavailable = errors.New("no store member answered")
	// ErrOutcomeUnknown: the context ended before it was known whether the write was carried out; it may still be.
	// Read again before deciding.
	ErrOutcomeUnknown = errors.New("outcome unknown")
)

// Endpoint is where clients reach a member: "host:port", or a URL for an external etcd.
type Endpoint struct {
	Site topo.SiteID
	Addr string
}

// Config says how to reach the store.
type Config struct {
	Deployment string
	Endpoints  []Endpoint
	// TLS gives the configuration for dialling a site's member. nil is refused unless every member is on loopback.
	TLS func(topo.SiteID) *tls.Config
	// Dial replaces dialling by TCP, for networks where a site is reached elsewhere than where it says. The proxy of
	// the environment is never used.
	Dial   func(ctx context.Context, site topo.SiteID, addr string) (net.Conn, error)
	Peers  map[topo.SiteID]string // the members' peer addresses, to name those that have never started; may be nil
	Prefer topo.SiteID            // asked first while it answers; the own site
	Try    time.Duration          // deadline of one try at one member; 0 is 500 ms, for round trips up to about 150 ms
	Logger *slog.Logger           // nil discards
}

// Client reads and writes the records of one deployment. It is safe for concurrent use.
type Client struct {
	cfg     Config
	keys    keys
	log     *slog.Logger
	members []*clientMember // the preferred one first

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // scout and watches

	mu struct {
		sync.Mutex
		answered int    // index of the member that answered last
		suspect  []bool // did not answer last time: asked after the others until the scout gets an answer
		reign    peeked // the store of the highest generation that has answered
		// Leases as watches told of them first, and as they were read last.
		heard, read map[topo.SiteID]told
		leadAgain   time.Time // the store is not asked for another leader before
	}
}

type clientMember struct {
	Endpoint
	host string
	tls  *tls.Config // nil: plain, loopback only
	etcd *clientv3.Client

	mu struct {
		sync.Mutex
		dialled error // why the last attempt to connect failed: gRPC's own errors only say that time ran out
	}
}

func init() {
	// gRPC logs every lost connection to stderr by a process-wide logger that can only be set here, before first use.
	// What matters reaches the caller as an error.
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
}

// Open makes a client; nothing is dialled before it is needed. The caller closes it.
func Open(_ context.Context, cfg Config) (*Client, error) {
	if err := topo.CheckName(cfg.Deployment); err != nil {
		return nil, fmt.Errorf("store: deployment: %w", err)
	}
	if len(cfg.Endpoints) == 0 {
		return nil, errors.New("store: no endpoints; the spec's sites name the members of the store")
	}
	if cfg.Try == 0 {
		cfg.Try = 500 * time.Millisecond
	}
	c := &Client{cfg: cfg, keys: keysOf(cfg.Deployment), log: cfg.Logger}
	if c.log == nil {
		c.log = slog.New(slog.DiscardHandler)
	}
	c.mu.heard, c.mu.read = map[topo.SiteID]told{}, map[topo.SiteID]told{}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	for _, e := range cfg.Endpoints {
		m, err := c.openMember(e)
		if err != nil {
			c.cancel()
			c.closeMembers()
			return nil, err
		}
		if e.Site == cfg.Prefer {
			c.members = append([]*clientMember{m}, c.members...)
		} else {
			c.members = append(c.members, m)
		}
	}
	c.mu.suspect = make([]bool, len(c.members))
	c.wg.Go(c.scout)
	return c, nil
}

// Close ends watches and connections.
func (c *Client) Close() {
	c.cancel()
	c.wg.Wait()
	c.closeMembers()
}

func (c *Client) closeMembers() {
	for _, m := range c.members {
		m.etcd.Close() // reports only that its context is cancelled
	}
}

func (c *Client) openMember(e Endpoint) (*clientMember, error) {
	addr := e.Addr
	if !strings.Contains(addr, "://") {
		addr = "http://" + e.Addr
		if c.cfg.TLS != nil {
			addr = "https://" + e.Addr
		}
	}
	u, err := url.Parse(addr)
	if err != nil || u.Hostname() == "" || u.Port() == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("store: endpoint %q of site %s; want host:port or https://host:port", e.Addr, e.Site)
	}
	m := &clientMember{Endpoint: e, host: u.Host}
	switch ip := net.ParseIP(u.Hostname()); {
	case u.Scheme == "https" && c.cfg.TLS == nil:
		return nil, fmt.Errorf("store: endpoint %s of site %s needs a certificate, and none is configured", e.Addr, e.Site)
	case u.Scheme == "https":
		m.tls = c.cfg.TLS(e.Site).Clone()
		m.tls.NextProtos = []string{"h2"}
		if m.tls.ServerName == "" {
			m.tls.ServerName = u.Hostname()
		}
	case ip == nil || !ip.IsLoopback():
		return nil, fmt.Errorf("store: endpoint %s of site %s is not on loopback and without TLS; use https", e.Addr, e.Site)
	}
	m.etcd, err = clientv3.New(clientv3.Config{
		Endpoints:            []string{"http://" + u.Host}, // TLS is below, in dial: gRPC would check the address's name
		DialKeepAliveTime:    10 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		MaxUnaryRetries:      1, // the next try goes to the next member
		Logger:               zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
				conn, err := c.dial(ctx, m)
				m.mu.Lock()
				m.mu.dialled = err
				m.mu.Unlock()
				return conn, err
			}),
			grpc.WithChainUnaryInterceptor(failFastUnary, c.refuseFormer),
			grpc.WithChainStreamInterceptor(failFastStream),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
				MinConnectTimeout: 2 * time.Second,
			}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("store: member %s at %s: %w", e.Site, e.Addr, err)
	}
	return m, nil
}

// etcd's client waits for a connection until the request's deadline; there are other members to ask.
func failFastUnary(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return invoke(ctx, method, req, reply, cc, append(opts[:len(opts):len(opts)], grpc.WaitForReady(false))...)
}

func failFastStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return open(ctx, desc, cc, method, append(opts[:len(opts):len(opts)], grpc.WaitForReady(false))...)
}

// dial connects to a member, TLS included.
func (c *Client) dial(ctx context.Context, m *clientMember) (net.Conn, error) {
	var conn net.Conn
	var err error
	if c.cfg.Dial != nil {
		conn, err = c.cfg.Dial(ctx, m.Site, m.host)
	} else {
		var d net.Dialer
		conn, err = d.DialContext(ctx, "tcp", m.host)
	}
	if err != nil || m.tls == nil {
		return conn, err
	}
	secure := tls.Client(conn, m.tls)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}

// do asks one member after the other until one answers, for as long as ctx allows. call's error is either an answer
// (returned as it is) or a failure to answer (transient), which moves on to the next member.
func (c *Client) do(ctx context.Context, call func(context.Context, *clientv3.Client) error) error {
	return c.doIn(ctx, c.cfg.Try, call)
}

func (c *Client) doIn(ctx context.Context, bound time.Duration, call func(context.Context, *clientv3.Client) error) error {
	failures := make([]error, len(c.members))
	for {
		for _, i := range c.order() {
			try, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), bound)
			err := call(try, c.members[i].etcd)
			cancel()
			if err == nil || !transient(err) {
				c.note(i, true)
				return err
			}
			if ctx.Err() == nil && !leaderless(err) {
				c.note(i, false)
			}
			failures[i] = err
			if ctx.Err() != nil {
				return c.unavailable(ctx, failures)
			}
		}
		// All failed, perhaps at once (connection refused, election under way): do not spin.
		pause := time.NewTimer(50 * time.Millisecond)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return c.unavailable(ctx, failures)
		}
	}
}

func (c *Client) unavailable(ctx context.Context, failures []error) error {
	var parts []string
	for i, err := range failures {
		if err == nil { // not asked
			continue
		}
		m, why := c.members[i], status.Convert(err).Message()
		m.mu.Lock()
		if m.mu.dialled != nil {
			why = m.mu.dialled.Error()
		}
		m.mu.Unlock()
		parts = append(parts, fmt.Sprintf("%s at %s: %s", m.Site, m.Addr, why))
	}
	return fmt.Errorf("%w (%s): %w", ErrUnavailable, strings.Join(parts, "; "), context.Cause(ctx))
}

// transient tells failures of a member from answers. A transient failure of a write says nothing about its outcome.
func transient(err error) bool {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return true
	}
	var coded interface{ Code() codes.Code } // rpctypes.EtcdError
	code := status.Code(err)
	if errors.As(err, &coded) {
		code = coded.Code()
	}
	switch code {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.Internal, codes.Aborted:
		return true
	case codes.Unknown: // etcd has no code of its own for it
		return leaderless(err)
	case codes.ResourceExhausted: // too many requests: try elsewhere; out of space: the same everywhere
		return !strings.Contains(err.Error(), "space exceeded")
	case codes.FailedPrecondition: // a learner, or one that does not know yet that it votes now, sends its clients elsewhere
		return strings.Contains(err.Error(), rpctypes.ErrorDesc(rpctypes.ErrGRPCNotSupportedForLearner))
	}
	return false
}

// leaderless tells failures that say only that the store changes its leader: nothing is wrong with the member. One that
// stays without a leader, because it is cut off, says so at once whenever it is asked; watches make it suspect.
func leaderless(err error) bool {
	text := rpctypes.ErrorDesc(err)
	for _, change := range []error{raft.ErrProposalDropped, rpctypes.ErrGRPCNoLeader, rpctypes.ErrGRPCLeaderChanged} {
		if strings.Contains(text, rpctypes.ErrorDesc(change)) {
			return true
		}
	}
	return false
}

// order lists the members to ask: those that are not suspect first; among them the preferred one, then the one that
// answered last.
func (c *Client) order() []int {
	c.mu.Lock()
	defer c.mu.Unlock()
	rank := make([]int, 0, len(c.members)+1)
	rank = append(rank, 0, c.mu.answered)
	for i := range c.members {
		rank = append(rank, i)
	}
	out := make([]int, 0, len(c.members))
	taken := make([]bool, len(c.members))
	for _, suspect := range []bool{false, true} {
		for _, i := range rank {
			if !taken[i] && c.mu.suspect[i] == suspect {
				out, taken[i] = append(out, i), true
			}
		}
	}
	return out
}

func (c *Client) note(i int, ok bool) {
	c.mu.Lock()
	changed := c.mu.suspect[i] == ok
	c.mu.suspect[i] = !ok
	if ok {
		c.mu.answered = i
	}
	c.mu.Unlock()
	if changed && ok {
		c.log.Info("store member answers again", "member", c.members[i].Site)
	} else if changed {
		c.log.Warn("store member does not answer", "member", c.members[i].Site, "addr", c.members[i].Addr)
	}
}

// scout asks suspect members whether they answer again, so that no request has to be the one that finds out.
func (c *Client) scout() {
	tick := time.NewTicker(c.cfg.Try)
	defer tick.Stop()
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-tick.C:
		}
		for i, m := range c.members {
			c.mu.Lock()
			suspect := c.mu.suspect[i]
			c.mu.Unlock()
			if !suspect {
				continue
			}
			ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(c.ctx), c.cfg.Try)
			_, err := m.etcd.Get(ctx, c.keys.ownership(), clientv3.WithCountOnly())
			cancel()
			if err == nil {
				c.recovered(i)
			}
		}
	}
}

// recovered clears the suspicion without making the member the one that answered last.
func (c *Client) recovered(i int) {
	c.mu.Lock()
	c.mu.suspect[i] = false
	c.mu.Unlock()
	c.log.Info("store member answers again", "member", c.members[i].Site)
}
