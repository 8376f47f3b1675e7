package lab

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

func specOf(t *testing.T, o Options, at map[topo.SiteID]*addresses, n *Network) *spec.Spec {
	t.Helper()
	g := &proxies{Network: n}
	for _, site := range o.everywhere() {
		a, err := g.addresses(site, site == o.Witness, o.Gateways)
		if err != nil {
			t.Fatal(err)
		}
		at[site] = a
	}
	made, err := makeSpec(o, at, g)
	if err != nil {
		t.Fatal(err)
	}
	s, err := writeSpec(filepath.Join(t.TempDir(), "atoll.yaml"), made)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Three full sites vote alone.
func TestMakeSpec_ThreeSites(t *testing.T) {
	t.Parallel()
	o := Options{NoWitness: true}
	var err error
	if o.Sites, err = SiteNames(3); err != nil {
		t.Fatal(err)
	}
	o.setDefaults()
	s := specOf(t, o, map[topo.SiteID]*addresses{}, testNetwork(t))
	if len(s.Sites) != 3 || s.Sites["c"].Store == nil || s.Sites["c"].Witness || len(s.Sites["b"].Reach) != 2 {
		t.Errorf("%+v", s.Sites)
	}
	if got := o.places(); got != "the sites a, b and c" {
		t.Error(got)
	}
	for _, n := range []int{1, maxSites + 1} {
		if _, err := SiteNames(n); err == nil {
			t.Errorf("%d sites are accepted", n)
		}
	}
}

// The spec that the lab writes is accepted by everybody's parser, and sites reach others only over paths.
func TestMakeSpec(t *testing.T) {
	t.Parallel()
	o := Options{}
	o.setDefaults()
	n := testNetwork(t)
	at := map[topo.SiteID]*addresses{}
	s := specOf(t, o, at, n)
	if p := s.Policies; p.Lease.Duration != leaseTime || p.Store.Election != 400*time.Millisecond || p.Failover.Mode != "automatic" || *p.Failover.QuietTime != 0 || s.Keyspaces[users].Buckets != 256 || !s.Sites["w"].Witness {
		t.Errorf("read back: %+v", s.Policies)
	}
	r := s.Sites["a"].Reach["b"]
	if r == nil || len(r.Gateways) != 2 || r.Link == at["b"].link || r.AgentAPI == at["b"].api || r.StoreClient == at["b"].storeClient {
		t.Errorf("a reaches b by %+v", r)
	}
	if r := s.Sites["a"].Reach["w"]; r == nil || r.StoreClient == "" || r.Link != "" {
		t.Errorf("a reaches w by %+v", r)
	}
	for _, route := range s.Routes {
		path := route.Match.Path
		session, nearest := path == "/me/profile" || path == "/me/address" || path == "/me/wishes", path == "/me/profile"
		if (route.Session == topo.HeaderSessions) != session || (route.Reads == topo.NearestReads) != nearest || route.HoldReads && nearest {
			t.Errorf("route %s: %+v", path, route)
		}
	}
	if got := len(watchedTables(s)); got != 6 {
		t.Errorf("%d tables are watched, want 6", got)
	}
	if got := len(replicatedTables(s)); got != 6 {
		t.Errorf("%d tables are compared, want 6", got)
	}
}
