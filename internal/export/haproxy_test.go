package export

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

var testSpaces = map[topo.KeyspaceID]topo.Keyspace{
	"users":    {Buckets: 1024, Hash: topo.HashMD5, Key: topo.TextKey},
	"accounts": {Buckets: 256, Hash: topo.HashMD5, Key: topo.UUIDKey},
	"numbers":  {Buckets: 16384, Hash: topo.HashMD5, Key: topo.IntegerKey},
	"catalog":  {Buckets: 1, Hash: topo.HashMD5, Key: topo.TextKey},
}

var testRoutes = []topo.Route{
	{Name: "users", Path: "/users", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}, {Query: "user"}}, WithoutKey: topo.RefuseKeyless},
	{Name: "mine", Path: "/users/mine", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.HomeKeyless},
	{Name: "near", Path: "/near", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless, Reads: topo.NearestReads},
	{Name: "accounts", Path: "/accounts", Upstream: "app", Keyspace: "accounts", Key: []topo.KeySource{{Cookie: "account"}}, WithoutKey: topo.NearestKeyless},
	{Name: "numbers", Path: "/numbers", Upstream: "app", Keyspace: "numbers", Key: []topo.KeySource{{Path: 2}}, WithoutKey: topo.RefuseKeyless},
	{Name: "catalog", Path: "/catalog", Upstream: "app", Keyspace: "catalog"},
	{Name: "shop", Path: "/catalog", Hosts: []string{"*.shop.example"}, Methods: []string{"POST"}, Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless},
	{Name: "plain", Path: "/", Upstream: "app"},
}

// scattered gives each bucket to one of three sites, by chance.
func scattered(rng *rand.Rand) topo.Ownership {
	placements := map[topo.KeyspaceID]topo.Placement{}
	for ks, space := range testSpaces {
		p := topo.Placement{Buckets: space.Buckets, Hash: topo.HashMD5}
		for b := 0; b < space.Buckets; {
			last := min(b+rng.IntN(8), space.Buckets-1)
			owner := topo.SiteID([]string{"a", "b", "c"}[rng.IntN(3)])
			if n := len(p.Ranges); n > 0 && p.Ranges[n-1].Owner == owner {
				p.Ranges[n-1].Last = topo.BucketID(last)
			} else {
				p.Ranges = append(p.Ranges, topo.Range{First: topo.BucketID(b), Last: topo.BucketID(last), Owner: owner, Epoch: 1, State: topo.Open})
			}
			b = last + 1
		}
		placements[ks] = p
	}
	return topo.NewOwnership(placements)
}

// threeSites is a proxy at a; b's gateways are reached by it, c's are not.
func threeSites(t *testing.T, view *topo.View) *proxy {
	t.Helper()
	return newProxy(t, HAProxy{Site: "a", Routes: testRoutes, Keyspaces: testSpaces, Sites: []topo.SiteID{"a", "b", "c"},
		Gateways: []Server{{Name: "g1", Addr: standIn(t, "a").Host}}, Remote: map[topo.SiteID][]*url.URL{"b": {standIn(t, "b")}, "c": {standIn(t, "c")}}}, view)
}

func newRequest(method, path string, header ...string) *http.Request {
	req, err := http.NewRequest(method, path, nil)
	if err != nil {
		panic(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Add(header[i], header[i+1])
		}
	}
	return req
}

// keyed is a request that carries a key of a keyspace in one of the ways of its routes.
func keyed(ks topo.KeyspaceID, key string, n int) *http.Request {
	switch ks {
	case "users":
		if n%2 == 0 {
			return newRequest("POST", "/users", "X-User", key)
		}
		return newRequest("GET", "/users/7?x=1&user="+url.QueryEscape(key))
	case "accounts":
		return newRequest("POST", "/accounts/x", "Cookie", "z=1; account="+key)
	default:
		return newRequest("PUT", "/numbers/"+key)
	}
}

// owner is where package route and the view say that a key belongs.
func owner(view *topo.View, ks topo.KeyspaceID, raw string) string {
	canonical, err := route.Canonical(testSpaces[ks].Key, raw)
	if err != nil {
		panic(err)
	}
	b, err := route.Bucket(topo.HashMD5, canonical, testSpaces[ks].Buckets)
	if err != nil {
		panic(err)
	}
	slot, ok := view.Slot(ks, b)
	if !ok {
		panic("no slot")
	}
	return string(slot.Owner)
}

