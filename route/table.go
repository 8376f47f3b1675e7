package route

import (
	"cmp"
	"errors"
	"fmt"
	"net/textproto"
	"slices"
	"strings"

	"github.com/atollhq/atoll/topo"
)

// Route is a compiled route.
type Route struct {
	topo.Route
	space   topo.Keyspace
	sources []source
	keeps   bool // targets carry their key
}

// entry is one way into a route: its path with one of its hosts. Entries are tried in order; the first that takes
// the request wins.
type entry struct {
	segments []string
	host     string // "": any; ".example.com": any host below it
	methods  []string
	route    *Route
}

// Table finds the route of a request. It is immutable and safe for concurrent use.
type Table struct {
	entries []entry
	routes  []*Route
}

// Compile checks routes against the keyspaces and makes a table of them. It reports every error that it finds.
//
// Of the routes that take a request, the one with the longest path prefix wins, then the most specific host (exact,
// "*.example.com", any), then one that names its methods.
func Compile(routes []topo.Route, spaces map[topo.KeyspaceID]topo.Keyspace) (*Table, error) {
	t := &Table{}
	var errs []error
	names := map[string]bool{}
	for i, declared := range routes {
		if declared.Name == "" {
			errs = append(errs, fmt.Errorf("route %d has no name", i+1))
			continue
		}
		r, entries, err := compileRoute(declared, spaces)
		if err == nil && names[r.Name] {
			err = errors.New("another route has the same name")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("route %s: %w", declared.Name, err))
			continue
		}
		names[r.Name] = true
		t.routes = append(t.routes, r)
		t.entries = append(t.entries, entries...)
	}
	slices.SortStableFunc(t.entries, moreSpecific)
	errs = append(errs, conflicts(t.entries)...)
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

// Entry is one way into a route, as another proxy may want it.
type Entry struct {
	Route   topo.Route
	Path    []string // decoded segments that the path begins with
	Host    string   // "": any; ".example.com": any host below it
	Methods []string // empty: any
}

// Order lists the ways into routes in the order in which they are tried; the first that takes a request wins.
func (t *Table) Order() []Entry {
	out := make([]Entry, len(t.entries))
	for i, e := range t.entries {
		out[i] = Entry{e.route.Route, e.segments, e.host, e.methods}
	}
	return out
}

// Routes lists the compiled routes in the order in which they were declared.
func (t *Table) Routes() []*Route { return t.routes }

func compileRoute(declared topo.Route, spaces map[topo.KeyspaceID]topo.Keyspace) (*Route, []entry, error) {
	r := &Route{Route: declared}
	r.keeps = r.Move != nil || r.Shadow != nil || r.Rate != nil && r.Rate.Per == topo.PerKey
	segments, err := splitPrefix(declared.Path)
	if err != nil {
		return nil, nil, err
	}
	if declared.Upstream == "" {
		return nil, nil, errors.New("no upstream")
	}
	for _, m := range declared.Methods {
		if m == "" || strings.ToUpper(m) != m || strings.ContainsAny(m, " \t,") {
			return nil, nil, fmt.Errorf("method %q; write it in upper case, one per entry", m)
		}
	}
	if err := r.compileKey(spaces); err != nil {
		return nil, nil, err
	}
	hosts := declared.Hosts
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	var entries []entry
	for _, h := range hosts {
		pattern, err := hostPattern(h)
		if err != nil {
			return nil, nil, err
		}
		entries = append(entries, entry{segments: segments, host: pattern, methods: declared.Methods, route: r})
	}
	return r, entries, nil
}

func splitPrefix(path string) ([]string, error) {
	if !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("path %q; it starts with /", path)
	}
	if strings.ContainsAny(path, "?#%") {
		return nil, fmt.Errorf("path %q; write it decoded, without query", path)
	}
	trimmed := strings.Trim(path, "/")
	if trimmed == "" {
		return nil, nil
	}
	segments := strings.Split(trimmed, "/")
	for _, s := range segments {
		if s == "" || s == "." || s == ".." {
			return nil, fmt.Errorf("path %q has an empty or a dot segment", path)
		}
	}
	return segments, nil
}

func hostPattern(host string) (string, error) {
	if host == "" {
		return "", nil
	}
	h := strings.ToLower(host)
	name := strings.TrimPrefix(h, "*.")
	if name == "" || strings.ContainsAny(name, "*:/ ") {
		return "", fmt.Errorf("host %q; want a host name without port, or *.example.com", host)
	}
	if name != h {
		return "." + name, nil
	}
	return h, nil
}

func (r *Route) compileKey(spaces map[topo.KeyspaceID]topo.Keyspace) error {
	if r.Keyspace == "" {
		if len(r.Key) > 0 || r.WithoutKey != "" {
			return errors.New("it has a key but no keyspace")
		}
		return nil
	}
	space, ok := spaces[r.Keyspace]
	if !ok {
		return fmt.Errorf("keyspace %s is not declared", r.Keyspace)
	}
	if _, err := Bucket(space.Hash, "", space.Buckets); err != nil {
		return fmt.Errorf("keyspace %s: %w", r.Keyspace, err)
	}
	if _, err := Canonical(space.Key, "1"); errors.Is(err, errKeyForm) {
		return fmt.Errorf("keyspace %s: key form %q; want text, integer or uuid", r.Keyspace, space.Key)
	}
	r.space = space
	for _, declared := range r.Key {
		s, err := compileSource(declared)
		if err != nil {
			return err
		}
		r.sources = append(r.sources, s)
	}
	switch r.WithoutKey {
	case topo.RefuseKeyless, topo.HomeKeyless, topo.NearestKeyless:
	case "":
		if space.Buckets > 1 {
			return errors.New("without_key is missing; say what happens to a request without a key: refuse, home or nearest")
		}
	default:
		return fmt.Errorf("without_key %q; want refuse, home or nearest", r.WithoutKey)
	}
	if space.Buckets > 1 && len(r.sources) == 0 && r.WithoutKey != topo.HomeKeyless {
		return fmt.Errorf("no key; name a header, cookie, path segment, query parameter, token's claim or certificate's field that carries the key of keyspace %s", r.Keyspace)
	}
	return nil
}

