package route

import (
	"crypto/md5"
	"fmt"
	"math/big"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/atollhq/atoll/topo"
)

// The twin is the same job done without thought for speed: standard library parsers, big integers, the document
// itself in place of the compiled view.

func twinMatch(routes []topo.Route, r *http.Request) (topo.Route, bool) {
	type hit struct {
		route          topo.Route
		path, host, mm int
	}
	var hits []hit
	for _, route := range routes {
		prefix := strings.TrimSuffix(route.Path, "/")
		if !strings.HasPrefix(r.URL.Path+"/", prefix+"/") {
			continue
		}
		if len(route.Methods) > 0 && !strings.Contains(" "+strings.Join(route.Methods, " ")+" ", " "+r.Method+" ") {
			continue
		}
		hosts := route.Hosts
		if len(hosts) == 0 {
			hosts = []string{""}
		}
		for _, h := range hosts {
			rank := -1
			switch host := (&url.URL{Host: r.Host}).Hostname(); {
			case h == "":
				rank = 0
			case strings.HasPrefix(h, "*.") && strings.HasSuffix(host, h[1:]):
				rank = len(h)
			case h == host:
				rank = 1000
			}
			if rank >= 0 {
				hits = append(hits, hit{route, strings.Count(prefix, "/"), rank, min(1, len(route.Methods))})
			}
		}
	}
	if len(hits) == 0 {
		return topo.Route{}, false
	}
	sort.SliceStable(hits, func(i, j int) bool {
		a, b := hits[i], hits[j]
		return fmt.Sprintf("%03d %04d %d", a.path, a.host, a.mm) > fmt.Sprintf("%03d %04d %d", b.path, b.host, b.mm)
	})
	return hits[0].route, true
}

func twinKey(route topo.Route, r *http.Request) (string, Reason) {
	for _, k := range route.Key {
		var values []string
		switch {
		case k.Header != "":
			values = r.Header.Values(k.Header)
		case k.Cookie != "":
			for _, c := range r.CookiesNamed(k.Cookie) {
				values = append(values, c.Value)
			}
		case k.Path > 0:
			if parts := strings.Split(r.URL.EscapedPath(), "/"); k.Path < len(parts) {
				v, _ := url.PathUnescape(parts[k.Path])
				values = []string{v}
			}
		default:
			q, err := url.ParseQuery(r.URL.RawQuery)
			if err != nil {
				return "", MalformedKey
			}
			values = q[k.Query]
		}
		if len(values) > 1 {
			return "", DuplicateKey
		}
		if len(values) == 1 && values[0] != "" {
			return values[0], None
		}
	}
	return "", None
}

func twinBucket(key string, n int) topo.BucketID {
	sum := new(big.Int)
	sum.SetString(fmt.Sprintf("%x", md5.Sum([]byte(key)))[:8], 16)
	return topo.BucketID(sum.Mod(sum, big.NewInt(int64(n))).Int64())
}

func twinDecide(s topo.Ownership, here topo.SiteID, opened uint64, came map[string]uint64, ks topo.KeyspaceID, b topo.BucketID, safe, holdReads, nearest bool) (Verdict, topo.SiteID) {
	r, _ := s.At(ks, b)
	switch {
	case r.State == topo.Moving && (!safe || holdReads):
		return Hold, ""
	case r.Owner != here && (!nearest || !safe):
		return Forward, r.Owner
	case !safe && came[fmt.Sprint(ks, b, r.Epoch)] > opened:
		return Hold, ""
	}
	return Local, here
}

var (
	genHost   = rapid.SampledFrom([]string{"", "example.com", "shop.example.com", "a.shop.example.com", "x.example.com:80", "other"})
	genMethod = rapid.SampledFrom([]string{"GET", "HEAD", "POST", "PUT", "DELETE"})
	genKey    = rapid.SampledFrom([]string{"", "user-1", "user-2", "a%2Fb", "ü", "a+b", "0191f2a0-6d3c-7b1e-9d11-5a7c0e4f2b3a"})
	genPath   = rapid.SampledFrom([]string{"/users", "/users/", "/users/me", "/users/me/", "/usersx", "/seats", "/seats/9/reserve", "/near", "/", "/other"})
)

