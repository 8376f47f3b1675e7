package route

import (
	"strings"
	"testing"

	"github.com/atollhq/atoll/topo"
)

var testSpaces = map[topo.KeyspaceID]topo.Keyspace{
	"users":   {Buckets: 1024, Hash: topo.HashMD5, Key: topo.TextKey},
	"orders":  {Buckets: 16, Hash: topo.HashMD5, Key: topo.UUIDKey},
	"catalog": {Buckets: 1, Hash: topo.HashMD5, Key: topo.TextKey},
}

func header(name string) []topo.KeySource { return []topo.KeySource{{Header: name}} }

var testRoutes = []topo.Route{
	{Name: "users", Path: "/users", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}, {Cookie: "user"}, {Path: 2}, {Query: "user"}}, WithoutKey: topo.RefuseKeyless},
	{Name: "users-post", Path: "/users", Methods: []string{"POST"}, Upstream: "app", Keyspace: "users", Key: header("x-user"), WithoutKey: topo.HomeKeyless},
	{Name: "me", Path: "/users/me", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Query: "user"}}, WithoutKey: topo.NearestKeyless, HoldReads: true},
	{Name: "seats", Path: "/seats/", Upstream: "app", Keyspace: "catalog", Key: nil},
	{Name: "near", Path: "/near", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}, {Query: "user"}}, WithoutKey: topo.HomeKeyless, Reads: topo.NearestReads},
	{Name: "shop", Path: "/", Hosts: []string{"shop.example.com", "*.shop.example.com"}, Upstream: "shop"},
	{Name: "wild", Path: "/", Hosts: []string{"*.example.com"}, Upstream: "shop"},
	{Name: "rest", Path: "/", Upstream: "app"},
}

func mustCompile(t testing.TB, routes []topo.Route) *Table {
	table, err := Compile(routes, testSpaces)
	if err != nil {
		t.Fatal(err)
	}
	return table
}

func TestMatch(t *testing.T) {
	t.Parallel()
	table := mustCompile(t, testRoutes)
	user1 := topo.BucketID(83)
	cases := []struct {
		name   string
		req    Request
		route  string
		keyed  bool
		bucket topo.BucketID
		reason Reason
	}{
		{"header", Request{Path: "/users/x", Header: hdr("X-User", "user-1")}, "users", true, user1, None},
		{"cookie", Request{Path: "/users", Header: hdr("Cookie", `a=b; user="user-1"; xuser=z`)}, "users", true, user1, None},
		{"cookie in two fields", Request{Path: "/users", Header: hdr("Cookie", "a=b", "user=user-1")}, "users", true, user1, None},
		{"cookie name is not a suffix", Request{Path: "/users", Header: hdr("Cookie", "xuser=user-1")}, "", false, 0, NoKey},
		{"path", Request{Path: "/users/user-1/orders"}, "users", true, user1, None},
		{"path, encoded", Request{Path: "/users/user-1/a/b", RawPath: "/users/%75ser-1/a%2Fb"}, "users", true, user1, None},
		{"path, encoded prefix", Request{Path: "/users/user-1/a/b", RawPath: "/%75sers/user-1/a%2Fb"}, "users", true, user1, None},
		{"query", Request{Path: "/users", RawQuery: "a=1&user=user%2D1"}, "users", true, user1, None},
		{"query, encoded name", Request{Path: "/users", RawQuery: "u%73er=user-1"}, "users", true, user1, None},
		{"order of sources", Request{Path: "/users/other", RawQuery: "user=z", Header: hdr("X-User", "user-1")}, "users", true, user1, None},
		{"no key", Request{Path: "/users"}, "", false, 0, NoKey},
		{"empty segment is no key", Request{Path: "/users//orders"}, "", false, 0, NoKey},
		{"two headers", Request{Path: "/users", Header: hdr("X-User", "a", "a")}, "", false, 0, DuplicateKey},
		{"two cookies", Request{Path: "/users", Header: hdr("Cookie", "user=a; user=a")}, "", false, 0, DuplicateKey},
		{"two parameters", Request{Path: "/users", RawQuery: "user=a&u%73er=b"}, "", false, 0, DuplicateKey},
		{"semicolon", Request{Path: "/users", RawQuery: "user=a;user=b"}, "", false, 0, MalformedKey},
		{"broken encoding", Request{Path: "/users", RawQuery: "user=%zz"}, "", false, 0, MalformedKey},
		{"broken encoding of another name", Request{Path: "/users", RawQuery: "%zz=1&user=a"}, "", false, 0, MalformedKey},
		{"key too long", Request{Path: "/users", Header: hdr("X-User", strings.Repeat("x", MaxKey+1))}, "", false, 0, MalformedKey},
		{"method names a route", Request{Method: "POST", Path: "/users", Header: hdr("X-User", "user-1")}, "users-post", true, user1, None},
		{"home", Request{Method: "POST", Path: "/users"}, "users-post", true, 0, None},
		{"longest prefix", Request{Path: "/users/me/x", RawQuery: "user=user-1"}, "me", true, user1, None},
		{"nearest", Request{Path: "/users/me"}, "me", false, 0, None},
		{"whole segments", Request{Path: "/usersx"}, "rest", false, 0, None},
		{"one bucket", Request{Path: "/seats/12/reserve"}, "seats", true, 0, None},
		{"host", Request{Path: "/", Host: "Shop.Example.com:8080"}, "shop", false, 0, None},
		{"wildcard", Request{Path: "/", Host: "a.shop.example.com."}, "shop", false, 0, None},
		{"shorter wildcard", Request{Path: "/", Host: "x.example.com"}, "wild", false, 0, None},
		{"wildcard wants a label", Request{Path: "/", Host: "example.com"}, "rest", false, 0, None},
		{"IPv6 host", Request{Path: "/", Host: "[::1]"}, "rest", false, 0, None},
		{"dot segment", Request{Path: "/x/../users/1"}, "", false, 0, BadPath},
		{"encoded dot segment", Request{Path: "/x/../users", RawPath: "/x/%2e%2E/users"}, "", false, 0, BadPath},
		{"relative", Request{Path: "users"}, "", false, 0, BadPath},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.req.Method == "" {
				c.req.Method = "GET"
			}
			got, reason := table.Match(&c.req)
			if reason != c.reason {
				t.Fatalf("reason %q, want %q", reason, c.reason)
			}
			if reason == None && (got.Route.Name != c.route || got.Keyed != c.keyed || got.Bucket != c.bucket) {
				t.Fatalf("route %s keyed %v bucket %d, want %s %v %d", got.Route.Name, got.Keyed, got.Bucket, c.route, c.keyed, c.bucket)
			}
		})
	}
}

