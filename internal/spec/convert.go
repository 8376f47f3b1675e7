package spec

import "github.com/atollhq/atoll/topo"

// RouteTable lists the routes in the form that gateways compile.
func (s *Spec) RouteTable() []topo.Route {
	out := make([]topo.Route, len(s.Routes))
	for i, r := range s.Routes {
		out[i] = topo.Route{Name: r.Name, Hosts: r.Match.Hosts, Path: r.Match.Path, Methods: r.Match.Methods, Upstream: r.Upstream,
			Keyspace: r.Keyspace, Key: r.Key, WithoutKey: r.WithoutKey, FencedRetry: r.FencedRetry, HoldReads: r.HoldReads}
	}
	return out
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
