package lab

import (
	"path/filepath"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// The spec that the lab writes is accepted by everybody's parser, and sites reach others only over paths.
func TestMakeSpec(t *testing.T) {
	t.Parallel()
	o := Options{}
	o.setDefaults()
	n := testNetwork(t)
	var p ports
	at := map[topo.SiteID]*addresses{}
	for _, site := range []topo.SiteID{"a", "b", "w"} {
		a, err := pickAddresses(&p, site == "w", o.Gateways)
		if err != nil {
			t.Fatal(err)
		}
		at[site] = a
	}
	made, err := makeSpec(o, at, n)
	if err != nil {
		t.Fatal(err)
	}
	s, err := writeSpec(filepath.Join(t.TempDir(), "atoll.yaml"), made)
	if err != nil {
		t.Fatal(err)
	}
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
	if got := len(watchedTables(s)); got != 6 {
		t.Errorf("%d tables are watched, want 6", got)
	}
	if got := len(replicatedTables(s)); got != 6 {
		t.Errorf("%d tables are compared, want 6", got)
	}
}
