package spec

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// checker collects what is wrong with a decoded spec.
type checker struct {
	*Spec
	pos      positions
	problems Problems
}

func check(s *Spec, pos positions) Problems {
	c := &checker{Spec: s, pos: pos}
	c.top()
	for _, name := range slices.Sorted(maps.Keys(s.Sites)) {
		c.site(name, s.Sites[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.Keyspaces)) {
		c.keyspace(name, s.Keyspaces[name])
	}
	for _, name := range slices.Sorted(maps.Keys(s.Tables)) {
		c.table(name, s.Tables[name])
	}
	for i, r := range s.Routes {
		c.route(i, r)
	}
	c.dns()
	c.policies()
	c.telemetry()
	return c.problems
}

// add notes a problem at the given place; hint may be empty.
func (c *checker) add(at []any, hint, format string, args ...any) {
	line, column := c.pos.at(at...)
	c.problems = append(c.problems, Problem{File: c.pos.file, Line: line, Column: column,
		Message: fmt.Sprintf(format, args...), Hint: hint})
}

func at(keys ...any) []any { return keys }

func (c *checker) name(s string, where ...any) {
	if err := topo.CheckName(s); err != nil {
		c.add(where, "", "%v", err)
	}
}

func (c *checker) top() {
	switch {
	case c.Version == 0:
		c.add(at("version"), "write version: 1", "version is missing")
	case c.Version > Version:
		c.add(at("version"), "upgrade atoll", "version %d is newer than this atoll reads (%d)", c.Version, Version)
	case c.Version < 0:
		c.add(at("version"), "write version: 1", "version %d does not exist", c.Version)
	}
	if c.Deployment == "" {
		c.add(at("deployment"), "name the deployment; it becomes part of certificates and slot names", "deployment is missing")
	} else {
		c.name(c.Deployment, "deployment")
	}
	full, voters := 0, 0
	for _, s := range c.Sites {
		if s == nil {
			continue
		}
		if !s.Witness {
			full++
		}
		if s.Store != nil {
			voters++
		}
	}
	if full == 0 {
		c.add(at("sites"), "add a site that is not a witness", "no site serves users")
	}
	if len(c.Policies.Store.External) == 0 {
		switch {
		case voters == 0:
			c.add(at("sites"), "give each site a store:, or name an external etcd under policies.store.external", "no site has a store")
		case voters == 2:
			c.add(at("sites"), "add a witness in a third failure domain: two members lose quorum with either one",
				"two store members tolerate no loss")
		}
	}
	seed := c.Sites[c.Seed]
	switch {
	case c.Seed == "":
		c.add(at("seed"), "name the site whose database has the data now", "seed is missing")
	case seed == nil:
		c.add(at("seed"), suggest(string(c.Seed), names(c.Sites)), "seed %q is not a site", c.Seed)
	case seed.Witness:
		c.add(at("seed"), "a witness has no database", "seed %q is a witness", c.Seed)
	}
}

func names[K ~string, V any](m map[K]V) []string {
	var out []string
	for k := range m {
		out = append(out, string(k))
	}
	return out
}

func (c *checker) site(id topo.SiteID, s *Site) {
	here := func(keys ...any) []any { return append(at("sites", string(id)), keys...) }
	c.name(string(id), here()...)
	if s == nil {
		c.add(here(), "give it at least a store:", "site %s is empty", id)
		return
	}
	if s.Store != nil {
		c.address(s.Store.Client, here("store", "client")...)
		c.address(s.Store.Peer, here("store", "peer")...)
		c.optionalAddress(s.Store.ListenClient, here("store", "listen_client")...)
		c.optionalAddress(s.Store.ListenPeer, here("store", "listen_peer")...)
	}
	if s.Witness {
		for key, set := range map[string]bool{"agent": s.Agent != nil, "standby_agent": s.Standby != nil, "gateways": len(s.Gateways) > 0,
			"database": s.Database != nil, "upstreams": len(s.Upstreams) > 0} {
			if set {
				c.add(here(key), "a witness only votes: leave store: alone, or drop witness: true", "witness %s has %s", id, key)
			}
		}
		if s.Store == nil {
			c.add(here(), "give it a store:", "witness %s has no store to vote with", id)
		}
		return
	}
	if s.Agent == nil {
		c.add(here(), "add agent: with api: and link: addresses", "site %s has no agent", id)
	} else {
		c.agent(s.Agent, here("agent"))
	}
	if s.Standby != nil {
		c.agent(s.Standby, here("standby_agent"))
		c.twoAgents(s, here)
	}
	c.database(id, s.Database, here)
	if len(s.Gateways) == 0 {
		c.add(here(), "add gateways: with at least one", "site %s has no gateway", id)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Gateways)) {
		c.gateway(name, s.Gateways[name], func(keys ...any) []any { return here(append(at("gateways", name), keys...)...) })
	}
	c.upstreams(s, here)
	for _, other := range slices.Sorted(maps.Keys(s.Reach)) {
		if c.Sites[other] == nil {
			c.add(here("reach", string(other)), suggest(string(other), names(c.Sites)), "reach names %q, which is not a site", other)
		} else if r := s.Reach[other]; r != nil && (r.StandbyAPI != "" || r.StandbyLink != "") && c.Sites[other].Standby == nil {
			c.add(here("reach", string(other)), "drop standby_api and standby_link, or give that site a standby_agent", "site %s has no standby agent to reach", other)
		}
	}
}

