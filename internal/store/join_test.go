package store

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/atollhq/atoll/topo"
)

func TestDecideHowToBegin(t *testing.T) {
	t.Parallel()
	const born = "abc"
	waiting, silent := sighting{waiting: true}, sighting{err: errors.New("connection refused")}
	entry := func(name, peer string, started bool) listed {
		m := listed{ID: 7, Name: name, PeerURLs: []string{"https://" + peer}}
		if started {
			m.ClientURLs = []string{"https://" + name + ":1"}
		}
		return m
	}
	of := func(cluster string, members ...listed) sighting { return sighting{cluster: cluster, members: members} }
	others := []listed{entry("b", "b:2", true), entry("w", "w:2", true)}
	with := func(m listed) []listed { return append([]listed{m}, others...) }
	cases := []struct {
		name string
		seen map[topo.SiteID]sighting
		want string // "bootstrap", "join", or what it waits for, or the refusal
	}{
		{"the only member", nil, "bootstrap"},
		{"all are there and empty", map[topo.SiteID]sighting{"b": waiting, "w": waiting}, "bootstrap"},
		{"one is silent", map[topo.SiteID]sighting{"b": waiting, "w": silent}, "do not answer: w"},
		{"all are silent", map[topo.SiteID]sighting{"b": silent, "w": silent}, "do not answer: b (connection refused), w"},
		{"begun by the others just now", map[topo.SiteID]sighting{"b": of(born, with(entry("a", "a:2", false))...), "w": waiting}, "bootstrap"},
		{"begun long ago with this one, and changed since", map[topo.SiteID]sighting{"b": of("fff", with(entry("a", "a:2", false))...), "w": silent}, "atoll store remove a"},
		{"not added yet", map[topo.SiteID]sighting{"b": of("fff", others...), "w": silent}, "atoll store add a"},
		{"added", map[topo.SiteID]sighting{"b": of("fff", with(entry("", "a:2", false))...), "w": silent}, "join"},
		{"added, with another one that has not started", map[topo.SiteID]sighting{"b": of("fff", entry("", "a:2", false), entry("", "d:2", false), others[0])}, "join"},
		{"its disk is lost", map[topo.SiteID]sighting{"b": of(born, with(entry("a", "a:2", true))...), "w": of(born, with(entry("a", "a:2", true))...)}, "forget what it voted for"},
		{"its disk is lost, and it moved", map[topo.SiteID]sighting{"b": of(born, with(entry("a", "x:2", true))...)}, "forget what it voted for"},
		{"members of two stores", map[topo.SiteID]sighting{"b": of("aaa", others...), "w": of("bbb", others...)}, "different stores"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b, err := newcomer{"a", "a:2", born}.decide(tc.seen)
			got := b.wait
			switch {
			case err != nil:
				got = err.Error()
			case b.bootstrap:
				got = "bootstrap"
			case b.join != nil:
				got = "join"
				if b.join["a"] != "a:2" || len(b.join) != len(tc.seen["b"].members) {
					t.Errorf("joins with %v", b.join)
				}
			}
			if !strings.Contains(got, tc.want) || got == "" {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
}

func FuzzSighting(f *testing.F) {
	f.Add(503, "b", "", []byte(nil))
	f.Add(200, "", "abc", []byte(`[{"id":1,"peerURLs":["https://a:2"],"name":"a","clientURLs":["https://a:1"]}]`))
	f.Add(200, "", "abc", []byte(`[{"id":-1}]`))
	f.Add(200, "", "abc", []byte(`[]`))
	f.Fuzz(func(t *testing.T, status int, waiting, cluster string, body []byte) {
		s := parseSighting(status, waiting, cluster, body)
		if s.err == nil && !s.waiting && (s.cluster == "" || len(s.members) == 0) {
			t.Fatalf("a store without an id or members: %+v", s)
		}
		b, err := newcomer{"a", "a:2", "abc"}.decide(map[topo.SiteID]sighting{"b": s})
		if err == nil && !b.bootstrap && b.join == nil && b.wait == "" {
			t.Fatalf("nothing is decided, and nothing is waited for: %+v", s)
		}
		if b.bootstrap && !s.waiting {
			var members []listed
			if json.Unmarshal(body, &members) != nil || cluster != "abc" {
				t.Fatalf("begins a store beside one: %+v", s)
			}
		}
	})
}
