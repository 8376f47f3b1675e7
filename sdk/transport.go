package sdk

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

const (
	dialTimeout = 2 * time.Second
	tlsTimeout  = 5 * time.Second
	avoidFor    = 3 * time.Second // an address that could not be dialled, while there are others
	maxAgain    = 2               // after an answer that says that nothing was done
	againPause  = 100 * time.Millisecond
	newerView   = 500 * time.Millisecond // for the view that explains such an answer
	keptAnswer  = 4 << 10                // of an answer that is thrown away, so that its connection may be kept
)

// TransportConfig says where gateways are.
type TransportConfig struct {
	View *View // nil: everything goes to Local
	// Local are the addresses of this site's gateways for users, as base URLs: http://127.0.0.1:8080. At least one.
	Local []string
	// Remote are those of other sites' gateways, where this service reaches them. Requests for a site that is not named here go
	// to Local, and are forwarded.
	Remote map[topo.SiteID][]string
	TLS    *tls.Config // for https addresses; nil: the system's
}

// Transport is an http.RoundTripper that sends each request to a gateway of the site that owns its key, as the routes of the
// site's gateways say. The host of a request's URL is what its Host header says, and nothing else: http://shop/orders goes to a
// gateway, whatever "shop" is. The gateway that gets it decides again; a view that is behind costs a hop.
//
// A request is sent again, at most twice, where a gateway says that it was not executed and that may change, or where it was not sent
// (its body has to be empty, to have a GetBody as http.NewRequest sets it, or not to have been read). Whatever was sent and
// not answered is the caller's error to judge: [NotSent] tells. A caller's deadline should be longer than a hold (15 s).
//
// Its sessions are those of the requests' contexts ([WithSession]).
type Transport struct {
	view   *View
	local  *gateways
	remote map[topo.SiteID]*gateways
	base   *http.Transport
	budget budget
}

// NewTransport checks the addresses. Nothing is dialled before the first request.
func NewTransport(conf TransportConfig) (*Transport, error) {
	t := &Transport{view: conf.View, remote: make(map[topo.SiteID]*gateways), base: &http.Transport{
		Proxy:               nil, // gateways are reached directly
		DialContext:         (&net.Dialer{Timeout: dialTimeout, KeepAlive: 15 * time.Second}).DialContext,
		TLSClientConfig:     conf.TLS,
		TLSHandshakeTimeout: tlsTimeout,
		ForceAttemptHTTP2:   true,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second, // a gateway keeps them for two minutes
	}}
	var err error
	if t.local, err = newGateways(conf.Local); err != nil {
		return nil, fmt.Errorf("gateways of this site: %w", err)
	}
	for site, addrs := range conf.Remote {
		if t.remote[site], err = newGateways(addrs); err != nil {
			return nil, fmt.Errorf("gateways of site %s: %w", site, err)
		}
	}
	return t, nil
}

// CloseIdleConnections closes what no request uses.
func (t *Transport) CloseIdleConnections() { t.base.CloseIdleConnections() }

// gateways are those of one site.
type gateways struct {
	addrs []*address
	turn  atomic.Uint32
}

type address struct {
	base  *url.URL
	avoid atomic.Int64 // Unix time in ns
}

func newGateways(texts []string) (*gateways, error) {
	g := &gateways{}
	for _, text := range texts {
		u, err := baseURL(text)
		if err != nil {
			return nil, err
		}
		g.addrs = append(g.addrs, &address{base: u})
	}
	if len(g.addrs) == 0 {
		return nil, errors.New("no address")
	}
	return g, nil
}

// order is the addresses in turn, those that are avoided left out.
func (g *gateways) order(now time.Time) (good, avoided []*address) {
	first := int(g.turn.Add(1))
	for i := range g.addrs {
		a := g.addrs[(first+i)%len(g.addrs)]
		if a.avoid.Load() > now.UnixNano() {
			avoided = append(avoided, a)
		} else {
			good = append(good, a)
		}
	}
	return good, avoided
}

// addresses is where a request for a site may be tried, in order. Every local gateway can bring it there too.
func (t *Transport) addresses(site topo.SiteID) []*address {
	now := time.Now()
	local, avoided := t.local.order(now)
	remote := t.remote[site]
	if remote == nil || t.view != nil && site == t.view.site {
		return append(local, avoided...)
	}
	far, _ := remote.order(now)
	return append(append(far, local...), avoided...)
}