func (c *checker) agent(a *AgentAddr, at []any) {
	under := func(key string) []any { return append(slices.Clone(at), key) }
	c.address(a.API, under("api")...)
	c.address(a.Link, under("link")...)
	c.optionalAddress(a.Admin, under("admin")...)
	if a.Admin != "" && !loopback(a.Admin) {
		c.add(under("admin"), "use 127.0.0.1:PORT", "admin %q is not a loopback address; it has no authentication", a.Admin)
	}
}

// twoAgents refuses addresses that both of a site's agents would want.
func (c *checker) twoAgents(s *Site, here func(...any) []any) {
	if s.Agent == nil {
		return
	}
	taken := map[string]string{s.Agent.API: "agent.api", s.Agent.Link: "agent.link", s.Agent.Admin: "agent.admin"}
	for _, a := range []struct{ key, addr string }{{"api", s.Standby.API}, {"link", s.Standby.Link}, {"admin", s.Standby.Admin}} {
		if other := taken[a.addr]; a.addr != "" && other != "" {
			c.add(here("standby_agent", a.key), "give the standby agent a port of its own: both run at the same time", "standby_agent.%s is %s, which %s has already", a.key, a.addr, other)
		}
		taken[a.addr] = "standby_agent." + a.key
	}
}

func (c *checker) database(id topo.SiteID, d *Database, here func(...any) []any) {
	if d == nil {
		c.add(here(), "add database: with dsn_env: or dsn_file:", "site %s has no database", id)
		return
	}
	if (d.DSNEnv == "") == (d.DSNFile == "") {
		c.add(here("database"), "the DSN itself never stands in this file", "want exactly one of dsn_env and dsn_file")
	}
	if d.AdminDSNEnv != "" && d.AdminDSNFile != "" {
		c.add(here("database"), "", "want at most one of admin_dsn_env and admin_dsn_file")
	}
	for key, v := range map[string]string{"dsn_env": d.DSNEnv, "admin_dsn_env": d.AdminDSNEnv} {
		if strings.Contains(v, "://") || strings.Contains(v, "=") {
			c.add(here("database", key), "put the DSN into an environment variable and name that here", "%s holds a DSN, not the name of a variable", key)
		}
	}
}

