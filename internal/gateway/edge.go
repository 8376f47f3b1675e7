package gateway

import (
	"net/http"
	"strings"
	"time"

	"github.com/atollhq/atoll/route"
)

// serveUser takes a request of a user, or of an application of this site.
func (g *Gateway) serveUser(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	x := &exchange{g: g, ctx: r.Context(), w: w, r: r}
	target, reason := g.match(r)
	x.target = target
	switch {
	case reason != route.None:
	case strings.EqualFold(r.Header.Get("Upgrade"), "websocket"):
		// Other upgrades are offers that a server may ignore (RFC 9110, section 7.8); this one the client relies on.
		reason = reasonUpgrade
	}
	if reason != route.None {
		x.refuse(reason)
	} else {
		defer g.observe(x, start)
		g.budget.earn()
		x.header = outboundHeader(r, target.Route)
		x.run()
	}
}

// servePeer takes a request of another site's gateway; the listener has checked its certificate.
func (g *Gateway) servePeer(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	from, err := parseForwarded(r.Header)
	x := &exchange{g: g, ctx: r.Context(), w: w, r: r, from: &from}
	target, reason := g.match(r)
	x.target = target
	switch {
	case err != nil:
		g.log.Warn("refused a forwarded request", "peer", r.RemoteAddr, "error", err)
		x.refuse(reasonForwarded)
		return
	case from.hops > maxHops:
		x.refuse(reasonHops)
		return
	case reason != route.None || !target.Keyed || target.Route.Keyspace != from.keyspace || target.Bucket != from.bucket:
		g.log.Warn("read a forwarded request differently; are both sites' specifications the same?", "peer", r.RemoteAddr,
			"keyspace", from.keyspace, "bucket", from.bucket, "reason", reason)
		x.refuse(reasonForwarded)
		return
	}
	defer g.observe(x, start)
	x.header = r.Header.Clone()
	stripHop(x.header, nil) // what a user's Connection header took away, the first gateway took away
	stripOurs(x.header)
	delete(x.header, "Expect")
	x.run()
}

func (g *Gateway) match(r *http.Request) (route.Target, route.Reason) {
	return g.table.Match(&route.Request{
		Method: r.Method, Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, Header: r.Header,
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
