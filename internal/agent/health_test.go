package agent

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

func TestLeaseHealth(t *testing.T) {
	t.Parallel()
	lease := store.Lease{Duration: 3 * time.Second}
	revoked := store.Lease{Duration: 3 * time.Second, Revoked: true}
	live, closed := api.SiteStatus{Lease: api.LeaseStatus{Live: true}}, api.SiteStatus{}
	standby, silent := api.SiteStatus{Standby: true}, api.SiteStatus{Error: "no answer"}
	away := errors.New("no member answered")
	for name, c := range map[string]struct {
		lease store.Lease
		err   error
		said  api.SiteStatus
		since time.Duration
		new   bool // never seen renewed
		want  string
	}{
		"renewed":                            {lease, nil, live, 2 * time.Second, false, api.LeaseLive},
		"renewed, its agent does not answer": {lease, nil, silent, 2 * time.Second, false, api.LeaseLive},
		"renewed, its standby answers":       {lease, nil, standby, 2 * time.Second, false, api.LeaseLive},
		"renewed, its database is closed":    {lease, nil, closed, 2 * time.Second, false, api.LeaseLapsed},
		"not renewed":                        {lease, nil, silent, 4 * time.Second, false, api.LeaseLapsed},
		"revoked":                            {revoked, nil, live, 0, false, api.LeaseLapsed},
		"never taken":                        {store.Lease{}, store.ErrNotFound, silent, 0, false, api.LeaseLapsed},
		"no store, it says that it goes on":  {store.Lease{}, away, live, time.Hour, false, api.LeaseLive},
		"no store, it says that it does not": {store.Lease{}, away, closed, 0, false, api.LeaseLapsed},
		"no store, no word":                  {store.Lease{}, away, silent, 0, false, api.LeaseUnknown},
		"no store, only a standby":           {store.Lease{}, away, standby, 0, false, api.LeaseUnknown},
		"left there":                         {lease, nil, silent, 2 * time.Second, true, api.LeaseUnknown},
		"just looked, and it says so":        {lease, nil, live, 0, true, api.LeaseLive},
		"left there, and its time is over":   {lease, nil, silent, 4 * time.Second, true, api.LeaseLapsed},
	} {
		if got := leaseHealth(c.lease, c.err, c.said, c.since, !c.new); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestGatewayHealth(t *testing.T) {
	t.Parallel()
	two := api.SiteStatus{Gateways: []api.GatewayStatus{{Gateway: "g1", Connected: true}, {Gateway: "g2"}}}
	for name, c := range map[string]struct {
		said  api.SiteStatus
		since time.Duration
		want  []string
		known bool
	}{
		"one of two":               {two, 0, []string{"g1"}, true},
		"none, and it has settled": {api.SiteStatus{}, gatewaysSettle, nil, true},
		"none, it has just begun":  {api.SiteStatus{}, gatewaysSettle - 1, nil, false},
		"a standby's are not all":  {api.SiteStatus{Standby: true, Gateways: two.Gateways}, time.Hour, nil, false},
		"no answer":                {api.SiteStatus{Error: "no answer"}, time.Hour, nil, false},
	} {
		got, known := gatewayHealth(c.said, c.since)
		if !slices.Equal(got, c.want) || known != c.known {
			t.Errorf("%s: %v, %v", name, got, known)
		}
	}
}

// TestHealth: a site's own certificate is enough to ask; what an agent says follows leases and gateways of both sites.
func TestHealth(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start("a")
	w.start("b")
	client := api.NewClient(w.spec.Sites["a"].Agent.API, w.identity("a").ClientTLS("a"), nil)
	defer client.Close()
	var h api.Health
	is := func(want func() bool) func() bool {
		return func() bool {
			got, err := client.Health(t.Context())
			if err != nil || got.Site != "a" || len(got.Sites) != 2 {
				return false
			}
			h = got
			return want()
		}
	}
	ended := w.listener("b")
	w.eventually("both sites are well", is(func() bool {
		return h.Holds && h.Sites[0].Lease == api.LeaseLive && h.Sites[1].Lease == api.LeaseLive && slices.Equal(h.Sites[1].Gateways, []string{"g1"}) && h.Sites[1].Member
	}))
	w.eventually("site a has no gateway", is(func() bool { return h.Sites[0].GatewaysKnown && len(h.Sites[0].Gateways) == 0 }))
	w.stop("b")
	<-ended
	w.eventually("site b has lost its lease", is(func() bool { return h.Sites[1].Lease == api.LeaseLapsed && !h.Sites[1].GatewaysKnown && h.Holds }))
}

// listener is a gateway of a site that listens to its agent, and ends with it.
func (w *world) listener(site topo.SiteID) (ended chan struct{}) {
	client := api.NewClient(w.spec.Sites[site].Agent.API, w.identity(site).ClientTLS(site), nil)
	ended = make(chan struct{})
	go func() {
		defer close(ended)
		defer client.Close()
		_ = client.View(w.t.Context(), "g1", func(api.ViewUpdate) error { return nil })
	}()
	return ended
}

// TestPublishing: the first site's active agent publishes for all, and when that site is lost the next one does.
func TestPublishing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	weight := 100
	w.spec.DNS = &spec.DNS{Zones: []string{"shop.test"}, Names: []string{"shop.test"}, TTL: 30 * time.Second,
		Sites: map[topo.SiteID]*spec.DNSSite{"a": {Addresses: []string{"192.0.2.1"}, Weight: &weight}, "b": {Addresses: []string{"198.51.100.1"}, Weight: &weight}}}
	var mu sync.Mutex
	var last string
	var by topo.SiteID
	w.publish = func(site topo.SiteID, d dns.Document) error {
		mu.Lock()
		defer mu.Unlock()
		last, by = strings.Join(d.Records[0].Values, " "), site
		return nil
	}
	is := func(values string, site topo.SiteID) func() bool {
		return func() bool {
			mu.Lock()
			defer mu.Unlock()
			return last == values && by == site
		}
	}
	w.start("a")
	w.start("b")
	endedA, endedB := w.listener("a"), w.listener("b")
	w.eventually("a publishes both", is("192.0.2.1 198.51.100.1", "a"))
	w.stop("a")
	<-endedA
	w.eventually("b publishes itself", is("198.51.100.1", "b"))
	w.stop("b")
	<-endedB
}
