package dns

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

// three sites: a with a balancer, b with two gateways, c that stands by.
func three() []Site {
	return []Site{
		{ID: "a", Weight: 100, Addresses: []netip.Addr{ip("192.0.2.1"), ip("2001:db8::1")}, Count: 2},
		{ID: "b", Weight: 50, Gateways: map[string][]netip.Addr{"g1": {ip("198.51.100.1")}, "g2": {ip("198.51.100.2")}}, Count: 2},
		{ID: "c", Weight: 0, Addresses: []netip.Addr{ip("203.0.113.1")}, Count: 1},
	}
}

// told reads "a:live:g1,g2 b:unknown:? c:lapsed:-": site, lease, connected gateways (? not known, - none); a leading ! is
// no member.
func told(text string) api.Health {
	var h api.Health
	for part := range strings.FieldsSeq(text) {
		f := strings.Split(part, ":")
		s := api.SiteHealth{Site: topo.SiteID(strings.TrimPrefix(f[0], "!")), Member: !strings.HasPrefix(f[0], "!"), Lease: f[1], GatewaysKnown: f[2] != "?"}
		if f[2] != "?" && f[2] != "-" {
			s.Gateways = strings.Split(f[2], ",")
		}
		h.Sites = append(h.Sites, s)
	}
	return h
}

func (c Choice) String() string {
	out := string(c.Basis) + ":"
	for _, s := range c.Shares {
		out += fmt.Sprintf(" %s×%d%v", s.Site, s.Weight, s.Addresses)
	}
	return out
}

