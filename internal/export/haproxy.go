package export

import (
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// HAProxy is what a proxy of one site needs to know.
type HAProxy struct {
	Site      topo.SiteID
	Routes    []topo.Route
	Keyspaces map[topo.KeyspaceID]topo.Keyspace
	Sites     []topo.SiteID              // all that may own a bucket
	Gateways  []Server                   // of this site, for users
	Remote    map[topo.SiteID][]*url.URL // other sites' gateways for users, where the proxy reaches them
	Bind      string                     // of the example's frontend
	File      string                     // the map, as HAProxy reads it
}

// Server is a gateway of this site.
type Server struct {
	Name   string
	Addr   string // host:port
	Health string // host:port of its /healthz where the proxy reaches that; "" where not
	TLS    bool
}

// ForSite takes from a specification what the proxy of a site needs.
func ForSite(s *spec.Spec, site topo.SiteID) (HAProxy, error) {
	h := HAProxy{Site: site, Routes: s.RouteTable(), Keyspaces: s.KeyspaceTable(), Sites: s.FullSites(), Remote: map[topo.SiteID][]*url.URL{}}
	here := s.Sites[site]
	if here == nil || here.Witness {
		return h, fmt.Errorf("site %q: users come to the sites %v", site, h.Sites)
	}
	for _, name := range slices.Sorted(maps.Keys(here.Gateways)) {
		g := here.Gateways[name]
		server := Server{Name: name, Addr: g.Listen, TLS: g.TLS != nil}
		if host, _, err := net.SplitHostPort(g.Listen); err == nil {
			if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
				server.Health = g.Admin // the proxy stands beside the gateway
			}
		}
		h.Gateways = append(h.Gateways, server)
	}
	return h, nil
}

// Config is a configuration for HAProxy 2.6 and later: a frontend whose rules can be put into another, and the backends.
func (h HAProxy) Config() (string, error) {
	table, err := route.Compile(h.Routes, h.Keyspaces)
	if err != nil {
		return "", err
	}
	if len(h.Gateways) == 0 {
		return "", fmt.Errorf("site %s has no gateway", h.Site)
	}
	c := &config{h: h}
	c.head()
	c.frontend(table)
	c.backends()
	return c.b.String(), nil
}

type config struct {
	h HAProxy
	b strings.Builder
}

func (c *config) line(format string, args ...any) { fmt.Fprintf(&c.b, format+"\n", args...) }

func (c *config) head() {
	c.line(`# HAProxy at site %[1]s: which site owns a request's bucket. Written by `+"`atoll export haproxy --site %[1]s`"+`; check it with
#   haproxy -c -f THIS_FILE
# The map is %[2]s. Keep it in step with the ownership:
#   atoll export haproxy --site %[1]s --map %[2]s --socket /run/haproxy.sock --follow
# which needs this in "global":
#   stats socket /run/haproxy.sock mode 660 level admin
#
# Everything goes to gateways of Atoll, the owner's or this site's, and those decide again. A proxy cannot hold a request while its
# bucket moves, knows no epochs and no lease, sends nothing again that the fence refused, and carries no sessions. With a map
# that is behind, a request makes one hop more. Do not send to the application past its gateway: then all of that is lost, and
# strong reads (hold_reads) are not strong.
`, c.h.Site, c.h.File)
	c.line(`defaults atoll_defaults
    mode http
    timeout connect 2s
    timeout client 75s
    timeout server 75s              # a gateway may hold for 15 s, and waits 60 s for the application
    timeout http-request 10s
    timeout http-keep-alive 60s
    option redispatch               # a gateway that does not take the connection: the next one; nothing was sent
    retry-on conn-failure           # nothing else: a write that was sent may have been done
`)
}

// maxWords keeps a line below what HAProxy takes (64 words).
const maxWords = 32

// group is routes that read their key in the same way.
type group struct {
	names []string
	like  topo.Route
}

func (g group) acl() string {
	return "{ var(txn.atoll_route) -m str " + strings.Join(g.names, " ") + " }"
}