func TestHAProxy_TenThousandKeysLandWhereTheViewSays(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	view := mustView(scattered(rng), nil)
	p := threeSites(t, view)
	p.start()
	c := client(t)
	type sent struct {
		ks  topo.KeyspaceID
		key string
		n   int
	}
	var all []sent
	for n := range 10_000 {
		switch n % 4 {
		case 0, 1:
			all = append(all, sent{"users", fmt.Sprintf("user-%d=%x", n, rng.Uint64()), n / 2})
		case 2:
			id := uuid.UUID{}
			for i := range id {
				id[i] = byte(rng.Uint32())
			}
			key := id.String()
			if n%8 == 2 {
				key = strings.ToUpper(key)
			}
			all = append(all, sent{"accounts", key, n})
		default:
			key := fmt.Sprint(rng.Int64N(1 << 40))
			if n%16 == 3 {
				key = "+00" + key
			} else if n%16 == 7 {
				key = "-" + key
			}
			all = append(all, sent{"numbers", key, n})
		}
	}
	for _, v := range vectors(t) {
		if v.Form == topo.TextKey && v.Buckets == 1024 && strings.IndexFunc(v.Raw, func(r rune) bool { return r < ' ' || r == 127 }) < 0 && strings.TrimSpace(v.Raw) == v.Raw {
			all = append(all, sent{"users", v.Raw, 0}, sent{"users", v.Raw, 1})
		}
	}
	var wg sync.WaitGroup
	var next, wrong atomic.Int64
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(all)); i = next.Add(1) - 1 {
				s := all[i]
				want := owner(view, s.ks, s.key)
				if got, err := p.where(c, keyed(s.ks, s.key, s.n)); (err != nil || got != want) && wrong.Add(1) < 10 {
					t.Errorf("seed %d: key %q of %s went to %q (%v), want %s", seed, s.key, s.ks, got, err, want)
				}
			}
		})
	}
	wg.Wait()
	if wrong.Load() > 0 {
		t.Errorf("%d of %d keys went elsewhere", wrong.Load(), len(all))
	}
}

// What routes say, and what the proxy cannot judge.
func TestHAProxy_RoutesAsAGatewayDoes(t *testing.T) {
	t.Parallel()
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{
		"users":    {Buckets: 1024, Hash: "md5", Ranges: []topo.Range{{First: 0, Last: 0, Owner: "c", Epoch: 1, State: topo.Open}, {First: 1, Last: 1023, Owner: "b", Epoch: 1, State: topo.Open}}},
		"accounts": {Buckets: 256, Hash: "md5", Ranges: []topo.Range{{Last: 255, Owner: "b", Epoch: 1, State: topo.Open}}},
		"numbers":  {Buckets: 16384, Hash: "md5", Ranges: []topo.Range{{Last: 16383, Owner: "d", Epoch: 1, State: topo.Open}}}, // a site that the proxy does not know
		"catalog":  {Buckets: 1, Hash: "md5", Ranges: []topo.Range{{Owner: "c", Epoch: 1, State: topo.Open}}},
	})
	p := threeSites(t, mustView(o, nil))
	p.start()
	c := client(t)
	long := strings.Repeat("x", 600)
	for _, test := range []struct {
		want string
		req  *http.Request
	}{
		{"b", newRequest("POST", "/users", "X-User", "u")},
		{"b", newRequest("GET", "/users/1/x?user=u", "X-User", "")},
		{"a", newRequest("POST", "/users")}, // without a key: refused there
		{"a", newRequest("POST", "/users", "X-User", "u", "X-User", "v")},
		{"a", newRequest("POST", "/users", "X-User", long)},
		{"a", newRequest("POST", "/usersx", "X-User", "u")},
		{"a", newRequest("POST", "/%75sers", "X-User", "u")},
		{"b", newRequest("POST", "/users/mine", "X-User", "u")},
		{"c", newRequest("POST", "/users/mine")}, // home: bucket 0
		{"a", newRequest("GET", "/near", "X-User", "u")},
		{"b", newRequest("POST", "/near", "X-User", "u")},
		{"a", newRequest("GET", "/accounts")},
		{"a", newRequest("GET", "/accounts", "Cookie", "account=no-uuid")},
		{"a", newRequest("GET", "/numbers/7")},
		{"a", newRequest("GET", "/numbers/seven")},
		{"c", newRequest("POST", "/catalog/1")},
		{"b", newRequest("POST", "/catalog/1", "X-User", "u", "Host", "www.Shop.example:80")},
		{"c", newRequest("GET", "/catalog/1", "X-User", "u", "Host", "www.shop.example")},
		{"a", newRequest("GET", "/")},
	} {
		if got, err := p.where(c, test.req); err != nil || got != test.want {
			t.Errorf("%s %s %v: %q %v, want %s", test.req.Method, test.req.URL, test.req.Header, got, err, test.want)
		}
	}
}

