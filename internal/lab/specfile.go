package lab

import (
	"fmt"
	"os"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

const (
	deploymentName = "lab"
	operatorName   = "lab"

	leaseTime     = 3 * time.Second
	checkToCommit = time.Second

	users   topo.KeyspaceID = "users"
	catalog topo.KeyspaceID = "catalog"
)

// addresses are where one site listens.
type addresses struct {
	storeClient, storePeer string
	peerName               string // by which every store member knows this one
	api, link              string
	app                    string
	database               int
	databasePath           string // where the site's agent reaches its database
	gateways               map[string]gatewayAddresses
	namespace              string // where the site has a network, and loopback, of its own: the file that leads there
}

func (a *addresses) witness() bool { return a.api == "" }

type gatewayAddresses struct{ listen, peer, admin string }

func pickAddresses(witness bool, gateways int) (*addresses, error) {
	a := &addresses{gateways: map[string]gatewayAddresses{}}
	into := []*string{&a.storeClient, &a.storePeer}
	if !witness {
		into = append(into, &a.api, &a.link, &a.app)
	}
	for _, to := range into {
		port, err := loopback.Port()
		if err != nil {
			return nil, err
		}
		*to = local(port)
	}
	if witness {
		return a, nil
	}
	var err error
	if a.database, err = loopback.Port(); err != nil {
		return nil, err
	}
	for i := range gateways {
		var g [3]int
		for j := range g {
			if g[j], err = loopback.Port(); err != nil {
				return nil, err
			}
		}
		a.gateways[fmt.Sprintf("g%d", i+1)] = gatewayAddresses{local(g[0]), local(g[1]), local(g[2])}
	}
	return a, nil
}

func local(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// makeSpec writes down the ticket shop at the given sites. Every site reaches itself directly and the others as the
// ground has it.
func makeSpec(o Options, at map[topo.SiteID]*addresses, g ground) (*spec.Spec, error) {
	s := &spec.Spec{
		Version:    spec.Version,
		Deployment: deploymentName,
		Seed:       o.Sites[0],
		Sites:      map[topo.SiteID]*spec.Site{},
		Keyspaces: map[topo.KeyspaceID]*spec.Keyspace{
			users:   {Buckets: o.Buckets, Hash: topo.HashMD5, Key: topo.UUIDKey},
			catalog: {Buckets: 1},
		},
		Tables: map[string]*spec.Table{
			"public.customers": {Kind: topo.Keyed, Keyspace: users, Key: "id"},
			"public.orders":    {Kind: topo.Keyed, Keyspace: users, Key: "customer_id"},
			"public.payments":  {Kind: topo.Keyed, Keyspace: users, Key: "customer_id"},
			"public.outbox":    {Kind: topo.Keyed, Keyspace: users, Key: "customer_id"},
			"public.events":    {Kind: topo.Home, Keyspace: catalog},
			"public.seats":     {Kind: topo.Home, Keyspace: catalog},
		},
		Routes: []*spec.Route{
			customerRoute("buy", true), customerRoute("orders", true), customerRoute("me", false), nearestRoute("profile"), strongRoute("address"), strongRoute("wishes"),
			{Name: "seats", Match: spec.Match{Path: "/seats"}, Upstream: "shop", Keyspace: catalog, WithoutKey: topo.HomeKeyless, FencedRetry: true},
			{Name: "events", Match: spec.Match{Path: "/events"}, Upstream: "shop", Keyspace: catalog, WithoutKey: topo.HomeKeyless},
			{Name: "page", Match: spec.Match{Path: "/"}, Upstream: "shop"},
		},
		Policies: policies(o),
	}
	for id, a := range at {
		s.Sites[id] = siteSpec(a)
	}
	for from := range at {
		for to := range at {
			if from == to || from == o.Witness {
				continue
			}
			r, err := g.reach(from, to, at[to])
			if err != nil {
				return nil, err
			}
			if r == nil {
				continue
			}
			if s.Sites[from].Reach == nil {
				s.Sites[from].Reach = map[topo.SiteID]*spec.Reach{}
			}
			s.Sites[from].Reach[to] = r
		}
	}
	return s, nil
}

// The fast profile: its lease holds 3 × (2 × election + 4 × RTT) for round trips of up to 35 ms.
var (
	fastLease = spec.LeasePolicy{Duration: leaseTime, W: checkToCommit}
	fastStore = spec.StorePolicy{Heartbeat: 40 * time.Millisecond, Election: 400 * time.Millisecond}
)

// policies switch the quiet time off and make the hourly bound wide, because a demonstration loses its sites more often
// than a year does.
func policies(o Options) spec.Policies {
	quiet := time.Duration(0)
	return spec.Policies{
		Lease:    o.Lease,
		Failover: spec.FailoverPolicy{Mode: spec.FailoverAutomatic, QuietTime: &quiet, PerHour: 20},
		Store:    o.Store,
	}
}

func customerRoute(name string, writes bool) *spec.Route {
	return &spec.Route{Name: name, Match: spec.Match{Path: "/" + name}, Upstream: "shop", Keyspace: users,
		Key: []topo.KeySource{{Header: "X-Customer"}, {Cookie: "customer"}}, WithoutKey: topo.RefuseKeyless, FencedRetry: writes}
}

// strongRoute is one of the registers and lists: a read sees the last write, also while the customer moves. Its answers carry
// a session, so that it knows what was written here.
func strongRoute(name string) *spec.Route {
	r := customerRoute(name, true)
	r.Match.Path, r.HoldReads, r.Session = "/me/"+name, true, topo.HeaderSessions
	return r
}

// nearestRoute is answered by the site that was asked, from its copy, but never behind what the session has written or seen.
func nearestRoute(name string) *spec.Route {
	r := customerRoute(name, false)
	r.Match.Path, r.Reads, r.Session = "/me/"+name, topo.NearestReads, topo.HeaderSessions
	return r
}

func siteSpec(a *addresses) *spec.Site {
	s := &spec.Site{
		Witness: a.witness(),
		Store:   &spec.StoreAddr{Client: a.storeClient, Peer: a.peerName, ListenPeer: a.storePeer},
	}
	if s.Witness {
		return s
	}
	s.Agent = &spec.AgentAddr{API: a.api, Link: a.link}
	s.Database = &spec.Database{DSNEnv: "ATOLL_DSN", AdminDSNEnv: "ATOLL_ADMIN_DSN"}
	s.Upstreams = map[string]*spec.Upstream{"shop": {URL: "http://" + a.app}}
	s.Gateways = map[string]*spec.Gateway{}
	for name, g := range a.gateways {
		s.Gateways[name] = &spec.Gateway{Listen: g.listen, Peer: g.peer, Admin: g.admin, Plaintext: a.namespace != ""}
	}
	return s
}

// writeSpec writes the file and reads it back as every process will.
func writeSpec(path string, s *spec.Spec) (*spec.Spec, error) {
	data, err := yaml.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("lab: %s: %w", path, err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	loaded, err := spec.Load(path)
	if err != nil {
		return nil, fmt.Errorf("lab: the spec that the lab wrote is refused: %w", err)
	}
	return loaded, nil
}
