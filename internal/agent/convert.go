package agent

import (
	"crypto/tls"
	"log/slog"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// This file turns the spec into what the parts want. The commands use it too.

// Deployment is what a site's database has to know of the spec.
func Deployment(s *spec.Spec, site topo.SiteID, agentRole string) postgres.Deployment {
	return postgres.Deployment{Deployment: s.Deployment, Site: site, AgentRole: agentRole,
		Keyspaces: s.KeyspaceTable(), Tables: Tables(s)}
}

// Tables lists the spec's tables in order of name.
func Tables(s *spec.Spec) []postgres.TableSpec {
	out := make([]postgres.TableSpec, 0, len(s.Tables))
	for _, name := range slices.Sorted(maps.Keys(s.Tables)) {
		t := s.Tables[name]
		schema, table, _ := strings.Cut(name, ".") // the spec was refused if there is no dot
		out = append(out, postgres.TableSpec{Schema: schema, Name: table, Kind: t.Kind, Keyspace: t.Keyspace, Key: t.Key,
			AppendOnly: t.AppendOnly, IdentityFull: t.Identity == "full"})
	}
	return out
}

// StoreConfig is how the processes of a site reach the store.
func StoreConfig(s *spec.Spec, site topo.SiteID, id *pki.Identity, log *slog.Logger) store.Config {
	conf := store.Config{Deployment: s.Deployment, Prefer: site, Logger: log, Peers: map[topo.SiteID]string{},
		TLS: func(member topo.SiteID) *tls.Config { return id.ClientTLS(member) }}
	for _, url := range s.Policies.Store.External {
		conf.Endpoints = append(conf.Endpoints, store.Endpoint{Addr: url})
	}
	if len(conf.Endpoints) > 0 {
		return conf
	}
	for _, member := range s.SiteIDs() {
		if addr := s.Sites[member].Store; addr != nil {
			conf.Peers[member] = addr.Peer
			conf.Endpoints = append(conf.Endpoints, store.Endpoint{Site: member, Addr: reached(reach(s, site, member).StoreClient, addr.Client)})
		}
	}
	return conf
}

// APIAddrs is where the processes of one site reach another's agents, or their own: one address, or two where the site
// has a standby agent.
func APIAddrs(s *spec.Spec, from, to topo.SiteID) []string {
	r := reach(s, from, to)
	return both(s.Sites[to], r.AgentAPI, r.StandbyAPI, func(a *spec.AgentAddr) string { return a.API })
}

// LinkAddrs is where one site's agent reaches another's agents for a link.
func LinkAddrs(s *spec.Spec, from, to topo.SiteID) []string {
	r := reach(s, from, to)
	return both(s.Sites[to], r.Link, r.StandbyLink, func(a *spec.AgentAddr) string { return a.Link })
}

func both(site *spec.Site, agent, standby string, of func(*spec.AgentAddr) string) []string {
	out := []string{reached(agent, of(site.Agent))}
	if site.Standby != nil {
		out = append(out, reached(standby, of(site.Standby)))
	}
	return out
}

func reach(s *spec.Spec, from, to topo.SiteID) spec.Reach {
	if r := s.Sites[from].Reach[to]; r != nil && from != to {
		return *r
	}
	return spec.Reach{}
}

func reached(override, advertised string) string {
	if override != "" {
		return override
	}
	return advertised
}

func bounds(s *spec.Spec) handover.Bounds {
	p := s.Policies.Switch
	return handover.Bounds{MaxLagMS: p.MaxLag.Milliseconds(), DrainMS: p.DrainBound.Milliseconds(), FenceMS: p.FenceBound.Milliseconds(),
		CatchMS: p.CatchBound.Milliseconds(), EndBlockers: p.EndBlockers}
}