// Under load every bucket changes its owner at each swap: nobody is answered by the old owner once the new one has answered,
// whatever the key, and nobody is answered by neither.
func TestHAProxy_SwapsAllAtOnce(t *testing.T) {
	t.Parallel()
	owned := func(version uint64) *topo.View {
		placements := map[topo.KeyspaceID]topo.Placement{}
		for ks, space := range testSpaces {
			placements[ks] = topo.Placement{Buckets: space.Buckets, Hash: topo.HashMD5, Ranges: []topo.Range{
				{Last: topo.BucketID(space.Buckets - 1), Owner: topo.SiteID([]string{"b", "c"}[version%2]), Epoch: topo.Epoch(version), State: topo.Open}}}
		}
		o := topo.NewOwnership(placements)
		o.Version = version
		o, err := topo.DecodeOwnership(o.Encode()) // sealed anew
		return mustView(o, err)
	}
	p := threeSites(t, owned(1))
	p.start()
	c := client(t)
	publish, swapped := p.follow(owned(1))
	await(t, swapped, owned(1))

	// step is the version that is published; seen says that an answer under it has come.
	type step struct {
		version uint64
		seen    atomic.Bool
		answers atomic.Int64
	}
	var now atomic.Pointer[step]
	now.Store(&step{version: 1})
	now.Load().seen.Store(true)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 6 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				s := now.Load()
				mustBeNew := s.seen.Load()
				ks := topo.KeyspaceID([]string{"users", "numbers"}[n%2])
				got, err := p.where(c, keyed(ks, fmt.Sprint(w*1_000_000+n), n/2))
				fresh, stale := []string{"b", "c"}[s.version%2], []string{"c", "b"}[s.version%2]
				switch {
				case err != nil || got != fresh && got != stale:
					t.Errorf("step %d: %q, %v", s.version, got, err)
					return
				case now.Load() != s: // the next step began meanwhile
				case got == fresh:
					s.seen.Store(true)
				case mustBeNew:
					t.Errorf("step %d: a key went to %s after one had gone to %s", s.version, stale, fresh)
					return
				}
				s.answers.Add(1)
			}
		})
	}
	for version := uint64(2); version < 22 && !t.Failed(); version++ {
		s := &step{version: version}
		now.Store(s)
		publish(owned(version))
		await(t, swapped, owned(version))
		s.seen.Store(true) // the follower has verified it
		before := s.answers.Load()
		eventually(t, "answers after a swap", func() bool { return t.Failed() || s.answers.Load() > before+100 })
	}
	stop()
	wg.Wait()
}

// A bucket that moves goes to this site's gateways, which hold; and then to its new owner.
func TestHAProxy_FollowsASwitch(t *testing.T) {
	t.Parallel()
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 1024, Hash: "md5", Ranges: []topo.Range{{Last: 1023, Owner: "b", Epoch: 1, State: topo.Open}}},
		"accounts": {Buckets: 256, Hash: "md5", Ranges: []topo.Range{{Last: 255, Owner: "b", Epoch: 1, State: topo.Open}}},
		"numbers":  {Buckets: 16384, Hash: "md5", Ranges: []topo.Range{{Last: 16383, Owner: "b", Epoch: 1, State: topo.Open}}},
		"catalog":  {Buckets: 1, Hash: "md5", Ranges: []topo.Range{{Owner: "b", Epoch: 1, State: topo.Open}}}})
	first := mustView(o, nil)
	p := threeSites(t, first)
	p.start()
	c := client(t)
	publish, swapped := p.follow(first)
	expect := func(what string, v *topo.View, site string) {
		t.Helper()
		await(t, swapped, v)
		if got, err := p.where(c, newRequest("POST", "/users", "X-User", "user-1")); err != nil || got != site {
			t.Errorf("%s: %q %v, want %s", what, got, err, site)
		}
		if got, err := p.where(c, newRequest("POST", "/users", "X-User", "user-2")); err != nil || got != "b" {
			t.Errorf("%s, another bucket: %q %v", what, got, err)
		}
		if m, err := ReadFile(p.h.File); err != nil || NewMap(v).differs(m) != "" {
			t.Errorf("%s: the file is not in step: %v %s", what, err, NewMap(v).differs(m))
		}
	}
	expect("settled", first, "b")
	b83 := topo.SpansOf(83) // user-1
	next, err := o.StartMove("users", b83, "h1", "c")
	moving := mustView(next, err)
	publish(moving)
	expect("moving", moving, "a")
	next, err = next.CommitMove("users", b83, "h1")
	committed := mustView(next, err)
	publish(committed)
	expect("committed", committed, "c")

	// Somebody else's hand in the map, and a restart, are mended.
	if err := p.runtime().do(t.Context(), "set map "+p.h.File+" "+viewKey+" 1.1"); err != nil {
		t.Fatal(err)
	}
	expect("mended", committed, "c")
	p.stop()
	if err := NewMap(first).WriteFile(p.h.File); err != nil { // an old file, as from a backup
		t.Fatal(err)
	}
	p.start()
	eventually(t, "started with an old file, and mended", func() bool {
		v, err := p.runtime().Version(context.Background())
		return err == nil && v == NewMap(committed).Version()
	})
}

