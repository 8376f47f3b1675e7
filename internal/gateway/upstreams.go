package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Time-outs towards applications and other gateways.
const (
	dialTimeout = 2 * time.Second
	// A handshake takes processor time, which may be short for a while; a cut path shows in the dial.
	handshakeTimeout = 5 * time.Second
	appAnswer        = 60 * time.Second
	// A gateway waits on behalf of the one that asks: for a view, for the fence, for the application.
	peerAnswer = appAnswer + 10*time.Second
	// Connections to an application are kept for less than what common servers allow (Node.js: 5 s), else a write
	// would run into a connection that the server is just closing.
	appIdle  = 4 * time.Second
	peerIdle = 90 * time.Second
	// A path that was cut is noticed within the sum of these.
	peerPing        = time.Second
	peerPingTimeout = 3 * time.Second
	// HTTP/2 connections per peer address: one is bound by its flow-control window times the round trip, and by a lock.
	peerLanes = 2
)

// notSent wraps an error that came before a byte of the request left: it can be sent elsewhere, whatever its method.
type notSent struct{ err error }

func (e *notSent) Error() string { return e.err.Error() }
func (e *notSent) Unwrap() error { return e.err }

func wasNotSent(err error) bool {
	var e *notSent
	return errors.As(err, &e)
}

// upstreams are the places where requests are sent to: this site's applications and other sites' gateways.
type upstreams struct {
	services  map[string]*service
	peers     map[topo.SiteID]*peer
	transport []*http.Transport // all of them
	seekers   *seekers
}

// peer is the gateways of one other site.
type peer struct {
	addrs   []*address
	lanes   []*http.Transport
	sockets *http.Transport // for WebSockets: HTTP/1.1
	turn    atomic.Uint32
}

func newUpstreams(c Config) (*upstreams, error) {
	u := &upstreams{services: make(map[string]*service), peers: make(map[topo.SiteID]*peer), seekers: newSeekers()}
	for name, declared := range c.Upstreams {
		s, err := newService(name, declared, c, time.Now())
		if err != nil {
			return nil, fmt.Errorf("upstream %s: %w", name, err)
		}
		u.services[name] = s
		u.transport = append(u.transport, s.transport, s.checks)
	}
	return u, u.addPeers(c.Peers, c.ClientTLS)
}

func (u *upstreams) addPeers(peers map[topo.SiteID][]string, clientTLS func(topo.SiteID) *tls.Config) error {
	for site, addrs := range peers {
		if len(addrs) == 0 {
			return fmt.Errorf("site %s has no gateway address", site)
		}
		p := &peer{}
		dial := p.dialTLS(clientTLS(site), "h2", "http/1.1")
		for _, addr := range addrs {
			p.addrs = append(p.addrs, newAddress(addr, u.seekers, func(ctx context.Context) error {
				conn, err := dial(ctx, "tcp", addr)
				if err != nil {
					return err
				}
				return conn.Close()
			}))
		}
		for range peerLanes {
			t := newTransport(peerAnswer, peerIdle)
			t.Protocols = new(http.Protocols)
			t.Protocols.SetHTTP1(true)
			t.Protocols.SetHTTP2(true)
			t.DialTLSContext = dial
			t.HTTP2 = &http.HTTP2Config{SendPingTimeout: peerPing, PingTimeout: peerPingTimeout}
			p.lanes = append(p.lanes, t)
		}
		p.sockets = newTransport(peerAnswer, peerIdle)
		p.sockets.DialTLSContext = p.dialTLS(clientTLS(site), "http/1.1")
		u.peers[site] = p
		u.transport = append(u.transport, append(p.lanes, p.sockets)...)
	}
	return nil
}

// newTransport makes a transport whose dial errors are marked as not sent.
func newTransport(answer, idle time.Duration) *http.Transport {
	return &http.Transport{
		DisableCompression:     true,
		MaxIdleConns:           0,
		MaxIdleConnsPerHost:    1024,
		IdleConnTimeout:        idle,
		ResponseHeaderTimeout:  answer,
		ExpectContinueTimeout:  answer,
		TLSHandshakeTimeout:    handshakeTimeout,
		MaxResponseHeaderBytes: 256 << 10,
		DialContext:            dial,
	}
}

func dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext(ctx, network, addr)
	if err != nil {
		return nil, &notSent{err}
	}
	return conn, nil
}

// dialTLS makes what dials the peer's gateways. TLS is not left to the transport: the certificate must name the site,
// whatever the address, so the configuration verifies.
func (p *peer) dialTLS(conf *tls.Config, protocols ...string) func(ctx context.Context, network, addr string) (net.Conn, error) {
	conf = conf.Clone()
	conf.NextProtos = protocols
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
		raw, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		if a := p.find(addr); a != nil {
			raw = a.listen(raw)
		}
		conn := tls.Client(raw, conf)
		if err := conn.HandshakeContext(ctx); err != nil {
			_ = raw.Close()
			return nil, &notSent{err}
		}
		return conn, nil
	}
}

func (p *peer) find(hostPort string) *address {
	for _, a := range p.addrs {
		if a.hostPort == hostPort {
			return a
		}
	}
	return nil // a name that the transport spells in another way: its silence is judged without what is heard
}

// pick begins an attempt at the next address of a peer that is not silent, and returns the transport to it. Not ok:
// none is believed to answer.
func (p *peer) pick(now time.Time, socket bool) (turn attempt, t *http.Transport, ok bool) {
	n := int(p.turn.Add(1))
	lane := p.lanes[n/len(p.addrs)%len(p.lanes)]
	if socket {
		lane = p.sockets
	}
	for i := range p.addrs {
		if turn, ok := p.addrs[(n+i)%len(p.addrs)].admit(now); ok {
			return turn, lane, true
		}
	}
	return attempt{}, nil, false
}

func (u *upstreams) close() {
	u.seekers.close()
	for _, t := range u.transport {
		t.CloseIdleConnections()
	}
}