// RoundTrip sends a request; see [Transport].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	again := t.budget.begin()
	defer again.end()
	body := newOutgoing(req)
	defer body.end()
	session := SessionOf(req.Context())
	for n := 0; ; n++ {
		var used *topo.View
		site := topo.SiteID("")
		if t.view != nil {
			used, site = t.view.document(), t.view.Decide(facts(req))
		}
		resp, err := t.send(req, site, session, body)
		if err != nil {
			return nil, err
		}
		if session != nil {
			session.Learn(resp.Header.Get(HeaderSession), resp.Header.Get(HeaderSessionLost))
		}
		_, worth := ReasonOutcome(resp.Header.Get(HeaderReason))
		if !worth || n >= maxAgain || !body.again() || !again.spend() {
			body.accept()
			return resp, nil
		}
		discard(resp)
		if err := t.pause(req.Context(), used, n+1); err != nil {
			return nil, &notSentError{err}
		}
	}
}

func facts(req *http.Request) *route.Request {
	return &route.Request{Method: methodOf(req), Host: hostOf(req), Path: req.URL.Path, RawPath: req.URL.RawPath,
		RawQuery: req.URL.RawQuery, Header: req.Header}
}

func methodOf(req *http.Request) string {
	if req.Method == "" {
		return http.MethodGet
	}
	return req.Method
}

func hostOf(req *http.Request) string {
	if req.Host != "" {
		return req.Host
	}
	return req.URL.Host
}

// pause waits for a newer view, or a moment.
func (t *Transport) pause(ctx context.Context, used *topo.View, n int) error {
	if t.view != nil && used != nil {
		bound, cancel := context.WithTimeout(ctx, newerView)
		defer cancel()
		_, _ = t.view.Next(bound, used)
		return ctx.Err()
	}
	timer := time.NewTimer(time.Duration(n) * (againPause/2 + rand.N(againPause)))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// send tries one address after the other until one takes the request.
func (t *Transport) send(req *http.Request, site topo.SiteID, session *Session, body *outgoing) (*http.Response, error) {
	var failures []error
	for _, a := range t.addresses(site) {
		out, err := body.request(req, a.base, session)
		if err != nil {
			return nil, errors.Join(append(failures, err)...)
		}
		sent := false
		trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent = true; body.take() }}
		resp, err := t.base.RoundTrip(out.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
		if err == nil {
			return resp, nil
		}
		if sent {
			return nil, fmt.Errorf("gateway %s: %w", a.base.Host, err)
		}
		failures = append(failures, fmt.Errorf("gateway %s: %w", a.base.Host, err))
		if req.Context().Err() != nil {
			break
		}
		a.avoid.Store(time.Now().Add(avoidFor).UnixNano())
		if !body.again() {
			break
		}
	}
	return nil, &notSentError{errors.Join(failures...)}
}

// notSentError wraps an error that came before anything of the request, or of its last attempt, was sent: nothing was done.
type notSentError struct{ err error }

func (e *notSentError) Error() string { return e.err.Error() }
func (e *notSentError) Unwrap() error { return e.err }

// NotSent tells whether an error of a [Transport] says that nothing was done: the request did not leave, or what was sent of it
// was refused unexecuted. Of any other error the outcome is not known.
func NotSent(err error) bool {
	var e *notSentError
	return errors.As(err, &e)
}

// outbound is the request for a gateway.
func outbound(req *http.Request, base *url.URL, session *Session) *http.Request {
	out := req.Clone(req.Context())
	out.URL.Scheme, out.URL.Host = base.Scheme, base.Host
	out.Host = hostOf(req)
	if out.Header == nil {
		out.Header = make(http.Header)
	}
	if session != nil && len(out.Header[HeaderSession]) == 0 {
		out.Header.Set(HeaderSession, session.Outgoing())
	}
	// net/http would send a request with such a header again on its own, and a later answer that says that nothing was done
	// would be wrong about the first attempt. It does not recognise the name in lower case.
	for _, name := range [...]string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, has := out.Header[name]; has {
			delete(out.Header, name)
			out.Header[strings.ToLower(name)] = v
		}
	}
	return out
}

func discard(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, keptAnswer)
	_ = resp.Body.Close()
}

// budget bounds the requests that are being sent again to a fifth of those under way, and a few.
type budget struct{ underWay, again atomic.Int64 }

const budgetFew = 10

// share is one request's part in a budget.
type share struct {
	of    *budget
	spent bool
}

func (b *budget) begin() *share {
	b.underWay.Add(1)
	return &share{of: b}
}

func (s *share) end() {
	s.of.underWay.Add(-1)
	if s.spent {
		s.of.again.Add(-1)
	}
}

// spend tells whether the request may be sent again.
func (s *share) spend() bool {
	if s.spent {
		return true
	}
	if s.of.again.Add(1) > max(budgetFew, s.of.underWay.Load()/5) {
		s.of.again.Add(-1)
		return false
	}
	s.spent = true
	return true
}
