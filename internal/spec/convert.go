package spec

import (
	"cmp"
	"math"

	"github.com/atollhq/atoll/topo"
)

// RouteTable lists the routes in the form that gateways compile, without quotas (see RouteTableAt).
func (s *Spec) RouteTable() []topo.Route {
	out := make([]topo.Route, len(s.Routes))
	for i, r := range s.Routes {
		out[i] = topo.Route{Name: r.Name, Hosts: r.Match.Hosts, Path: r.Match.Path, Methods: r.Match.Methods, Upstream: r.Upstream,
			Keyspace: r.Keyspace, Key: r.Key, WithoutKey: r.WithoutKey, FencedRetry: r.FencedRetry, HoldReads: r.HoldReads,
			Reads: r.Reads, Session: r.Session, Strict: r.SessionStrict, MaxStaleness: r.MaxStaleness, WhenStale: r.WhenStale, Priority: r.Priority,
			Move: r.Move.declared(), Shadow: r.Shadow.declared()}
	}
	return out
}

// RouteTableAt is the route table of one of a site's gateways: every quota is its share. A site's gateways share alike.
func (s *Spec) RouteTableAt(site topo.SiteID) []topo.Route {
	out := s.RouteTable()
	for i, r := range s.Routes {
		if r.Rate == nil {
			continue
		}
		sum := 0.0
		for _, id := range s.FullSites() {
			sum += r.Rate.share(id)
		}
		share := r.Rate.share(site) / sum / float64(max(len(s.Sites[site].Gateways), 1))
		burst := cmp.Or(float64(r.Rate.Burst), r.Rate.RPS)
		out[i].Rate = &topo.Rate{Per: r.Rate.Per, PerSecond: share * r.Rate.RPS, Burst: max(int(math.Ceil(share*burst)), 1)}
	}
	return out
}

func (r *Rate) share(site topo.SiteID) float64 {
	if r.Shares == nil {
		return 1
	}
	return r.Shares[site]
}

// KeyspaceTable lists the declared keyspaces.
func (s *Spec) KeyspaceTable() map[topo.KeyspaceID]topo.Keyspace {
	out := make(map[topo.KeyspaceID]topo.Keyspace, len(s.Keyspaces))
	for id, k := range s.Keyspaces {
		out[id] = topo.Keyspace{Buckets: k.Buckets, Hash: k.Hash, Key: k.Key}
	}
	return out
}

// FirstOwnership is the document that a new deployment begins with: everything at the seed, and every full site a
// member.
func (s *Spec) FirstOwnership() topo.Ownership {
	ks := make(map[topo.KeyspaceID]topo.Placement, len(s.Keyspaces))
	for id, k := range s.Keyspaces {
		ks[id] = topo.Placement{Buckets: k.Buckets, Hash: k.Hash,
			Ranges: []topo.Range{{First: 0, Last: topo.BucketID(k.Buckets - 1), Owner: s.Seed, Epoch: 1, State: topo.Open}}}
	}
	return topo.NewOwnership(ks).WithMembers(s.FullSites())
}