func (c *checker) gateway(name string, g *Gateway, here func(...any) []any) {
	c.name(name, here()...)
	if g == nil {
		c.add(here(), "add listen: and peer:", "gateway %s is empty", name)
		return
	}
	c.address(g.Listen, here("listen")...)
	c.address(g.Peer, here("peer")...)
	c.optionalAddress(g.Admin, here("admin")...)
	if g.Admin != "" && !loopback(g.Admin) {
		c.add(here("admin"), "use 127.0.0.1:PORT", "admin %q is not a loopback address; it has no authentication", g.Admin)
	}
	if g.TLS == nil && !g.Plaintext && g.Listen != "" && !loopback(g.Listen) {
		c.add(here("listen"), "add tls: with cert: and key:, or plaintext: true if something in front ends TLS",
			"%q would take plain HTTP beyond loopback", g.Listen)
	}
	if g.Zone != "" {
		c.name(g.Zone, here("zone")...)
	}
	if g.TLS != nil {
		c.tls(g.TLS, here)
	}
	c.networks(g.ProxyProtocol, "whoever connects could name any client", here("proxy_protocol"))
	c.networks(g.TrustedProxies, "whoever connects could name any client", here("trusted_proxies"))
	if g.MaxConnections < 0 || g.MaxPerClient < 0 {
		c.add(here(), "leave them out for no bound of one client, and 20000 in all", "a negative number of connections")
	}
}

func (c *checker) tls(t *TLSFiles, here func(...any) []any) {
	switch {
	case t.ACME == nil && (t.Cert == "" || t.Key == ""):
		c.add(here("tls"), "or acme: with domains:", "tls wants both cert and key")
	case t.ACME != nil && (t.Cert != "" || t.Key != ""):
		c.add(here("tls"), "leave one of the two out", "tls has a certificate and says how to obtain one")
	}
	if t.ACME == nil {
		return
	}
	if len(t.ACME.Domains) == 0 {
		c.add(here("tls", "acme"), "add domains: with the names that users ask for", "acme has no domains")
	}
	for i, d := range t.ACME.Domains {
		if strings.ContainsAny(d, "*: /") || !strings.Contains(d, ".") {
			c.add(here("tls", "acme", "domains", i), "list each name; a wildcard wants a change in DNS, which atoll does not make for this", "%q is not a name that a certificate can be obtained for", d)
		}
	}
	if t.ACME.CA != "" && !strings.HasPrefix(t.ACME.CA, "https://") {
		c.add(here("tls", "acme", "ca"), "write the URL of its directory", "%q is not an https URL", t.ACME.CA)
	}
}

// networks checks a list of addresses and networks.
func (c *checker) networks(list []string, all string, where []any) {
	for i, text := range list {
		if p, err := network(text); err != nil {
			c.add(append(slices.Clone(where), i), "write for example 10.0.0.0/8 or 10.0.0.5", "%q is neither an address nor a network", text)
		} else if p.Bits() == 0 {
			c.add(append(slices.Clone(where), i), "name the networks", "%q is everybody: %s", text, all)
		}
	}
}

func network(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(text)
	return p.Masked(), err
}