func (c *config) frontend(table *route.Table) {
	c.line(`frontend atoll_users from atoll_defaults
    bind %s

    # --- from here on it fits into a frontend of your own
    # What a gateway may read in another way goes to a gateway undecided: encoded paths.
    acl atoll_encoded path -m sub %%
    # Which route takes the request: the first of these, as in a gateway.`, c.h.Bind)
	for n, e := range table.Order() {
		c.match(n, e)
	}
	var groups []*group
	for _, r := range table.Routes() {
		if r.Keyspace == "" {
			continue
		}
		i := slices.IndexFunc(groups, func(g *group) bool {
			return len(g.names) < maxWords && g.like.Keyspace == r.Keyspace && g.like.WithoutKey == r.WithoutKey && slices.Equal(g.like.Key, r.Key)
		})
		if i < 0 {
			groups, i = append(groups, &group{like: r.Route}), len(groups)
		}
		groups[i].names = append(groups[i].names, r.Name)
	}
	for _, g := range groups {
		c.slot(*g)
	}
	var near []string
	for _, r := range table.Routes() {
		if r.Reads == topo.NearestReads && !r.HoldReads {
			near = append(near, r.Name)
		}
	}
	if len(near) > 0 {
		c.line("\n    # Reads that this site may answer from its copy stay here.")
	}
	for names := range slices.Chunk(near, maxWords) {
		c.line("    http-request unset-var(txn.atoll_slot) if %s { method GET HEAD OPTIONS TRACE }", group{names: names}.acl())
	}
	c.line(`
    # Who owns that: the one look-up in the map.
    http-request set-var(txn.atoll_site) var(txn.atoll_slot),map_str(%s) if { var(txn.atoll_slot) -m found }
    # The bucket moves (%s), there is none, or the map does not know it: a gateway of this site holds, decides, or refuses.
    use_backend atoll_site_%%[var(txn.atoll_site)] if { var(txn.atoll_site) -m found } !{ var(txn.atoll_site) -m str %[2]s }
    default_backend atoll_gateways
    # --- to here`, c.h.File, hold)
}

// match writes the test for one way into a route.
func (c *config) match(n int, e route.Entry) {
	conditions := []string{"!{ var(txn.atoll_route) -m found }", "!atoll_encoded"}
	if len(e.Path) > 0 {
		prefix := "/" + strings.Join(e.Path, "/")
		c.line("    acl atoll_path_%d path -m str %s", n, quote(prefix))
		c.line("    acl atoll_path_%d path -m beg %s", n, quote(prefix+"/"))
		conditions = append(conditions, fmt.Sprintf("atoll_path_%d", n))
	}
	switch {
	case e.Host == "":
	case e.Host[0] == '.':
		conditions = append(conditions, fmt.Sprintf("{ req.hdr(host),field(1,:),rtrim(.) -m end -i %s }", quote(e.Host)))
	default:
		conditions = append(conditions, fmt.Sprintf("{ req.hdr(host),field(1,:),rtrim(.) -m str -i %s }", quote(e.Host)))
	}
	if len(e.Methods) > 0 {
		conditions = append(conditions, "{ method "+strings.Join(e.Methods, " ")+" }")
	}
	c.line("    http-request set-var(txn.atoll_route) str(%s) if %s", e.Route.Name, strings.Join(conditions, " "))
}

// slot writes how the requests of some routes get KEYSPACE/BUCKET.
func (c *config) slot(g group) {
	ks := g.like.Keyspace
	space := c.h.Keyspaces[ks]
	c.line("")
	if space.Buckets == 1 {
		c.line("    # Keyspace %s has one home.", ks)
		c.line("    http-request set-var(txn.atoll_slot) str(%s/0) if %s", ks, g.acl())
		return
	}
	c.line("    # Keyspace %s, %d buckets: the first of these that has a value is the key.", ks, space.Buckets)
	for _, k := range g.like.Key {
		c.key(k, g)
	}
	canonical, form := canonical(space.Key)
	c.line("    # The bucket: the first four bytes of the key's MD5, big-endian, and the low bits of that.")
	c.line("    http-request set-var(txn.atoll_bucket) var(txn.atoll_key)%s,digest(md5),bytes(0,4),hex,hex2i,and(%d) if %s %s", canonical, space.Buckets-1, g.acl(), form)
	c.line("    http-request set-var(txn.atoll_slot) str(%s/),concat(,txn.atoll_bucket) if %s { var(txn.atoll_bucket) -m found }", ks, g.acl())
	if g.like.WithoutKey == topo.HomeKeyless {
		c.line("    http-request set-var(txn.atoll_slot) str(%s/0) if %s !{ var(txn.atoll_key) -m found }", ks, g.acl())
	}
}

