package gateway

import (
	"net/http"
	"time"

	"github.com/atollhq/atoll/route"
)

// serveUser takes a request of a user, or of an application of this site.
func (g *Gateway) serveUser(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	g.letGo(w)
	x := &exchange{g: g, ctx: r.Context(), w: w, r: r, who: identity{g: g, r: r}}
	target, reason := g.match(r, &x.who)
	x.target = target
	x.kind()
	defer x.startSpan()()
	defer func() { g.access.line(x, time.Since(start)) }()
	if reason != route.None {
		x.refuse(reason)
	} else {
		defer g.observe(x, start)
		if !x.within() {
			x.refuse(reasonRate)
			return
		}
		x.begin()
		x.choose()
		x.app.budget.earn()
		x.header = outboundHeader(r, target.Route, g.conf.Listen.Trusted)
		x.run()
	}
}

// servePeer takes a request of another site's gateway; the listener has checked its certificate.
func (g *Gateway) servePeer(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	g.letGo(w)
	from, err := parseForwarded(r.Header)
	x := &exchange{g: g, ctx: r.Context(), w: w, r: r, from: &from, who: identity{g: g, r: r, peer: true}}
	target, reason := g.match(r, &x.who)
	x.target = target
	x.kind()
	defer x.startSpan()()
	defer func() { g.access.line(x, time.Since(start)) }()
	switch {
	case err != nil:
		g.log.Warn("refused a forwarded request", "peer", r.RemoteAddr, "error", err)
		x.refuse(reasonForwarded)
		return
	case from.hops > maxHops:
		x.refuse(reasonHops)
		return
	case ofToken(reason): // both read it alike; between them its time went by, or keys were taken back
		x.refuse(reason)
		return
	case reason != route.None || !target.Keyed || target.Route.Keyspace != from.keyspace || target.Bucket != from.bucket:
		g.log.Warn("read a forwarded request differently; are both sites' specifications the same?", "peer", r.RemoteAddr,
			"keyspace", from.keyspace, "bucket", from.bucket, "reason", reason)
		x.refuse(reasonForwarded)
		return
	}
	defer g.observe(x, start)
	x.begin()
	x.choose()
	x.header = r.Header.Clone()
	stripHop(x.header, nil) // what a user's Connection header took away, the first gateway took away
	stripOurs(x.header)
	x.expects = sentOnce(r) // whether it said so is not known: the server takes the header away
	delete(x.header, "Expect")
	x.run()
}

// letGo makes an answer the last one of its connection, where another process has taken over.
func (g *Gateway) letGo(w http.ResponseWriter) {
	if g.leaving.Load() {
		w.Header()["Connection"] = []string{"close"} // in HTTP/2 the server makes it GOAWAY
	}
}

// kind looks at what the request is besides a request. A WebSocket counts as a write: what it will be used for is not
// known. Other upgrades are offers that a server may ignore (RFC 9110, section 7.8), and are.
func (x *exchange) kind() {
	x.grpc = isGRPC(x.r)
	if x.socket = upgrades(x.r); x.socket {
		x.target.Safe, x.target.Write, x.target.Nearest = false, true, false
	}
}

func ofToken(reason route.Reason) bool {
	return reason == route.BadToken || reason == route.ExpiredToken || reason == reasonNoTokenKeys
}

func (g *Gateway) match(r *http.Request, who *identity) (route.Target, route.Reason) {
	return g.table.Match(&route.Request{
		Method: r.Method, Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, Header: r.Header,
		Verified: who,
	})
}

// observe counts an answered request.
func (g *Gateway) observe(x *exchange, start time.Time) {
	m := g.metrics.routes[x.target.Route.Name]
	m.seconds.Observe(time.Since(start).Seconds())
	if class := x.status / 100; class >= 2 && class <= 5 {
		m.answers[class].Inc()
	}
}