func TestDecide(t *testing.T) {
	t.Parallel()
	const (
		allA = "[192.0.2.1 2001:db8::1]"
		allB = "[198.51.100.1 198.51.100.2]"
		allC = "[203.0.113.1]"
		well = "a:live:g1,g2 b:live:g1,g2 c:live:g1"
	)
	for name, c := range map[string]struct{ last, now, want string }{
		"all are well":                           {"", well, "healthy: a×100" + allA + " b×50" + allB},
		"a gateway is gone":                      {"", "a:live:g1 b:live:g2 c:live:g1", "healthy: a×50" + allA + " b×25[198.51.100.2]"},
		"a site has lost its lease":              {well, "a:lapsed:g1,g2 b:live:g1,g2 c:live:g1", "healthy: b×50" + allB},
		"a site has no gateway":                  {well, "a:live:- b:live:g1,g2 c:live:g1", "healthy: b×50" + allB},
		"its gateways are not known":             {"", "a:live:? b:live:? c:live:?", "healthy: a×100" + allA + " b×50" + allB},
		"only who stands by is well":             {well, "a:lapsed:- b:lapsed:? c:live:g1", "healthy: c×1" + allC},
		"nobody is well":                         {well, "a:lapsed:- b:lapsed:- c:lapsed:-", "last good: a×100" + allA + " b×50" + allB},
		"nobody is well, and half was before":    {"a:lapsed:- b:live:g2 c:live:g1", "a:lapsed:- b:lapsed:- c:lapsed:-", "last good: b×25[198.51.100.2]"},
		"nobody ever was":                        {"", "a:lapsed:- b:lapsed:- c:lapsed:-", "everyone: a×100" + allA + " b×50" + allB + " c×1" + allC},
		"nothing is known":                       {"", "", "everyone: a×100" + allA + " b×50" + allB + " c×1" + allC},
		"nothing is known any more":              {well, "", "healthy: a×100" + allA + " b×50" + allB},
		"what is not known stays as it was":      {"a:lapsed:g1 b:live:g1 c:live:g1", "a:unknown:? b:unknown:? c:live:g1", "healthy: b×50[198.51.100.1]"},
		"a word that a newer agent has":          {well, "a:resting:g1 b:live:g1,g2 c:live:g1", "healthy: a×100" + allA + " b×50" + allB},
		"a site that joins":                      {"", "a:live:g1,g2 !b:live:g1,g2 c:live:g1", "healthy: a×100" + allA},
		"a site that left, and nobody else":      {well, "a:lapsed:- !b:live:g1,g2 c:lapsed:-", "last good: a×100" + allA},
		"no member has an address":               {"", "!a:live:g1 !b:live:g1 !c:live:g1", "everyone: a×100" + allA + " b×50" + allB + " c×1" + allC},
		"gateways that the spec does not name":   {"", "a:lapsed:- b:live:g9 c:live:g1", "healthy: c×1" + allC},
		"more gateways than the spec names":      {"", "a:live:g1,g2,g3 b:lapsed:- c:lapsed:-", "healthy: a×100" + allA},
		"a site that the spec does not speak of": {"", "d:live:g1 a:live:g1,g2 b:lapsed:- c:lapsed:-", "healthy: a×100" + allA},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var last Choice
			if c.last != "" {
				last = Decide(three(), told(c.last), Choice{})
			}
			if got := Decide(three(), told(c.now), last); got.String() != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestDecide_AnotherSpec: what the last choice had and the spec has not is left out of answers.
func TestDecide_AnotherSpec(t *testing.T) {
	t.Parallel()
	last := Choice{Healthy, []Share{{"a", 100, []netip.Addr{ip("192.0.2.1"), ip("192.0.2.99")}}, {"b", 7, []netip.Addr{ip("198.51.100.99")}}, {"z", 1, []netip.Addr{ip("203.0.113.99")}}}}
	got := Decide(three(), told("a:lapsed:- b:lapsed:- c:lapsed:-"), last)
	if want := "last good: a×100[192.0.2.1]"; got.String() != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := Decide(nil, told("a:live:g1"), last); len(got.Shares) != 0 {
		t.Errorf("without any site: %s", got)
	}
}

// TestDecide_NeverEmpty: whatever is known, users are sent somewhere, with addresses that the spec has and weights that
// can be rolled.
func TestDecide_NeverEmpty(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		health := func(label string) api.Health {
			var h api.Health
			for _, id := range []topo.SiteID{"a", "b", "c", "d"} {
				if rapid.Bool().Draw(t, label+" speaks of "+string(id)) {
					h.Sites = append(h.Sites, api.SiteHealth{Site: id, Member: rapid.Bool().Draw(t, "member"), Lease: rapid.SampledFrom([]string{api.LeaseLive, api.LeaseLapsed, api.LeaseUnknown, ""}).Draw(t, "lease"),
						GatewaysKnown: rapid.Bool().Draw(t, "known"), Gateways: rapid.SliceOfN(rapid.SampledFrom([]string{"g1", "g2", "g3"}), 0, 3).Draw(t, "gateways")})
				}
			}
			return h
		}
		sites := three()
		for i := range sites {
			sites[i].Weight = rapid.SampledFrom([]int{0, 1, 100, 1_000_000}).Draw(t, "weight")
		}
		last := Choice{}
		for range 3 {
			c := Decide(sites, health("health"), last)
			if len(c.Shares) == 0 {
				t.Fatal("nobody is sent anywhere")
			}
			for _, s := range c.Shares {
				site, ok := siteByID(sites, s.Site)
				if !ok || s.Weight < 1 || len(s.Addresses) == 0 || slices.ContainsFunc(s.Addresses, func(a netip.Addr) bool { return !slices.Contains(site.all(), a) }) {
					t.Fatalf("share %+v", s)
				}
			}
			if c.Basis == Healthy {
				last = c
			}
		}
	})
}

func TestSitesOf(t *testing.T) {
	t.Parallel()
	text := strings.Replace(string(spec.Sample()), "\npolicies:\n", `
dns:
  zones: [live.shop.example]
  names: [live.shop.example]
  sites:
    a: {addresses: [192.0.2.1, "2001:db8::1"], gateways: {g1: [192.0.2.2]}, weight: 7, listen: 192.0.2.53:53}
    b: {listen: 0.0.0.0:53, server_addresses: [198.51.100.53]}
policies:
`, 1)
	path := filepath.Join(t.TempDir(), "atoll.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := spec.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	got := SitesOf(s)
	if len(got) != 1 || got[0].ID != "a" || got[0].Weight != 7 || got[0].Count != 1 || !slices.Equal(got[0].all(), []netip.Addr{ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")}) {
		t.Errorf("%+v", got)
	}
	conf := ZonesOf(s)
	if len(conf.Servers) != 2 || conf.Servers[1].Name != "ns-b.live.shop.example" || conf.Servers[1].Addresses[0] != ip("198.51.100.53") {
		t.Errorf("%+v", conf.Servers)
	}
}