func compileSource(k topo.KeySource) (source, error) {
	set := 0
	var s source
	if k.Header != "" {
		set++
		s = source{kind: fromHeader, name: textproto.CanonicalMIMEHeaderKey(k.Header)}
		if s.name == "Host" || s.name == "Cookie" || s.name == "Connection" || strings.HasPrefix(s.name, "Atoll-") {
			return s, fmt.Errorf("header %s cannot carry a key", s.name)
		}
	}
	if k.Cookie != "" {
		set++
		s = source{kind: fromCookie, name: k.Cookie}
	}
	if k.Path != 0 {
		set++
		s = source{kind: fromPath, segment: k.Path}
		if k.Path < 0 {
			return s, fmt.Errorf("path segment %d; segments count from 1", k.Path)
		}
	}
	if k.Query != "" {
		set++
		s = source{kind: fromQuery, name: k.Query}
	}
	if k.JWT != "" {
		set++
		s = source{kind: fromJWT, name: k.JWT}
	}
	if k.Certificate != "" {
		set++
		s = source{kind: fromCertificate, name: string(k.Certificate)}
		if !slices.Contains([]topo.CertificateField{topo.CommonName, topo.DNSName, topo.URIName}, k.Certificate) {
			return s, fmt.Errorf("certificate field %q; want cn, dns or uri", k.Certificate)
		}
	}
	if set != 1 {
		return s, errors.New("a key source names exactly one of header, cookie, path, query, jwt and certificate")
	}
	if s.kind != fromJWT && strings.ContainsAny(s.name, " \t\r\n;,=&") {
		return s, fmt.Errorf("key source %q is not a name", s.name)
	}
	return s, nil
}

func moreSpecific(a, b entry) int {
	return cmp.Or(
		cmp.Compare(len(b.segments), len(a.segments)),
		cmp.Compare(hostRank(b.host), hostRank(a.host)),
		cmp.Compare(min(len(b.methods), 1), min(len(a.methods), 1)),
	)
}

// hostRank orders host patterns: an exact name before any wildcard, a longer wildcard before a shorter, any host last.
func hostRank(h string) int {
	switch {
	case h == "":
		return 0
	case h[0] == '.':
		return len(h)
	}
	return 1 << 16
}

// conflicts finds pairs of entries of which the order of declaration would have to choose.
func conflicts(entries []entry) []error {
	var errs []error
	for i, a := range entries {
		for _, b := range entries[i+1:] {
			if a.host != b.host || !slices.Equal(a.segments, b.segments) {
				continue
			}
			bothAny := len(a.methods) == 0 && len(b.methods) == 0
			common := slices.ContainsFunc(a.methods, func(m string) bool { return slices.Contains(b.methods, m) })
			if bothAny || common {
				errs = append(errs, fmt.Errorf("routes %s and %s take the same requests; make one path longer, or name hosts or methods",
					a.route.Name, b.route.Name))
			}
		}
	}
	return errs
}

// Match finds the target of a request, or the reason to refuse it. It does not allocate where the key's encoding is
// the plain one.
func (t *Table) Match(req *Request) (Target, Reason) {
	if badPath(req) {
		return Target{}, BadPath
	}
	for i := range t.entries {
		e := &t.entries[i]
		if !e.takes(req) {
			continue
		}
		return e.route.target(req)
	}
	return Target{}, NoRoute
}

func (r *Route) target(req *Request) (Target, Reason) {
	safe := SafeMethod(req.Method)
	t := Target{Route: r, Safe: safe, Write: !safe || r.HoldReads, Nearest: safe && r.Reads == topo.NearestReads && !r.HoldReads}
	switch {
	case r.Keyspace == "":
		return t, None
	case r.space.Buckets == 1:
		t.Keyed = true // whatever the key: everything has one home
		if r.keeps {
			_, t.Key, _, _ = r.bucketOf(req) // one that is malformed is none
		}
		return t, None
	}
	b, key, found, reason := r.bucketOf(req)
	switch {
	case reason != None:
		return Target{Route: r}, reason
	case found:
		t.Keyed, t.Bucket, t.Key = true, b, key
	case r.WithoutKey == topo.HomeKeyless:
		t.Keyed = true
	case r.WithoutKey == topo.RefuseKeyless:
		return Target{Route: r}, NoKey
	}
	return t, None
}

func (e *entry) takes(req *Request) bool {
	if e.host != "" && !hostMatches(e.host, req.Host) {
		return false
	}
	if len(e.methods) > 0 && !slices.Contains(e.methods, req.Method) {
		return false
	}
	path, encoded := pathOf(req)
	for _, want := range e.segments {
		var seg string
		var ok bool
		if seg, path, ok = nextSegment(path); !ok || !segmentIs(seg, want, encoded) {
			return false
		}
	}
	return true
}

// hostMatches compares without regard to case, port and a trailing dot.
func hostMatches(pattern, host string) bool {
	if i := strings.LastIndexByte(host, ':'); i >= 0 && !strings.HasSuffix(host, "]") {
		host = host[:i]
	}
	host = strings.TrimSuffix(host, ".")
	if pattern[0] != '.' {
		return strings.EqualFold(pattern, host)
	}
	return len(host) > len(pattern) && strings.EqualFold(host[len(host)-len(pattern):], pattern)
}