func genRequest(t *rapid.T) *http.Request {
	path := genPath.Draw(t, "path")
	if k := genKey.Draw(t, "segment"); k != "" && strings.HasPrefix(path, "/users") {
		path = strings.TrimSuffix(path, "/") + "/" + strings.ReplaceAll(k, "ü", "%C3%BC")
	}
	target := path
	for i := range rapid.IntRange(0, 2).Draw(t, "parameters") {
		target += string("?&"[min(i, 1)]) + "user=" + url.QueryEscape(genKey.Draw(t, "parameter"))
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		t.Fatal(err)
	}
	r := &http.Request{Method: genMethod.Draw(t, "method"), Host: genHost.Draw(t, "host"), URL: u, Header: http.Header{}}
	for range rapid.IntRange(0, 2).Draw(t, "headers") {
		r.Header.Add("X-User", genKey.Draw(t, "header"))
	}
	for range rapid.IntRange(0, 2).Draw(t, "cookies") {
		r.Header.Add("Cookie", "user="+strings.Trim(genKey.Draw(t, "cookie"), "ü")+"; other=1")
	}
	return r
}

func TestTwin(t *testing.T) {
	t.Parallel()
	table := mustCompile(t, testRoutes)
	rapid.Check(t, func(t *rapid.T) {
		doc := topo.NewOwnership(ownershipPlacements())
		here := rapid.SampledFrom([]topo.SiteID{"a", "b"}).Draw(t, "here")
		v, _ := topo.NewView(doc)
		site := First(here, v, rapid.Bool().Draw(t, "gated"))
		came := map[string]uint64{}
		if site.since["catalog"][0] > 0 || site.since["users"][1023] > 0 {
			note(came, topo.Ownership{}, doc, here)
		}
		for range rapid.IntRange(0, 12).Draw(t, "changes") {
			next, ok := genChange(t, doc)
			if !ok {
				continue
			}
			note(came, doc, next, here)
			v, err := topo.NewView(next)
			if err != nil {
				t.Fatal(err)
			}
			doc, site = next, site.Next(v)
		}
		opened := rapid.Uint64Range(0, doc.Version).Draw(t, "opened")
		for range 8 {
			compare(t, table, site, doc, came, opened, genRequest(t))
		}
	})
}

func compare(t *rapid.T, table *Table, site *Site, doc topo.Ownership, came map[string]uint64, opened uint64, r *http.Request) {
	got, reason := table.Match(&Request{Method: r.Method, Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery, Header: r.Header})
	route, ok := twinMatch(testRoutes, r)
	if !ok {
		if reason != NoRoute {
			t.Fatalf("%s: %v", r.URL, reason)
		}
		return
	}
	keyed, bucket := false, topo.BucketID(0)
	if space := testSpaces[route.Keyspace]; space.Buckets == 1 {
		keyed = true
	} else if space.Buckets > 1 {
		key, why := twinKey(route, r)
		if why == None && key == "" && route.WithoutKey == topo.RefuseKeyless {
			why = NoKey
		}
		if reason != why {
			t.Fatalf("%s: reason %q, want %q", r.URL, reason, why)
		}
		if reason != None {
			return
		}
		keyed = key != "" || route.WithoutKey == topo.HomeKeyless
		if key != "" {
			bucket = twinBucket(key, space.Buckets)
		}
	}
	if reason != None || got.Route.Name != route.Name || got.Keyed != keyed || got.Bucket != bucket {
		t.Fatalf("%s %s: %s %v %d (%s), want %s %v %d", r.Method, r.URL, got.Route.Name, got.Keyed, got.Bucket, reason, route.Name, keyed, bucket)
	}
	d := site.Decide(got, opened)
	want, where := Local, site.Here
	if keyed {
		want, where = twinDecide(doc, site.Here, opened, came, route.Keyspace, bucket, SafeMethod(r.Method), route.HoldReads, route.Reads == topo.NearestReads)
	}
	if d.Verdict != want || want != Hold && d.Site != where {
		t.Fatalf("%s %s at %s: %s %s, want %s %s", r.Method, r.URL, site.Here, d.Verdict, d.Site, want, where)
	}
}

