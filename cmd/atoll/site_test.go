package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

func TestListSites(t *testing.T) {
	t.Parallel()
	st := api.Status{
		Ownership: &api.OwnershipStatus{
			Members: []topo.Member{{Site: "a"}, {Site: "b"}, {Site: "d", Joining: true}, {Site: "x"}},
			Keyspaces: []api.KeyspaceStatus{{Keyspace: "users", Owners: []api.OwnerStatus{{Site: "a", Count: 200}, {Site: "b", Count: 56}}},
				{Keyspace: "catalog", Owners: []api.OwnerStatus{{Site: "b", Count: 1}}}},
		},
		Sites: []api.SiteStatus{
			{Site: "a", Lease: api.LeaseStatus{Live: true, RemainingMS: 2400}, Links: []api.LinkStatus{{Origin: "b", Target: "a", LagMS: 40}, {Origin: "a", Target: "b", LagMS: 9000}}},
			{Site: "b", Error: "it does not answer"},
			{Site: "c", Links: []api.LinkStatus{{Origin: "a", Target: "c", LagMS: -1}, {Origin: "b", Target: "c", LagMS: 3}}},
		},
	}
	var out bytes.Buffer
	if err := printSites(&out, listSites([]topo.SiteID{"a", "b", "c", "d"}, st)); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"SITE MEMBER BUCKETS LEASE LAG",
		"a yes 200 2.4 s 40 ms",
		"b yes 57 none unknown it does not answer",
		"c no 0 none unknown",
		"d joining 0 none unknown its agent was not asked",
		"x yes 0 none unknown its agent was not asked; not in this spec",
	}
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	for i, line := range got {
		if line = strings.Join(strings.Fields(line), " "); i >= len(want) || line != want[i] {
			t.Errorf("line %d: %q", i, line)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d lines, want %d", len(got), len(want))
	}

	// A document of an earlier build has no list: every site takes part.
	st.Ownership.Members = nil
	for _, s := range listSites([]topo.SiteID{"a", "b"}, st) {
		if s.Member != "yes" {
			t.Errorf("%+v", s)
		}
	}
}
