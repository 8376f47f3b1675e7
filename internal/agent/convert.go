// Package agent assembles one site's agent from its parts: the fence and its keeper, replication to and from the
// other sites, the controller of handovers and the API. [Run] is the whole of it.
//
// It holds no rule of its own; each part keeps its guarantees without trusting this assembly. It never exits because
// its database or the store is away: the lease is then not renewed, and the fence closes by itself.
package agent

import (
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

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
