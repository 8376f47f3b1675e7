// Package dns tells users where the sites are. It decides which addresses they get ([Decide], pure), answers for the
// zones of the service ([Server]), follows what the site's agent knows ([Follow]) and says what is to be published where
// others run the zones ([Publisher], [Document]).
//
// It guarantees that an answer is never empty while the spec has an address: with nothing known to be well the last good
// answer stands, kept on disk too, else every site. It never publishes an empty set, and nothing that it only guesses.
//
// It refuses other zones, recursion, zone transfers and updates, and answers ANY with one small record (RFC 8482).
//
// What it says is advice: caches keep it for longer than they should, and gateways forward what comes to them.
package dns

import (
	"net/netip"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// SitesOf lists the sites of a spec that have public addresses, in order of name. The spec was checked.
func SitesOf(s *spec.Spec) []Site {
	var out []Site
	for _, id := range s.DNS.SiteIDs() {
		d := s.DNS.Sites[id]
		site := Site{ID: id, Weight: *d.Weight, Addresses: addrs(d.Addresses), Gateways: map[string][]netip.Addr{}, Count: len(s.Sites[id].Gateways)}
		for name, list := range d.Gateways {
			site.Gateways[name] = addrs(list)
		}
		if len(site.Addresses)+len(site.Gateways) > 0 {
			out = append(out, site)
		}
	}
	return out
}

// ZonesOf is what a server of the spec answers for.
func ZonesOf(s *spec.Spec) Config {
	d := s.DNS
	conf := Config{Zones: d.Zones, Names: d.Names, TTL: d.TTL, Answers: d.Answers, Contact: d.Contact}
	for _, id := range d.SiteIDs() {
		if site := d.Sites[id]; site.Listen != "" {
			conf.Servers = append(conf.Servers, NameServer{Name: site.Server, Addresses: addrs(site.ServerAddresses)})
		}
	}
	return conf
}

// addrs parses what the spec has checked.
func addrs(list []string) []netip.Addr {
	out := make([]netip.Addr, len(list))
	for i, text := range list {
		out[i] = netip.MustParseAddr(text)
	}
	return out
}

// siteByID finds a site in a list.
func siteByID(sites []Site, id topo.SiteID) (Site, bool) {
	for _, s := range sites {
		if s.ID == id {
			return s, true
		}
	}
	return Site{}, false
}
