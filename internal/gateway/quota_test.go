package gateway

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"testing"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// Quotas per route, per key and per client: whoever is beyond is told when to come back, and the application does not hear
// of it. A key is counted in its one form.
func TestQuotas(t *testing.T) {
	t.Parallel()
	a := alone(t, echo("a"), func(c *Config) {
		c.Routes = slices.Clone(testRoutes)
		rate := func(per topo.RatePer) *topo.Rate { return &topo.Rate{Per: per, PerSecond: 0.01, Burst: 2} }
		c.Routes[0].Rate = rate(topo.PerKey)
		c.Routes = append(c.Routes, topo.Route{Name: "all", Path: "/all", Upstream: "app", Rate: rate(topo.PerRoute)},
			topo.Route{Name: "each", Path: "/each", Upstream: "app", Rate: rate(topo.PerClient)})
	})
	c := newClient(t)
	for _, path := range []string{"/all", "/each"} {
		for left := 1; left >= 0; left-- {
			got := do(t, c, "GET", a.url(path), "", "")
			want(t, got, 200, "")
			if limit := got.header.Get("RateLimit"); limit != fmt.Sprintf("%q;r=%d;t=%d", path[1:], left, (2-left)*100) {
				t.Errorf("RateLimit %s", limit)
			}
		}
		got := do(t, c, "GET", a.url(path), "", "")
		want(t, got, 429, reasonRate)
		if wait, _ := strconv.Atoi(got.header.Get("Retry-After")); wait < 50 || wait > 100 || got.header.Get("RateLimit-Policy") != fmt.Sprintf("%q;q=2;w=200", path[1:]) {
			t.Errorf("headers %v", got.header)
		}
	}
	for _, key := range []string{keyIn(0), keyIn(1)} {
		for range 2 {
			want(t, do(t, c, "POST", a.url("/users"), key, "x"), 200, "")
		}
		want(t, do(t, c, "POST", a.url("/users"), key, "x"), 429, reasonRate)
	}
	want(t, do(t, c, "GET", a.url("/users"), "", ""), 400, route.NoKey) // before anything is counted
	if grpcStatus(reasonRate, 429) != grpcResourceExhausted || grpcStatus(reasonOverload, 503) != grpcUnavailable || grpcStatus(reasonExpired, 504) != grpcDeadlineExceeded {
		t.Error("gRPC clients are told something else")
	}
	if n := a.counter("refused_total", "reason", "rate"); n != 4 {
		t.Errorf("%v were refused", n)
	}
}

// Who is counted together: what a trusted proxy says of its client counts, and nobody else's word.
func TestClientOfAQuota(t *testing.T) {
	t.Parallel()
	trusted := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
	for _, c := range []struct{ addr, forwarded, want string }{
		{"10.0.0.1:5", "", "10.0.0.1"}, {"[::ffff:10.0.0.1]:5", "", "10.0.0.1"}, {"[2001:db8:1:2:3::4]:5", "", "2001:db8:1:2::"},
		{"[2001:db8:1:2:ffff::]:9", "", "2001:db8:1:2::"}, {"[fe80::1%eth0]:5", "", "fe80::"}, {"unix", "", "unix"},
		{"10.9.0.7:5", "192.0.2.1", "192.0.2.1"}, {"10.9.0.7:5", "203.0.113.9, 2001:db8:1:2:3::4, 10.9.1.1", "2001:db8:1:2::"},
		{"10.9.0.7:5", "", "10.9.0.7"}, {"10.0.0.1:5", "192.0.2.1", "10.0.0.1"},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.RemoteAddr = c.addr
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := customer(clientAddress(r, trusted)); got != c.want {
			t.Errorf("%s, forwarded for %q: %s, want %s", c.addr, c.forwarded, got, c.want)
		}
	}
}

// Clients behind one trusted proxy have each a quota of their own.
func TestQuotaBehindAProxy(t *testing.T) {
	t.Parallel()
	a := alone(t, echo("a"), func(c *Config) {
		c.Listen.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
		c.Routes = append(slices.Clone(testRoutes), topo.Route{Name: "each", Path: "/each", Upstream: "app", Rate: &topo.Rate{Per: topo.PerClient, PerSecond: 0.01, Burst: 1}})
	})
	for _, want := range []int{200, 429} {
		for _, from := range []string{"192.0.2.1", "192.0.2.2"} {
			req, err := http.NewRequest("GET", a.url("/each"), nil)
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("X-Forwarded-For", from)
			if got := send(t, newClient(t), req); got.status != want {
				t.Errorf("%s is answered %s, want %d", from, got, want)
			}
		}
	}
}
