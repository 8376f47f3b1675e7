package gateway

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/atollhq/atoll/internal/limit"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// quotaKeys is how many keys or clients of a route are remembered.
const quotaKeys = 1 << 16

// quota is how many requests of a route are let through in a time. The first gateway counts them, before anything else.
type quota struct {
	per     topo.RatePer
	buckets *limit.Buckets
	name    string // of the route, as a structured field's string
	policy  []string
}

func newQuotas(routes []*route.Route) map[*route.Route]*quota {
	out := make(map[*route.Route]*quota)
	for _, r := range routes {
		if r.Rate == nil {
			continue
		}
		q := &quota{per: r.Rate.Per, buckets: limit.NewBuckets(limit.Rate{PerSecond: r.Rate.PerSecond, Burst: r.Rate.Burst}, quotaKeys), name: strconv.Quote(r.Name)}
		full := limit.Seconds(time.Duration(float64(r.Rate.Burst) / r.Rate.PerSecond * float64(time.Second)))
		q.policy = []string{fmt.Sprintf("%s;q=%d;w=%d", q.name, r.Rate.Burst, full)}
		out[r] = q
	}
	return out
}

// within tells whether the request is within its route's quota, and says in the answer's head what is left of it
// (draft-ietf-httpapi-ratelimit-headers).
func (x *exchange) within() bool {
	q := x.g.quotas[x.target.Route]
	if q == nil {
		return true
	}
	a := q.buckets.Take(q.key(x), time.Now())
	h := x.w.Header()
	h["Ratelimit-Policy"] = q.policy
	h["Ratelimit"] = []string{fmt.Sprintf("%s;r=%d;t=%d", q.name, a.Remaining, limit.Seconds(a.Full))}
	if !a.OK {
		h["Retry-After"] = []string{strconv.Itoa(max(limit.Seconds(a.Wait), 1))}
	}
	return a.OK
}

// key names who is counted together with the request: everybody, the key's, or the client's. A request without a key
// counts for its client; the two are never the same.
func (q *quota) key(x *exchange) string {
	switch {
	case q.per == topo.PerRoute:
		return ""
	case q.per == topo.PerKey && x.target.Key != "":
		return "k" + x.target.Key
	}
	return "c" + customer(clientAddress(x.r, x.g.conf.Listen.Trusted))
}

// customer is whose address that is: of IPv6 the network that one customer has, a /64.
func customer(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	if ip = ip.Unmap(); ip.Is4() {
		return ip.String()
	}
	if p, err := ip.WithZone("").Prefix(64); err == nil {
		return p.Addr().String()
	}
	return address
}
