package gateway

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atollhq/atoll/internal/balance"
	"github.com/atollhq/atoll/internal/limit"
	"github.com/atollhq/atoll/route"
)

// Upstream is one of this site's applications: a service with one or more instances.
type Upstream struct {
	// URL gives the scheme (http, https; h2c or h2, TLS, for HTTP/2), the path before every request's, and the name that
	// certificates bear. Its host is the one instance where no others are named.
	URL       string
	Instances []balance.Instance // known ahead
	Sources   []Source           // that find more
	Health    HealthCheck
	Ejection  balance.Ejection // zero fields take their defaults
	Limits    *Limits          // nil: none
	Timeout   time.Duration    // for the head of an answer; default 60 s, none for HTTP/2
}

// At is an upstream with the URL's host as its one instance.
func At(url string) Upstream { return Upstream{URL: url} }

// service is an application as requests meet it.
type service struct {
	base      *url.URL // http or https
	transport *http.Transport
	pool      *balance.Pool
	budget    *budget
	gate      *gate // nil: everybody is let in
	metrics   serviceMetrics
	log       *slog.Logger

	static  []balance.Instance // known ahead
	sources []Source
	health  HealthCheck
	checks  *http.Transport // a connection for each check: that there can be one is part of the question
	changed chan struct{}   // kicked: the instances changed
	mu      struct {
		sync.Mutex
		bySource [][]balance.Instance
	}
}

// serviceMetrics are filled in by newMetrics. Instances have no labels: they come and go.
type serviceMetrics struct {
	attempts map[balance.Outcome]prometheus.Counter
	ejected  map[balance.Outcome]prometheus.Counter

	checksGood, checksBad prometheus.Counter
}

func newService(name string, u Upstream, c Config, now time.Time) (*service, error) {
	base, err := url.Parse(u.URL)
	if err != nil || base.Host == "" || base.RawQuery != "" || base.User != nil {
		return nil, notBase(u.URL)
	}
	s := &service{
		base: base, budget: newBudget(now), log: c.Log.With("gateway", string(c.Site)+"/"+c.Name, "upstream", name),
		static: u.Instances, sources: u.Sources, health: u.Health.withDefaults(), changed: make(chan struct{}, 1),
		transport: appTransport(base.Scheme, u.Timeout), checks: appTransport(base.Scheme, u.Health.Timeout),
	}
	if s.transport == nil {
		return nil, notBase(u.URL)
	}
	s.checks.DisableKeepAlives = true
	base.Scheme = map[string]string{"http": "http", "https": "https", "h2c": "http", "h2": "https"}[base.Scheme]
	if len(s.static)+len(s.sources) == 0 {
		s.static = []balance.Instance{{Address: base.Host}}
	} else { // addresses are not what certificates name
		s.transport.TLSClientConfig = &tls.Config{ServerName: base.Hostname()}
		s.checks.TLSClientConfig = &tls.Config{ServerName: base.Hostname()}
	}
	s.mu.bySource = make([][]balance.Instance, len(s.sources))
	rules := balance.Rules{Zone: c.Zone, Ejection: u.Ejection, Checked: u.Health.Path != "", Health: u.Health.Rules}
	if u.Limits != nil {
		rules.PerMember = u.Limits.Connections
	}
	s.pool = balance.NewPool(rules)
	s.pool.Update(s.static, now)
	if u.Limits != nil {
		s.gate = newGate(*u.Limits, s.pool.Places)
	}
	return s, nil
}

func notBase(text string) error {
	return fmt.Errorf("%q is not a base URL such as http://127.0.0.1:8080; with h2c:// or h2:// (TLS) it is reached by HTTP/2, for gRPC", text)
}