func ownershipPlacements() map[topo.KeyspaceID]topo.Placement {
	return ownership(nil).Keyspaces
}

// note records, for every bucket that is here under an epoch that it did not have here before, the version that
// brought it.
func note(came map[string]uint64, old, next topo.Ownership, here topo.SiteID) {
	for ks, p := range next.Keyspaces {
		for b := range topo.BucketID(p.Buckets) {
			is, _ := next.At(ks, b)
			was, ok := old.At(ks, b)
			if is.Owner == here && (!ok || was.Owner != here || was.Epoch != is.Epoch) {
				came[fmt.Sprint(ks, b, is.Epoch)] = next.Version
			}
		}
	}
}

func genChange(t *rapid.T, doc topo.Ownership) (topo.Ownership, bool) {
	ks := rapid.SampledFrom([]topo.KeyspaceID{"users", "catalog"}).Draw(t, "keyspace")
	first := topo.BucketID(0)
	last := first
	if ks == "users" {
		first = rapid.SampledFrom([]topo.BucketID{0, 83, 400, 512}).Draw(t, "first")
		last = first + topo.BucketID(rapid.IntRange(0, 200).Draw(t, "count"))
	}
	spans := topo.Spans{{First: first, Last: last}}
	next, err := doc, error(nil)
	switch rapid.IntRange(0, 2).Draw(t, "step") {
	case 0:
		next, err = doc.StartMove(ks, spans, topo.HandoverID(fmt.Sprint("h", doc.Version)), rapid.SampledFrom([]topo.SiteID{"a", "b", "c"}).Draw(t, "to"))
	case 1:
		next, err = endMove(doc, topo.Ownership.CommitMove)
	default:
		next, err = endMove(doc, topo.Ownership.AbortMove)
	}
	return next, err == nil && next.Version > doc.Version
}

func endMove(doc topo.Ownership, end func(topo.Ownership, topo.KeyspaceID, topo.Spans, topo.HandoverID) (topo.Ownership, error)) (topo.Ownership, error) {
	for ks, p := range doc.Keyspaces {
		for _, r := range p.Ranges {
			if r.State == topo.Moving {
				return end(doc, ks, topo.Spans{{First: r.First, Last: r.Last}}, r.Handover)
			}
		}
	}
	return doc, nil
}

func FuzzExtract(f *testing.F) {
	f.Add("GET", "/users/user-1", "user=x", "user=y; a=b", "user-1", "example.com")
	f.Add("POST", "/users/%75ser-1/..%2f", "u%73er=a;b", `user="q"`, "", "[::1]:80")
	table := mustCompile(f, testRoutes)
	f.Fuzz(func(t *testing.T, method, path, query, cookies, key, host string) {
		req := Request{Method: method, Host: host, Path: path, RawQuery: query, Header: map[string][]string{"Cookie": {cookies}}}
		if key != "" {
			req.Header["X-User"] = []string{key}
		}
		if u, err := url.ParseRequestURI(path); err == nil {
			req.Path, req.RawPath = u.Path, u.RawPath
		}
		got, reason := table.Match(&req)
		if reason == None && got.Route == nil || reason != None && got.Keyed {
			t.Fatalf("%+v %q", got, reason)
		}
		if reason == None && got.Keyed && int(got.Bucket) >= testSpaces[got.Route.Keyspace].Buckets {
			t.Fatalf("bucket %d", got.Bucket)
		}
		// A key that came from the header alone is the one that the header says.
		if reason == None && got.Route.Name == "users" && key != "" {
			if want := twinBucket(key, 1024); got.Bucket != want {
				t.Fatalf("bucket %d, want %d", got.Bucket, want)
			}
		}
	})
}