func hdr(name string, values ...string) map[string][]string {
	return map[string][]string{name: values}
}

func TestNoRoute(t *testing.T) {
	t.Parallel()
	table := mustCompile(t, testRoutes[:1])
	if _, reason := table.Match(&Request{Method: "GET", Path: "/other"}); reason != NoRoute {
		t.Fatalf("reason %q", reason)
	}
	if NoRoute.Status() != 404 || DuplicateKey.Status() != 400 || MovingBucket.Status() != 503 {
		t.Fatal("statuses")
	}
}

func TestCompileErrors(t *testing.T) {
	t.Parallel()
	base := topo.Route{Name: "r", Path: "/r", Upstream: "app", Keyspace: "users", Key: header("X-User"), WithoutKey: topo.RefuseKeyless}
	cases := []struct {
		want string
		edit func(*topo.Route)
	}{
		{"has no name", func(r *topo.Route) { r.Name = "" }},
		{"starts with /", func(r *topo.Route) { r.Path = "r" }},
		{"empty or a dot segment", func(r *topo.Route) { r.Path = "/a//b" }},
		{"empty or a dot segment", func(r *topo.Route) { r.Path = "/a/../b" }},
		{"write it decoded", func(r *topo.Route) { r.Path = "/a%20b" }},
		{"no upstream", func(r *topo.Route) { r.Upstream = "" }},
		{"upper case", func(r *topo.Route) { r.Methods = []string{"post"} }},
		{"without port", func(r *topo.Route) { r.Hosts = []string{"a:80"} }},
		{"not declared", func(r *topo.Route) { r.Keyspace = "nobody" }},
		{"without_key is missing", func(r *topo.Route) { r.WithoutKey = "" }},
		{"want refuse, home or nearest", func(r *topo.Route) { r.WithoutKey = "guess" }},
		{"key but no keyspace", func(r *topo.Route) { r.Keyspace = "" }},
		{"no key", func(r *topo.Route) { r.Key = nil }},
		{"exactly one of", func(r *topo.Route) { r.Key = []topo.KeySource{{Header: "A", Query: "b"}} }},
		{"exactly one of", func(r *topo.Route) { r.Key = []topo.KeySource{{}} }},
		{"cannot carry a key", func(r *topo.Route) { r.Key = header("atoll-epoch") }},
		{"not a name", func(r *topo.Route) { r.Key = []topo.KeySource{{Cookie: "a b"}} }},
		{"count from 1", func(r *topo.Route) { r.Key = []topo.KeySource{{Path: -1}} }},
	}
	for _, c := range cases {
		r := base
		c.edit(&r)
		if _, err := Compile([]topo.Route{r}, testSpaces); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("error %v, want %q in it", err, c.want)
		}
	}
	second := base
	second.Name = "s"
	if _, err := Compile([]topo.Route{base, second}, testSpaces); err == nil || !strings.Contains(err.Error(), "take the same requests") {
		t.Errorf("conflict: %v", err)
	}
	if _, err := Compile([]topo.Route{base, base}, testSpaces); err == nil || !strings.Contains(err.Error(), "same name") {
		t.Errorf("names: %v", err)
	}
	odd := map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 1000, Hash: "md5", Key: "text"}}
	if _, err := Compile([]topo.Route{base}, odd); err == nil || !strings.Contains(err.Error(), "power of two") {
		t.Errorf("buckets: %v", err)
	}
	blob := map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 1024, Hash: "md5", Key: "blob"}}
	if _, err := Compile([]topo.Route{base}, blob); err == nil || !strings.Contains(err.Error(), "key form") {
		t.Errorf("form: %v", err)
	}
}