// A map never goes back, and what cannot be swapped says why.
func TestHAProxy_NeverGoesBack(t *testing.T) {
	t.Parallel()
	o := scattered(rand.New(rand.NewPCG(1, 1)))
	newer := o
	newer.Version++
	newer, err := topo.DecodeOwnership(newer.Encode())
	view := mustView(newer, err)
	p := threeSites(t, view)
	p.start()
	f := Follower{File: p.h.File, Socket: p.socket, Log: discard}
	old := NewMap(mustView(o, nil))
	if err := f.step(t.Context(), old, true); err != errBehind {
		t.Errorf("the file: %v", err)
	}
	if err := os.Remove(p.h.File); err != nil {
		t.Fatal(err)
	}
	if err := f.step(t.Context(), old, true); err != errBehind {
		t.Errorf("the proxy: %v", err)
	}
	if got, err := p.runtime().Read(t.Context()); err != nil || NewMap(view).differs(got) != "" {
		t.Errorf("%v, %s", err, NewMap(view).differs(got))
	}
	for what, r := range map[string]Runtime{"no such map": {p.socket, "/no/such.map"}, "no such socket": {p.socket + "x", p.h.File}} {
		if _, err := r.Version(t.Context()); err == nil {
			t.Errorf("%s: a version", what)
		}
		if err := r.Swap(t.Context(), old); err == nil {
			t.Errorf("%s: swapped", what)
		}
	}
}

// What the specification of the example says becomes a configuration that HAProxy takes, with addresses of all kinds.
func TestHAProxy_TakesTheExamplesConfiguration(t *testing.T) {
	t.Parallel()
	s, err := spec.Load("../../examples/tickets/atoll.yaml")
	if err != nil {
		t.Fatal(err)
	}
	plain, err := ForSite(s, "a")
	if err != nil {
		t.Fatal(err)
	}
	plain.Bind, plain.File = "127.0.0.1:8000", "/atoll.map"
	if text, err := plain.Config(); err != nil || !strings.Contains(text, "option httpchk GET /healthz\n    server g1 127.0.0.1:8080 check inter 2s fall 2 addr 127.0.0.1 port 8081") {
		t.Errorf("%v: a gateway beside the proxy is asked for its health:\n%s", err, text)
	}
	s.Sites["a"].Gateways["g2"] = &spec.Gateway{Listen: "127.0.0.1:8443", Peer: "a.tickets.example:7403", Admin: "127.0.0.1:8082", TLS: &spec.TLSFiles{}}
	s.Sites["a"].Gateways["g3"] = &spec.Gateway{Listen: "192.0.2.1:8080", Peer: "a.tickets.example:7404", Admin: "127.0.0.1:8083"}
	h, err := ForSite(s, "a")
	if err != nil {
		t.Fatal(err)
	}
	h.Remote["b"] = []*url.URL{{Scheme: "https", Host: "localhost"}, {Scheme: "http", Host: "192.0.2.2:8080"}}
	p := newProxy(t, h, mustView(s.FirstOwnership(), nil))
	if text, err := p.h.Config(); err != nil || strings.Contains(text, "httpchk") || !strings.Contains(text, "server b1 localhost:443 ssl verify required ca-file @system-ca sni str(localhost) verifyhost localhost") {
		t.Errorf("%v: g3's health is nowhere to be had, and b is reached by TLS:\n%s", err, text)
	}
	if _, err := ForSite(s, "w"); err == nil {
		t.Error("a witness has no users")
	}
	if _, err := ForSite(s, "x"); err == nil {
		t.Error("there is no such site")
	}
}

func TestMap_ReadsWhatItWrites(t *testing.T) {
	t.Parallel()
	m := NewMap(mustView(scattered(rand.New(rand.NewPCG(2, 2))), nil))
	path := t.TempDir() + "/atoll.map"
	if err := m.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFile(path); err != nil || m.differs(got) != "" || got.Version() != (Version{1, 1}) {
		t.Errorf("%v, %s, view %s", err, m.differs(got), got.Version())
	}
	if m, err := ReadFile(path + "x"); err != nil || len(m) != 0 || m.Version() != (Version{}) {
		t.Errorf("a file that is not there: %v %v", m, err)
	}
	for _, text := range []string{"one", "one two three", "one two\none two"} {
		if _, err := parseLines([]byte(text), 0); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}

func FuzzMap(f *testing.F) {
	f.Add("# x\nusers/1 a\n_view 1.17\n", 0)
	f.Add("0x55 users/1 a\n", 1)
	f.Fuzz(func(t *testing.T, text string, skip int) {
		m, err := parseLines([]byte(text), max(0, min(skip, 2)))
		if err == nil {
			m.Version()
			if m.differs(m) != "" {
				t.Error("differs from itself")
			}
		}
	})
}