// Networks reads a checked list of addresses and networks.
func Networks(list []string) []netip.Prefix {
	var out []netip.Prefix
	for _, text := range list {
		if p, err := network(text); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func loopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func (c *checker) address(addr string, where ...any) {
	if addr == "" {
		c.add(where, "write HOST:PORT", "%v is missing", where[len(where)-1])
		return
	}
	c.optionalAddress(addr, where...)
}

func (c *checker) optionalAddress(addr string, where ...any) {
	if addr == "" {
		return
	}
	host, port, err := net.SplitHostPort(addr)
	if n, e := strconv.Atoi(port); err != nil || host == "" || e != nil || n < 1 || n > 65535 {
		c.add(where, "write HOST:PORT, for example 10.0.0.5:7400", "address %q is not HOST:PORT", addr)
	}
}

func (c *checker) keyspace(id topo.KeyspaceID, k *Keyspace) {
	where := at("keyspaces", string(id))
	c.name(string(id), where...)
	if k == nil {
		c.add(where, "write for example buckets: 1024", "keyspace %s is empty", id)
		return
	}
	if n := k.Buckets; n < 0 || n > topo.MaxBuckets || n&(n-1) != 0 {
		c.add(append(where, "buckets"), fmt.Sprintf("the default is %d", defaultBuckets), "%d buckets; want a power of two up to %d", n, topo.MaxBuckets)
	}
	if k.Hash != "" && k.Hash != topo.HashMD5 {
		c.add(append(where, "hash"), "leave it out for "+topo.HashMD5, "unknown hash %q", k.Hash)
	}
	switch k.Key {
	case "", topo.TextKey, topo.IntegerKey, topo.UUIDKey:
	default:
		c.add(append(where, "key"), "want text, integer or uuid", "unknown key form %q", k.Key)
	}
}

func (c *checker) knownKeyspace(id topo.KeyspaceID, where ...any) *Keyspace {
	k := c.Keyspaces[id]
	if k == nil {
		c.add(where, suggest(string(id), names(c.Keyspaces)), "keyspace %q is not declared", id)
	}
	return k
}

func (c *checker) table(name string, t *Table) {
	here := func(keys ...any) []any { return append(at("tables", name), keys...) }
	if schema, table, ok := strings.Cut(name, "."); !ok || schema == "" || table == "" {
		c.add(here(), "write for example public.orders", "table %q has no schema", name)
	} else if schema == "atoll" {
		c.add(here(), "", "schema atoll is atoll's own")
	}
	if t == nil {
		c.add(here(), "write for example kind: local", "table %s is empty", name)
		return
	}
	if t.Identity != "" && t.Identity != "full" {
		c.add(here("identity"), "leave it out, or write full", "unknown identity %q", t.Identity)
	}
	if t.AppendOnly && t.Identity == "full" {
		c.add(here("append_only"), "", "append_only and identity: full contradict each other")
	}
	switch t.Kind {
	case topo.Keyed:
		if k := c.knownKeyspace(t.Keyspace, here("keyspace")...); k != nil && k.Buckets == 1 {
			c.add(here("kind"), "use kind: home for a keyspace of one bucket", "table %s is keyed in a keyspace of one bucket", name)
		}
		if t.Key == "" {
			c.add(here(), "add key: with the column that holds the key", "keyed table %s names no key", name)
		}
	case topo.Home:
		if k := c.knownKeyspace(t.Keyspace, here("keyspace")...); k != nil && k.Buckets != 1 {
			c.add(here("keyspace"), "a home table needs a keyspace with buckets: 1", "table %s has its home in keyspace %s, which has many buckets", name, t.Keyspace)
		}
		if t.Key != "" {
			c.add(here("key"), "drop it, or use kind: keyed", "home table %s has a key", name)
		}
	case topo.Shared, topo.Local:
		if t.Keyspace != "" || t.Key != "" {
			c.add(here(), "drop keyspace and key, or use kind: keyed", "%s table %s belongs to no keyspace", t.Kind, name)
		}
	default:
		c.add(here("kind"), "want keyed, home, shared or local", "unknown kind %q", t.Kind)
	}
}

func (c *checker) route(i int, r *Route) {
	here := func(keys ...any) []any { return append(at("routes", i), keys...) }
	if r == nil {
		c.add(here(), "", "route %d is empty", i+1)
		return
	}
	c.name(r.Name, here("name")...)
	for j, other := range c.Routes[:i] {
		if other != nil && other.Name == r.Name {
			c.add(here("name"), fmt.Sprintf("route %d has it already", j+1), "two routes are named %q", r.Name)
		}
	}
	if !strings.HasPrefix(r.Match.Path, "/") {
		c.add(here("match"), "write for example path: /orders", "match path %q does not begin with /", r.Match.Path)
	}
	for _, m := range r.Match.Methods {
		if m == "" || m != strings.ToUpper(m) {
			c.add(here("match", "methods"), "write it in capitals", "method %q", m)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(c.Sites)) {
		s := c.Sites[id]
		if s != nil && !s.Witness && s.Upstreams[r.Upstream] == nil {
			c.add(here("upstream"), suggest(r.Upstream, names(s.Upstreams)), "site %s has no upstream %q", id, r.Upstream)
		}
	}
	c.rate(r, here)
	c.move(r, here)
	c.shadow(r, here)
	switch r.Priority {
	case "", topo.LowPriority, topo.NormalPriority, topo.HighPriority:
	default:
		c.add(here("priority"), "want high, normal or low", "unknown priority %q", r.Priority)
	}
	if r.Keyspace == "" {
		for key, set := range map[string]bool{"key": len(r.Key) > 0, "without_key": r.WithoutKey != "", "fenced_retry": r.FencedRetry, "hold_reads": r.HoldReads,
			"reads": r.Reads != "", "session": r.Session != "", "session_strict": r.SessionStrict,
			"max_staleness": r.MaxStaleness != 0, "when_stale": r.WhenStale != ""} {
			if set {
				c.add(here(key), "add keyspace:, or drop it", "route %s has %s but no keyspace", r.Name, key)
			}
		}
		return
	}
	c.keyedRoute(r, here)
}

func (c *checker) rate(r *Route, here func(...any) []any) {
	if r.Rate == nil {
		return
	}
	switch r.Rate.Per {
	case topo.PerRoute, topo.PerClient:
	case topo.PerKey:
		if k := c.Keyspaces[r.Keyspace]; k == nil || k.Buckets == 1 || len(r.Key) == 0 {
			c.add(here("rate", "per"), "write client or route", "route %s has no key to count by", r.Name)
		}
	default:
		c.add(here("rate", "per"), "want route, key or client", "unknown per %q", r.Rate.Per)
	}
	if !(r.Rate.RPS > 0) || r.Rate.RPS > 1e9 || r.Rate.Burst < 0 {
		c.add(here("rate"), "write for example rps: 100, burst: 200", "rate of route %s: rps %v, burst %d", r.Name, r.Rate.RPS, r.Rate.Burst)
	}
	if r.Rate.Shares == nil {
		return
	}
	for _, id := range c.FullSites() {
		if !(r.Rate.Shares[id] > 0) {
			c.add(here("rate", "shares"), "a site without a share would refuse everything", "site %s has no share", id)
		}
	}
	for id := range r.Rate.Shares {
		if s := c.Sites[id]; s == nil || s.Witness {
			c.add(here("rate", "shares"), suggest(string(id), names(c.Sites)), "share of %q, which is not a site with gateways", id)
		}
	}
}

func (c *checker) keyedRoute(r *Route, here func(...any) []any) {
	k := c.knownKeyspace(r.Keyspace, here("keyspace")...)
	many := k != nil && k.Buckets != 1
	if many && len(r.Key) == 0 {
		c.add(here(), "add key: with where a request carries it, for example [{header: X-Customer}]", "route %s has no key", r.Name)
	}
	if many && r.WithoutKey == "" {
		c.add(here(), "say what happens to a request without a key: refuse, home or nearest", "route %s has no without_key", r.Name)
	}
	switch r.WithoutKey {
	case "", topo.RefuseKeyless, topo.HomeKeyless, topo.NearestKeyless:
	default:
		c.add(here("without_key"), "want refuse, home or nearest", "unknown without_key %q", r.WithoutKey)
	}
	c.readsOf(r, here)
	for j, src := range r.Key {
		n := 0
		for _, set := range []bool{src.Header != "", src.Cookie != "", src.Path != 0, src.Query != "", src.JWT != "", src.Certificate != ""} {
			if set {
				n++
			}
		}
		if n != 1 || src.Path < 0 {
			c.add(here("key", j), "each entry names one of header, cookie, path (segment from 1), query, jwt (claim), certificate (cn, dns or uri)", "key source %d of route %s", j+1, r.Name)
		}
		c.verifiedKey(r, src, here("key", j))
	}
}

// verifiedKey checks that what a key source wants verified can be.
func (c *checker) verifiedKey(r *Route, src topo.KeySource, where []any) {
	if p := c.Policies.JWT; src.JWT != "" && p.KeysFile == "" && p.KeysURL == "" {
		c.add(where, "add policies.jwt with issuer:, audience: and keys_file: or keys_url:", "route %s takes its key from a token, which nothing says how to verify", r.Name)
	}
	switch src.Certificate {
	case "":
		return
	case topo.CommonName, topo.DNSName, topo.URIName:
	default:
		c.add(where, "want cn, dns or uri", "unknown certificate field %q", src.Certificate)
	}
	for _, s := range c.Sites {
		if s == nil {
			continue
		}
		for _, g := range s.Gateways {
			if g != nil && g.TLS != nil && g.TLS.ClientCA != "" {
				return
			}
		}
	}
	c.add(where, "add tls.client_ca to the gateways that users with certificates reach", "route %s takes its key from a certificate, which no gateway asks for", r.Name)
}

// MinStaleness is the least bound on the age of a copy that a route may ask for.
const MinStaleness = 2 * time.Second

// readsOf checks what a route says of its reads and sessions.
func (c *checker) readsOf(r *Route, here func(...any) []any) {
	switch r.Reads {
	case "", topo.OwnerReads:
	case topo.NearestReads:
		if r.HoldReads {
			c.add(here("hold_reads"), "drop it, or reads: nearest", "route %s asks for strong reads and for reads from a copy", r.Name)
		}
	default:
		c.add(here("reads"), "want owner or nearest", "unknown reads %q", r.Reads)
	}
	switch {
	case r.MaxStaleness == 0 && r.WhenStale != "":
		c.add(here("when_stale"), "add max_staleness: with how old a copy may be, or drop it", "route %s has when_stale but no max_staleness", r.Name)
	case r.MaxStaleness == 0:
	case r.Reads != topo.NearestReads:
		c.add(here("max_staleness"), "add reads: nearest, or drop it", "route %s bounds the age of a copy and reads at the owner", r.Name)
	case r.MaxStaleness < MinStaleness:
		c.add(here("max_staleness"), "sites ask each other once a second how far they are", "max_staleness %s is less than %s", r.MaxStaleness, MinStaleness)
	}
	if modes := []topo.WhenStale{"", topo.StaleToOwner, topo.StaleRefused, topo.StaleServed}; !slices.Contains(modes, r.WhenStale) {
		c.add(here("when_stale"), "want owner, refuse or serve", "unknown when_stale %q", r.WhenStale)
	}
	switch r.Session {
	case topo.NoSessions:
		if r.SessionStrict {
			c.add(here("session_strict"), "add session: header or cookie, or drop it", "route %s has session_strict but no session", r.Name)
		}
	case topo.HeaderSessions, topo.CookieSessions:
	default:
		c.add(here("session"), "want header or cookie", "unknown session %q", r.Session)
	}
}

func (c *checker) telemetry() {
	t := c.Telemetry
	if t == nil {
		return
	}
	c.address(t.OTLP, at("telemetry", "otlp")...)
	if t.OTLP != "" && !t.Plaintext && loopback(t.OTLP) {
		c.add(at("telemetry", "otlp"), "add plaintext: true, unless the collector has a certificate for it", "a collector at %s on this machine rarely speaks TLS", t.OTLP)
	}
	if t.Sample != nil && !(*t.Sample >= 0 && *t.Sample <= 1) {
		c.add(at("telemetry", "sample"), "want 0 to 1, for example 0.01", "sample %v is no share", *t.Sample)
	}
}

func (c *checker) policies() {
	p := c.Policies
	for _, d := range []struct {
		group, key string
		value      time.Duration
	}{
		{"lease", "duration", p.Lease.Duration}, {"lease", "w", p.Lease.W}, {"lease", "margin", p.Lease.Margin},
		{"switch", "max_lag", p.Switch.MaxLag}, {"switch", "drain_bound", p.Switch.DrainBound},
		{"switch", "fence_bound", p.Switch.FenceBound}, {"switch", "catch_bound", p.Switch.CatchBound},
		{"failover", "max_loss", p.Failover.MaxLoss}, {"failover", "veto_bound", p.Failover.VetoBound},
		{"jwt", "refresh", p.JWT.Refresh}, {"jwt", "leeway", p.JWT.Leeway}, {"hold", "max_time", p.Hold.MaxTime}, {"store", "heartbeat", p.Store.Heartbeat}, {"store", "election", p.Store.Election},
	} {
		if d.value < 0 {
			c.add(at("policies", d.group, d.key), "", "%s is negative", d.key)
		}
	}
	if q := p.Failover.QuietTime; q != nil && *q < 0 {
		c.add(at("policies", "failover", "quiet_time"), "0s switches the rule off", "quiet_time is negative")
	}
	if p.Failover.PerHour < 0 {
		c.add(at("policies", "failover", "per_hour"), "", "per_hour is negative")
	}
	c.onQuorumLoss(p.Failover)
	c.tokens(p.JWT)
	if modes := []string{FailoverAutomatic, FailoverObserve, FailoverManual}; p.Failover.Mode != "" && !slices.Contains(modes, p.Failover.Mode) {
		c.add(at("policies", "failover", "mode"), "write automatic, observe or manual", "failover mode %q does not exist", p.Failover.Mode)
	}
	s := *c.Spec
	s.setPolicyDefaults()
	d, e, h := s.Policies.Lease.Duration, s.Policies.Store.Election, s.Policies.Store.Heartbeat
	if e < 5*h {
		c.add(at("policies", "store"), "etcd wants election ≥ 5 × heartbeat", "election %v is too short for heartbeat %v", e, h)
	}
	if d < 6*e {
		c.add(at("policies", "lease", "duration"), fmt.Sprintf("want at least %v: 3 × (2 × election + 4 × RTT)", 6*e),
			"lease of %v would run out during an election of the store", d)
	}
	if s.Policies.Lease.Margin >= d/3 {
		c.add(at("policies", "lease", "margin"), "the default is a tenth of the duration", "margin %v leaves no lease of %v between renewals", s.Policies.Lease.Margin, d)
	}
	if hold, sw := s.Policies.Hold.MaxTime, s.Policies.Switch; hold < sw.DrainBound+sw.FenceBound {
		c.add(at("policies", "hold", "max_time"), "requests would fail while a switch is within its bounds",
			"hold max_time %v is shorter than drain_bound + fence_bound %v", hold, sw.DrainBound+sw.FenceBound)
	}
}

// onQuorumLoss: promises need somebody whose loss does not take the store along, and keeping forbids automatic failovers.
func (c *checker) onQuorumLoss(f FailoverPolicy) {
	where := at("policies", "failover", "on_quorum_loss")
	full, members := 0, 0
	for _, s := range c.Sites {
		if s != nil && !s.Witness {
			full++
		}
		if s != nil && s.Store != nil {
			members++
		}
	}
	switch f.OnQuorumLoss {
	case "", QuorumStop:
	case QuorumPromise:
		if full < 2 {
			c.add(where, "write stop", "one full site has nobody to promise it anything")
		} else if full == 2 && members == 2 {
			c.add(where, "add a witness in a third failure domain, or write stop or keep",
				"two sites without a witness lose the store with either of them, and then cannot promise each other anything")
		}
	case QuorumKeep:
		if f.Mode == FailoverAutomatic {
			c.add(where, "write mode: observe or manual beside it, or on_quorum_loss: promise",
				"a site that keeps accepting writes without the store must not be taken over automatically: both would write")
		}
	default:
		c.add(where, "write stop, promise or keep", "on_quorum_loss %q does not exist", f.OnQuorumLoss)
	}
}