// sender has been verified by somebody.
type sender map[string]string

func (s sender) Claim(name string) (string, Reason) {
	if s["reason"] != "" {
		return "", Reason(s["reason"])
	}
	return s["jwt "+name], None
}

func (s sender) Certificate(field topo.CertificateField) (string, Reason) {
	return s["certificate "+string(field)], None
}

func TestKeysOfVerifiedSenders(t *testing.T) {
	t.Parallel()
	source := func(name string, keys ...topo.KeySource) topo.Route {
		return topo.Route{Name: name, Path: "/" + name, Upstream: "app", Keyspace: "users", Key: keys, WithoutKey: topo.NearestKeyless}
	}
	table := mustCompile(t, []topo.Route{
		source("token", topo.KeySource{Header: "X-User"}, topo.KeySource{JWT: "https://shop.example/user id"}),
		source("cert", topo.KeySource{Certificate: topo.URIName}),
	})
	for name, c := range map[string]struct {
		path   string
		header map[string][]string
		from   Verified
		keyed  bool
		reason Reason
	}{
		"claim":                         {"/token", nil, sender{"jwt https://shop.example/user id": "user-1"}, true, None},
		"no such claim":                 {"/token", nil, sender{}, false, None},
		"nobody verified":               {"/token", nil, nil, false, None},
		"expired":                       {"/token", nil, sender{"reason": "expired-token"}, false, ExpiredToken},
		"bad, and the header has a key": {"/token", hdr("X-User", "user-1"), sender{"reason": "bad-token"}, true, None},
		"certificate":                   {"/cert", nil, sender{"certificate uri": "user-1"}, true, None},
		"another field":                 {"/cert", nil, sender{"certificate cn": "user-1"}, false, None},
	} {
		target, reason := table.Match(&Request{Method: "GET", Path: c.path, Header: c.header, Verified: c.from})
		if reason != c.reason || target.Keyed != c.keyed || c.keyed && target.Bucket != 83 {
			t.Errorf("%s: %+v %q", name, target, reason)
		}
	}
	for _, bad := range []topo.KeySource{{Certificate: "email"}, {JWT: "sub", Header: "X"}} {
		if _, err := Compile([]topo.Route{source("bad", bad)}, testSpaces); err == nil {
			t.Errorf("%+v: taken", bad)
		}
	}
}

// A target carries its key only where something is divided or counted by it; in a keyspace of one bucket, too.
func TestTargetsCarryTheirKey(t *testing.T) {
	t.Parallel()
	spaces := map[topo.KeyspaceID]topo.Keyspace{"users": {Buckets: 16, Hash: topo.HashMD5, Key: topo.IntegerKey}, "home": {Buckets: 1, Hash: topo.HashMD5, Key: topo.TextKey}}
	for name, c := range map[string]struct {
		route topo.Route
		want  string
	}{
		"nothing":          {topo.Route{Keyspace: "users"}, ""},
		"rate per client":  {topo.Route{Keyspace: "users", Rate: &topo.Rate{Per: topo.PerClient}}, ""},
		"rate per key":     {topo.Route{Keyspace: "users", Rate: &topo.Rate{Per: topo.PerKey}}, "7"},
		"move":             {topo.Route{Keyspace: "users", Move: &topo.Move{}}, "7"},
		"shadow":           {topo.Route{Keyspace: "users", Shadow: &topo.Shadow{}}, "7"},
		"move of one home": {topo.Route{Keyspace: "home", Move: &topo.Move{}}, "007"},
		"one home":         {topo.Route{Keyspace: "home"}, ""},
	} {
		r := c.route
		r.Name, r.Path, r.Upstream, r.Key, r.WithoutKey = "r", "/", "app", []topo.KeySource{{Header: "X-User"}}, topo.HomeKeyless
		table, err := Compile([]topo.Route{r}, spaces)
		if err != nil {
			t.Fatal(err)
		}
		got, reason := table.Match(&Request{Method: "GET", Path: "/", Header: map[string][]string{"X-User": {"007"}}})
		if reason != None || !got.Keyed || got.Key != c.want {
			t.Errorf("%s: %+v, %s", name, got, reason)
		}
	}
}