// appTransport makes the transport to an application; nil: the scheme is not known. By HTTP/2 a call may be silent for as
// long as its caller waits, and a connection that died in silence is found by pings.
func appTransport(scheme string, answer time.Duration) *http.Transport {
	switch scheme {
	case "http", "https":
		if answer == 0 {
			answer = appAnswer
		}
		return newTransport(answer, appIdle)
	case "h2c", "h2":
		t := newTransport(answer, peerIdle)
		t.Protocols = new(http.Protocols)
		t.Protocols.SetUnencryptedHTTP2(scheme == "h2c")
		t.Protocols.SetHTTP2(scheme == "h2")
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: 10 * time.Second, PingTimeout: 5 * time.Second}
		return t
	}
	return nil
}

// seat is the place that an attempt has at an instance. The zero seat is none.
type seat struct {
	service *service
	at      *balance.Member
	gated   bool // it is inside the service's gate
	began   time.Time
}

// sit takes a place at an instance, not the one of the attempt before if there is another. It may have to wait for it.
func (x *exchange) sit() route.Reason {
	s := x.app
	x.seat = seat{service: s}
	if s.gate != nil {
		if !s.gate.enter(x.ctx, x.priority()) {
			return reasonOverload
		}
		x.seat.gated = true
	}
	now := time.Now()
	at, ok := s.pool.Pick(now, rand.Uint64(), x.tried)
	if !ok {
		x.seat.free()
		if s.pool.Len() == 0 {
			return reasonNoInstance
		}
		return reasonOverload
	}
	x.seat.at, x.seat.began, x.tried = at, now, at
	return route.None
}

// free gives the place back; safe to repeat. First the instance's: whoever is let in finds one there.
func (s *seat) free() {
	if s.at != nil {
		s.at.Release()
		s.at = nil
	}
	s.lasts()
}

// lasts says that the request may stay for as long as its ends like: it does not count as work that is to be bounded.
func (s *seat) lasts() {
	if s.gated {
		s.gated = false
		s.service.gate.leave()
	}
}

// url is the URL of a request at the instance; path and query go along as they came.
func (s *seat) url(asked *url.URL) *url.URL {
	base := s.service.base
	out := &url.URL{Scheme: base.Scheme, Host: s.at.Address, Path: asked.Path, RawPath: asked.RawPath, RawQuery: asked.RawQuery, ForceQuery: asked.ForceQuery}
	if prefix := base.Path; prefix != "" && prefix != "/" {
		joined := base.JoinPath(asked.EscapedPath())
		out.Path, out.RawPath = joined.Path, joined.RawPath
	}
	return out
}

// answered reports an answer's head. That the fence refused a write says nothing against the instance.
func (s *seat) answered(status int, fenced bool) {
	switch {
	case fenced:
		s.report(balance.Answered)
		return
	case status >= 500:
		s.report(balance.Errored)
	default:
		s.report(balance.Answered)
	}
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		s.learn(true) // it says itself that it is too much
	default:
		if status < 500 {
			s.learn(false) // an error may come much sooner than an answer
		}
	}
}

// failed reports an attempt without an answer, and whether that is the application's failure. That a client went away, or its body
// did not come, says nothing about the instance; but answers take as long as it waited at least.
func (s *seat) failed(x *exchange, err error) (its bool) {
	switch {
	case x.body != nil && x.body.failed() != nil || errors.Is(err, errRevoked):
	case x.ctx.Err() != nil:
		s.learn(true)
	default:
		if !wasNotSent(err) {
			s.learn(true)
		}
		s.report(balance.Unreached)
		return true
	}
	return false
}

func (s *seat) report(o balance.Outcome) {
	m := &s.service.metrics
	m.attempts[o].Inc()
	if s.service.pool.Report(s.at, o, time.Now()) {
		m.ejected[o].Inc()
	}
}

// learn tells the gate how long an answer took, or how long none came.
func (s *seat) learn(lost bool) {
	if s.gated {
		now := time.Now()
		s.service.gate.learn(limit.Sample{Began: s.began, Took: now.Sub(s.began), Lost: lost}, now)
	}
}
