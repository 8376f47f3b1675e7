package spec

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

const maxWeight = 1_000_000

var (
	domainLabel = regexp.MustCompile(`^[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?$`)
	envName     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// dns checks the section dns; without one there is nothing to find the sites by.
func (c *checker) dns() {
	d := c.DNS
	if d == nil {
		return
	}
	c.dnsZones(d)
	if d.TTL != 0 && (d.TTL < time.Second || d.TTL > 24*time.Hour || d.TTL%time.Second != 0) {
		c.add(at("dns", "ttl"), "the default is 30s; below that resolvers do not care, above a minute users of a lost site wait", "ttl %v; want whole seconds up to 24h", d.TTL)
	}
	if d.Answers < 0 {
		c.add(at("dns", "answers"), "the default is 1", "answers is negative")
	}
	if user, host, ok := strings.Cut(d.Contact, "@"); d.Contact != "" && (!ok || user == "" || len(user) > 63 || strings.ContainsAny(user, " \\\"") || badDomain(host) != "") {
		c.add(at("dns", "contact"), "write for example hostmaster@shop.example", "contact %q is not a mail address", d.Contact)
	}
	addresses, servers := 0, 0
	for _, id := range d.SiteIDs() {
		s := d.Sites[id]
		c.dnsSite(id, s)
		if s != nil {
			addresses += len(s.Addresses) + len(s.Gateways)
			if s.Listen != "" {
				servers++
			}
		}
	}
	if addresses == 0 {
		c.add(at("dns"), "add sites: with addresses: under each", "no site has an address for users")
	}
	if servers == 0 && d.Publish == nil {
		c.add(at("dns"), "give sites a listen: for a server of their own, or add publish: where others run the zones", "nobody would answer with these addresses")
	}
	if d.Publish != nil {
		c.dnsPublish(d.Publish)
	}
}

func (c *checker) dnsZones(d *DNS) {
	if len(d.Zones) == 0 {
		c.add(at("dns"), "add for example zones: [live.shop.example]", "dns names no zone")
	}
	if len(d.Names) == 0 {
		c.add(at("dns"), "add names: under which users find the service, for example [live.shop.example]", "dns names no name")
	}
	for i, z := range d.Zones {
		if why := badDomain(z); why != "" {
			c.add(at("dns", "zones", i), "write for example live.shop.example", "zone %q %s", z, why)
		}
		if slices.Contains(d.Zones[:i], z) {
			c.add(at("dns", "zones", i), "", "zone %q stands there twice", z)
		}
	}
	for i, n := range d.Names {
		if why := badDomain(strings.TrimPrefix(n, "*.")); why != "" {
			c.add(at("dns", "names", i), "write the whole name, for example www.live.shop.example or *.live.shop.example", "name %q %s", n, why)
		} else if d.ZoneOf(n) == "" {
			c.add(at("dns", "names", i), "write the whole name, or add its zone under zones:", "name %q is in none of the zones", n)
		}
		if slices.Contains(d.Names[:i], n) {
			c.add(at("dns", "names", i), "", "name %q stands there twice", n)
		}
	}
}

// badDomain says what is wrong with a domain name; "" if nothing is.
func badDomain(name string) string {
	switch {
	case name == "":
		return "is empty"
	case strings.HasSuffix(name, "."):
		return "ends with a dot"
	case name != strings.ToLower(name):
		return "is not in lower case"
	case len(name) > 250:
		return "is too long"
	}
	for label := range strings.SplitSeq(name, ".") {
		if !domainLabel.MatchString(label) {
			return "is not a domain name"
		}
	}
	return ""
}

func (c *checker) dnsSite(id topo.SiteID, s *DNSSite) {
	here := func(keys ...any) []any { return append(at("dns", "sites", string(id)), keys...) }
	site := c.Sites[id]
	switch {
	case site == nil:
		c.add(here(), suggest(string(id), names(c.Sites)), "dns names %q, which is not a site", id)
		return
	case site.Witness:
		c.add(here(), "leave it out", "%s is a witness, it serves no users", id)
		return
	case s == nil:
		c.add(here(), "add addresses: of its gateways or of the load balancer before them", "dns says nothing of site %s", id)
		return
	}
	for i, a := range s.Addresses {
		c.public(a, here("addresses", i)...)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Gateways)) {
		if site.Gateways[name] == nil {
			c.add(here("gateways", name), suggest(name, names(site.Gateways)), "site %s has no gateway %q", id, name)
		}
		if len(s.Gateways[name]) == 0 {
			c.add(here("gateways", name), "write for example g1: [192.0.2.10]", "gateway %s has no address", name)
		}
		for i, a := range s.Gateways[name] {
			c.public(a, here("gateways", name, i)...)
		}
	}
	if s.Weight != nil && (*s.Weight < 0 || *s.Weight > maxWeight) {
		c.add(here("weight"), "the default is 100; 0: only while no site with a weight is well", "weight %d; want 0 to %d", *s.Weight, maxWeight)
	}
	c.dnsServer(id, s, here)
}

