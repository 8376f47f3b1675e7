package agent

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// This file turns the spec into what the parts below want. The commands use it too.

// Tables lists the declared tables, in order of name.
func Tables(s *spec.Spec) []postgres.TableSpec {
	var out []postgres.TableSpec
	for _, name := range sortedKeys(s.Tables) {
		t := s.Tables[name]
		schema, table, _ := strings.Cut(name, ".")
		out = append(out, postgres.TableSpec{Schema: schema, Name: table, Kind: t.Kind, Keyspace: t.Keyspace, Key: t.Key,
			AppendOnly: t.AppendOnly, IdentityFull: t.Identity == "full"})
	}
	return out
}

// Deployment is what the spec says of one site's database. The agent's role is the user of its DSN.
func Deployment(s *spec.Spec, site topo.SiteID, agentDSN string) (postgres.Deployment, error) {
	conf, err := pgx.ParseConfig(agentDSN)
	if err != nil { // pgx leaves the password out of it
		return postgres.Deployment{}, fmt.Errorf("site %s: the agent's DSN cannot be read: %w", site, err)
	}
	return postgres.Deployment{Deployment: s.Deployment, Site: site, AgentRole: conf.User, Keyspaces: s.KeyspaceTable(), Tables: Tables(s)}, nil
}

// StoreConfig is how the processes of a site reach the store. id may be nil where all members are on loopback and
// speak without TLS.
func StoreConfig(s *spec.Spec, site topo.SiteID, id *pki.Identity, log *slog.Logger) store.Config {
	conf := store.Config{Deployment: s.Deployment, Prefer: site, Logger: log}
	if id != nil {
		conf.TLS = func(member topo.SiteID) *tls.Config { return id.ClientTLS(member) }
	}
	for _, url := range s.Policies.Store.External {
		conf.Endpoints = append(conf.Endpoints, store.Endpoint{Addr: url})
	}
	if len(conf.Endpoints) > 0 {
		return conf
	}
	for _, id := range s.SiteIDs() {
		if member := s.Sites[id].Store; member != nil {
			conf.Endpoints = append(conf.Endpoints, store.Endpoint{Site: id, Addr: reached(reach(s, site, id).StoreClient, member.Client)})
		}
	}
	return conf
}

// APIAddr is where the processes of one site reach another's agent.
func APIAddr(s *spec.Spec, from, to topo.SiteID) string {
	return reached(reach(s, from, to).AgentAPI, s.Sites[to].Agent.API)
}

// LinkAddr is where one site's agent reaches another's for a link.
func LinkAddr(s *spec.Spec, from, to topo.SiteID) string {
	return reached(reach(s, from, to).Link, s.Sites[to].Agent.Link)
}

func reach(s *spec.Spec, from, to topo.SiteID) spec.Reach {
	if site := s.Sites[from]; site != nil && site.Reach[to] != nil {
		return *site.Reach[to]
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