// key writes how one source is read. More than one value is for a gateway to refuse.
func (c *config) key(k topo.KeySource, g group) {
	fetch, more := "", ""
	switch {
	case k.Header != "":
		fetch = "req.fhdr(" + k.Header + ")"
		more = "!{ req.fhdr_cnt(" + k.Header + ") gt 1 }"
	case k.Cookie != "":
		fetch = "req.cook(" + k.Cookie + ")"
		more = "!{ req.cook_cnt(" + k.Cookie + ") gt 1 }"
	case k.Path > 0:
		fetch = fmt.Sprintf("path,field(%d,/)", k.Path+1)
	default:
		fetch = "urlp(" + k.Query + "),url_dec(1)"
	}
	c.line("    http-request set-var(txn.atoll_key) %s if %s !{ var(txn.atoll_key) -m found } { %s -m len 1:%d } %s", fetch, g.acl(), fetch, route.MaxKey, more)
}

// canonical is what brings a key into its canonical form, and the condition under which it does; anything else goes to a
// gateway.
func canonical(form topo.KeyForm) (convert, condition string) {
	switch form {
	case topo.IntegerKey: // "+007" is 7
		return ",add(0),concat()", "{ var(txn.atoll_key) -m reg ^[+-]?[0-9]{1,18}$ }"
	case topo.UUIDKey:
		return ",lower", "{ var(txn.atoll_key),lower -m reg ^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$ }"
	}
	return "", "{ var(txn.atoll_key) -m found }"
}

// quote makes a text one word for HAProxy.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (c *config) backends() {
	c.line("\n# The gateways of this site. They hold, and they reach every owner.")
	c.line("backend atoll_gateways from atoll_defaults")
	c.local()
	for _, site := range c.h.Sites {
		c.line("")
		switch addrs := c.h.Remote[site]; {
		case site == c.h.Site:
			c.line("backend atoll_site_%s from atoll_defaults", site)
			c.local()
		case len(addrs) == 0:
			c.line("# Site %s through this site's gateways, which know the way and speak TLS with theirs. With an address of its gateways for users", site)
			c.line("# (--gateway %s=http://HOST:PORT) requests go there at once.", site)
			c.line("backend atoll_site_%s from atoll_defaults", site)
			c.local()
		default:
			c.line("# Site %s; what cannot be reached there goes through this site's gateways.", site)
			c.line("backend atoll_site_%s from atoll_defaults", site)
			for i, u := range addrs {
				c.line("    server %s%d %s%s check inter 2s fall 2", site, i+1, hostPort(u), options(u.Scheme == "https", " sni str("+u.Hostname()+") verifyhost "+u.Hostname()))
			}
			for _, s := range c.h.Gateways {
				c.line("    server here_%s %s backup%s", s.Name, s.Addr, s.options())
			}
		}
	}
}

func (c *config) local() {
	// Asked at the port for users, the application would answer: either all gateways are asked for their health, or none.
	health := !slices.ContainsFunc(c.h.Gateways, func(s Server) bool { return s.Health == "" })
	if health {
		c.line("    option httpchk GET /healthz")
	}
	for _, s := range c.h.Gateways {
		check := ""
		if host, port, err := net.SplitHostPort(s.Health); health && err == nil {
			check = fmt.Sprintf(" addr %s port %s check-proto h1", host, port)
			if s.TLS {
				check += " no-check-ssl"
			}
		}
		c.line("    server %s %s%s check inter 2s fall 2%s", s.Name, s.Addr, s.options(), check)
	}
}

func (s Server) options() string { return options(s.TLS, "") }

func options(tls bool, name string) string {
	if tls {
		return " ssl verify required ca-file @system-ca" + name
	}
	return ""
}

func hostPort(u *url.URL) string {
	if u.Port() != "" {
		return u.Host
	}
	return net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
}