func (c *checker) public(addr string, where ...any) {
	ip, err := netip.ParseAddr(addr)
	if err != nil || ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" || ip.Is4In6() {
		c.add(where, "write for example 192.0.2.10 or 2001:db8::10", "%q is not the IP address of a host", addr)
	}
}

func (c *checker) dnsServer(id topo.SiteID, s *DNSSite, here func(...any) []any) {
	if s.Listen == "" {
		if s.Server != "" || len(s.ServerAddresses) > 0 {
			c.add(here(), "add listen:, or drop server: and server_addresses:", "dns names a server of site %s that listens nowhere", id)
		}
		return
	}
	c.optionalAddress(s.Listen, here("listen")...)
	host, _, _ := net.SplitHostPort(s.Listen)
	ip, err := netip.ParseAddr(host)
	if err != nil {
		c.add(here("listen"), "write IP:PORT, for example 0.0.0.0:53", "dns of site %s wants an IP address to listen on", id)
		return
	}
	for i, a := range s.ServerAddresses {
		c.public(a, here("server_addresses", i)...)
	}
	if len(c.DNS.Zones) == 0 {
		return
	}
	name := c.DNS.serverName(id, s)
	if why := badDomain(name); why != "" {
		c.add(here("server"), "write for example ns-a.live.shop.example", "server %q %s", name, why)
	}
	if slices.Contains(c.DNS.Names, name) {
		c.add(here("server"), "give the server a name of its own", "server %s is one of the names of the service", name)
	}
	for _, other := range c.DNS.SiteIDs() {
		if o := c.DNS.Sites[other]; other < id && o != nil && o.Listen != "" && c.DNS.serverName(other, o) == name {
			c.add(here("server"), "give each server a name of its own", "the servers of %s and %s have the same name %s", other, id, name)
		}
	}
	if c.DNS.ZoneOf(name) != "" && len(s.ServerAddresses) == 0 && ip.IsUnspecified() {
		c.add(here(), "add server_addresses: with its public addresses", "nobody finds %s: it is in one of the zones and has no address", name)
	}
}

func (c *checker) dnsPublish(p *DNSPublish) {
	here := func(keys ...any) []any { return append(at("dns", "publish"), keys...) }
	n := 0
	for _, set := range []bool{p.RFC2136 != nil, p.Hook != nil, p.Provider != nil} {
		if set {
			n++
		}
	}
	if n != 1 {
		c.add(here(), "want exactly one of rfc2136, hook and provider", "publish says %d ways", n)
	}
	if u := p.RFC2136; u != nil {
		c.address(u.Server, here("rfc2136", "server")...)
		if why := badDomain(strings.TrimSuffix(u.Key, ".")); why != "" {
			c.add(here("rfc2136", "key"), "write the name of the TSIG key as the server has it", "key %q %s", u.Key, why)
		}
		if u.Algorithm != "" && !slices.Contains(DNSAlgorithms, u.Algorithm) {
			c.add(here("rfc2136", "algorithm"), "want "+strings.Join(DNSAlgorithms, ", "), "unknown algorithm %q", u.Algorithm)
		}
		c.envVariable(u.SecretEnv, here("rfc2136", "secret_env")...)
	}
	if h := p.Hook; h != nil {
		if len(h.Command) == 0 || !filepath.IsAbs(h.Command[0]) {
			c.add(here("hook", "command"), "write for example [/usr/local/bin/publish-dns]", "the hook's command is not the full path of a program")
		}
		if h.Timeout != 0 && (h.Timeout < time.Second || h.Timeout > 10*time.Minute) {
			c.add(here("hook", "timeout"), "the default is 30s", "timeout %v; want 1s to 10m", h.Timeout)
		}
	}
	if r := p.Provider; r != nil {
		c.dnsProvider(r, here)
	}
}

func (c *checker) dnsProvider(r *DNSProvider, here func(...any) []any) {
	wants, known := DNSCredentials[r.Name]
	if !known {
		c.add(here("provider", "name"), fmt.Sprintf("want one of %v; hook: reaches any other", slices.Sorted(maps.Keys(DNSCredentials))), "unknown provider %q", r.Name)
		return
	}
	for i, name := range c.DNS.Names {
		if r.Name == "tencentcloud" && slices.Contains(c.DNS.Zones, name) {
			c.add(at("dns", "names", i), "name the service www."+name+", for example, or publish by a hook", "%s's module cannot take records of the zone %s itself away", r.Name, name)
		}
	}
	var all []string
	for _, w := range wants {
		all = append(all, w.Name)
		if !w.Optional && r.Env[w.Name] == "" {
			c.add(here("provider"), "add it under env: with the name of the environment variable that holds it", "%s wants %s", r.Name, w.Name)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(r.Env)) {
		if !slices.Contains(all, key) {
			c.add(here("provider", "env", key), fmt.Sprintf("it wants %v", all), "%s knows no credential %q", r.Name, key)
		}
		c.envVariable(r.Env[key], here("provider", "env", key)...)
	}
}

func (c *checker) envVariable(name string, where ...any) {
	if !envName.MatchString(name) { // what stands there may be the secret: it is not repeated
		c.add(where, "put the secret into an environment variable and name that here", "%v is not the name of an environment variable", where[len(where)-1])
	}
}
