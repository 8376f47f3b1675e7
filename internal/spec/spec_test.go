package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/atollhq/atoll/topo"
)

func TestSample_IsValid(t *testing.T) {
	t.Parallel()
	s, err := Parse("sample.yaml", Sample())
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Keyspaces["catalog"]; got.Buckets != 1 || got.Hash != topo.HashMD5 {
		t.Errorf("catalog is %+v; want one bucket and the default hash", got)
	}
	if got := s.Policies.Lease.Margin; got != time.Second {
		t.Errorf("lease margin %v; want a tenth of the duration", got)
	}
	if got := s.FullSites(); len(got) != 2 || got[0] != "a" {
		t.Errorf("full sites %v; want a and b", got)
	}
}

func TestLoad_FoldersAreRelativeToTheFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "atoll.yaml")
	if err := os.WriteFile(path, Sample(), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "pki"); s.PKI != want {
		t.Errorf("pki %s, want %s", s.PKI, want)
	}
	if _, err := Load(path + ".missing"); err == nil || !strings.Contains(err.Error(), "--sample") {
		t.Errorf("missing file: %v; want a hint at --sample", err)
	}
}

// Each case changes the sample in one place; want stands in the error together with the place.
func TestParse_RefusesWithPlaceAndHint(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ old, new, want string }{
		"unknown key":              {"    witness: true", "    witnes: true", `s.yaml:49:5: unknown key "witnes" (did you mean "witness"?)`},
		"unknown nested key":       {"fenced_retry: true     #", "fence_retry: true     #", `unknown key "fence_retry" (did you mean "fenced_retry"?)`},
		"wrong type":               {"version: 1", "version: one", "s.yaml:3:10:"},
		"duplicate key":            {"deployment: tickets", "deployment: tickets\ndeployment: shop", `s.yaml:5:1: mapping key "deployment" already defined at [4:1]`},
		"newer version":            {"version: 1", "version: 9", "version 9 is newer than this atoll reads (1) (upgrade atoll)"},
		"bad name":                 {"deployment: tickets", "deployment: Tickets_1", `s.yaml:4:1: name "Tickets_1"`},
		"seed unknown":             {"seed: a ", "seed: c ", `s.yaml:5:1: seed "c" is not a site`},
		"seed is witness":          {"seed: a ", "seed: w ", `seed "w" is a witness`},
		"DSN in the file":          {"dsn_env: ATOLL_DSN   ", "dsn_env: postgres://u:p@h/db  ", "holds a DSN, not the name of a variable"},
		"bad address":              {"api: a.agent.example:7400", "api: a.agent.example", `s.yaml:17:7: address "a.agent.example" is not HOST:PORT`},
		"plain HTTP to the world":  {"listen: 127.0.0.1:8080       #", "listen: 0.0.0.0:8080       #", "would take plain HTTP beyond loopback (add tls:"},
		"admin beyond loopback":    {"admin: 127.0.0.1:8081        #", "admin: 0.0.0.0:8081        #", "is not a loopback address"},
		"buckets not a power":      {"buckets: 1024\n", "buckets: 1000\n", "1000 buckets; want a power of two up to 65536"},
		"unknown key form":         {"key: uuid  ", "key: guid  ", `unknown key form "guid" (want text, integer or uuid)`},
		"table without schema":     {"public.sessions:", "sessions:", `table "sessions" has no schema`},
		"unknown kind":             {"kind: local}", "kind: loca}", `unknown kind "loca" (want keyed, home, shared or local)`},
		"keyspace typo":            {"public.orders:    {kind: keyed, keyspace: users", "public.orders:    {kind: keyed, keyspace: user", `keyspace "user" is not declared (did you mean "users"?)`},
		"keyed without key":        {"public.payments:  {kind: keyed, keyspace: users, key: customer_id}", "public.payments:  {kind: keyed, keyspace: users}", "keyed table public.payments names no key"},
		"home in many buckets":     {"public.events:    {kind: home, keyspace: catalog}", "public.events:    {kind: home, keyspace: users}", "which has many buckets"},
		"route without answer":     {"    without_key: nearest   #", "    #", "route customer has no without_key (say what happens"},
		"unknown reads":            {"    fenced_retry: true     #", "    reads: local     #", `unknown reads "local" (want owner or nearest)`},
		"strong and from a copy":   {"    fenced_retry: true     #", "    reads: nearest\n    hold_reads: true     #", "asks for strong reads and for reads from a copy"},
		"unknown session":          {"    fenced_retry: true     #", "    session: url     #", `unknown session "url" (want header or cookie)`},
		"fresher than sites ask":   {"    fenced_retry: true     #", "    reads: nearest\n    max_staleness: 500ms     #", "max_staleness 500ms is less than 2s (sites ask each other once a second"},
		"an owner's age":           {"    fenced_retry: true     #", "    max_staleness: 5s     #", "bounds the age of a copy and reads at the owner (add reads: nearest"},
		"stale without a bound":    {"    fenced_retry: true     #", "    reads: nearest\n    when_stale: serve     #", "has when_stale but no max_staleness"},
		"unknown when_stale":       {"    fenced_retry: true     #", "    reads: nearest\n    max_staleness: 5s\n    when_stale: perhaps     #", `unknown when_stale "perhaps" (want owner, refuse or serve)`},
		"strict without session":   {"    fenced_retry: true     #", "    session_strict: true     #", "has session_strict but no session"},
		"route names no upstream":  {"upstream: shop\n    keyspace: catalog", "upstream: shp\n    keyspace: catalog", `site a has no upstream "shp" (did you mean "shop"?)`},
		"route name twice":         {"- name: seats", "- name: customer", `two routes are named "customer" (route 1 has it already)`},
		"key source ambiguous":     {"[{header: X-Customer}, ", "[{header: X-Customer, query: c}, ", "key source 1 of route customer"},
		"unknown algorithm":        {"policies:\n", "policies:\n  jwt: {issuer: i, audience: [a], keys_file: k, algorithms: [none]}\n", `s.yaml:106:62: unknown algorithm "none"`},
		"secret from a URL":        {"policies:\n", "policies:\n  jwt: {issuer: i, audience: [a], keys_url: 'https://h/k', algorithms: [HS256]}\n", "HS256 takes a secret"},
		"tokens without audience":  {"policies:\n", "policies:\n  jwt: {issuer: i, keys_file: k}\n", "jwt has no audience"},
		"plain keys URL":           {"policies:\n", "policies:\n  jwt: {issuer: i, audience: [a], keys_url: 'http://h/k'}\n", "is not an https URL"},
		"tokens without keys":      {"[{header: X-Customer}, {cookie: customer}]   # tried", "[{jwt: sub}]   # tried", "which nothing says how to verify (add policies.jwt"},
		"nobody asks":              {"[{header: X-Customer}, {cookie: customer}]   # tried", "[{certificate: cn}]   # tried", "which no gateway asks for (add tls.client_ca"},
		"acme without domains":     {"admin: 127.0.0.1:8081        #", "tls: {acme: {email: o@shop.example}}\n        admin: 127.0.0.1:8081        #", "acme has no domains"},
		"acme with a wildcard":     {"admin: 127.0.0.1:8081        #", "tls: {acme: {domains: ['*.shop.example']}}\n        admin: 127.0.0.1:8081        #", "is not a name that a certificate can be obtained for"},
		"acme and files":           {"admin: 127.0.0.1:8081        #", "tls: {cert: c, key: k, acme: {domains: [shop.example]}}\n        admin: 127.0.0.1:8081        #", "leave one of the two out"},
		"no network":               {"admin: 127.0.0.1:8081        #", "trusted_proxies: [10.0.0.0/8, ten]\n        admin: 127.0.0.1:8081        #", `"ten" is neither an address nor a network`},
		"everybody is trusted":     {"admin: 127.0.0.1:8081        #", "proxy_protocol: [0.0.0.0/0]\n        admin: 127.0.0.1:8081        #", "is everybody: whoever connects could name any client"},
		"unknown field":            {"[{header: X-Customer}, {cookie: customer}]   # tried", "[{certificate: email}]   # tried", `unknown certificate field "email" (want cn, dns or uri)`},
		"lease below election":     {"duration: 10s", "duration: 2s", "would run out during an election of the store (want at least 3s"},
		"hold shorter than switch": {"max_time: 20s", "max_time: 2s", "shorter than drain_bound + fence_bound"},
		"two agents, one port":     {"      link: a.agent.example:7401\n", "      link: a.agent.example:7401\n    standby_agent:\n      api: a.agent.example:7401\n      link: a.agent.example:7403\n", "standby_agent.api is a.agent.example:7401, which agent.link has already (give the standby"},
		"half a standby agent":     {"      link: a.agent.example:7401\n", "      link: a.agent.example:7401\n    standby_agent: {api: a.agent.example:7405}\n", "link is missing"},
		"reach without standby":    {"    upstreams:\n      shop: http://127.0.0.1:9000    # the", "    reach: {b: {standby_api: 10.0.0.1:7}}\n    upstreams:\n      shop: http://127.0.0.1:9000    # the", "site b has no standby agent to reach"},
		"negative duration":        {"max_lag: 5s", "max_lag: -5s", "max_lag is negative"},
		"upstream without a URL":   {"shop: http://127.0.0.1:9000    #", "shop: 127.0.0.1:9000    #", `s.yaml:28:7: upstream "127.0.0.1:9000" is not an http or https URL (write for example`},
		"empty upstream":           {"shop: http://127.0.0.1:9000    #", "shop:    #", "upstream shop is empty"},
		"unknown key of upstream":  {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discovery: {}}    #", `s.yaml:28:31: unknown key "discovery" (did you mean "discover"?)`},
		"duration of an upstream":  {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', eject: {base: long}}    #", `s.yaml:28:45: base: "long" is not a duration`},
		"ejects more than half":    {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', eject: {share: 0.9}}    #", "share 0.9 is not between 0 and 0.5 (at least half"},
		"discovers nothing":        {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discover: {}}    #", "discover of upstream shop names nothing"},
		"instance without a port":  {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discover: {static: [{address: h}]}}    #", `s.yaml:28:52: address "h" is not HOST:PORT`},
		"instance twice":           {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discover: {static: [{address: 'h:1'}, {address: 'h:1'}]}}    #", "address h:1 is there twice (instance 1 has it already"},
		"health without a path":    {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', health: {interval: 1s}}    #", `health path "" does not begin with /`},
		"fixed limits of nothing":  {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', limits: {fixed: true}}    #", "fixed limits without a number bound nothing (say requests:"},
		"negative limit":           {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', limits: {pending: -1}}    #", "pending is negative"},
		"unknown priority":         {"    fenced_retry: true     #", "    priority: urgent     #", `unknown priority "urgent" (want high, normal or low)`},
		"rate by a key of nobody":  {"upstream: shop         #", "upstream: shop\n    rate: {per: key, rps: 1}         #", "route events has no key to count by (write client or route)"},
		"rate of nothing":          {"upstream: shop         #", "upstream: shop\n    rate: {per: route}         #", "rate of route events: rps 0"},
		"rate per what":            {"upstream: shop         #", "upstream: shop\n    rate: {per: user, rps: 1}         #", `unknown per "user" (want route, key or client)`},
		"a site without a share":   {"upstream: shop         #", "upstream: shop\n    rate: {per: route, rps: 1, shares: {a: 1}}         #", "site b has no share (a site without"},
		"a share of a witness":     {"upstream: shop         #", "upstream: shop\n    rate: {per: route, rps: 1, shares: {a: 1, b: 1, w: 1}}         #", `share of "w", which is not a site with gateways`},
		"moves to nowhere":         {"upstream: shop         #", "upstream: shop\n    move: {to: shp, share: 0.1}         #", `site a has no upstream "shp" (did you mean "shop"?)`},
		"moves to itself":          {"upstream: shop         #", "upstream: shop\n    move: {to: shop, share: 0.1}         #", `route events goes to "shop" already`},
		"a share of percents":      {"upstream: shop         #", "upstream: shop\n    move: {to: shop, share: 25}         #", "share 25 is no share (want 0 to 1"},
		"window of a move":         {"upstream: shop         #", "upstream: shop\n    move: {to: shop, share: 1, window: 1ms}         #", "window of 1ms (want 1s to 1h)"},
		"shadow of itself":         {"upstream: shop         #", "upstream: shop\n    shadow: {to: shop, share: 0.1}         #", `route events goes to "shop" already`},
		"ignores no pointer":       {"upstream: shop         #", "upstream: shop\n    shadow: {to: shop, share: 1, ignore: [Date]}         #", `"Date" does not begin with / (write a JSON pointer`},
		"compares no header":       {"upstream: shop         #", "upstream: shop\n    shadow: {to: shop, share: 1, headers: ['a b']}         #", `"a b" is not the name of a header`},
		"compares nothing":         {"upstream: shop         #", "upstream: shop\n    shadow: {to: shop, share: 1, compare: false, values: true}         #", "nothing is compared (drop it, or compare: false)"},
		"waits too long":           {"upstream: shop         #", "upstream: shop\n    shadow: {to: shop, share: 1, timeout: 5m}         #", "timeout 5m0s of shadow (want at most 1m)"},
		"dns name with a port":     {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discover: {dns: [{name: 'h:80'}]}}    #", `name "h:80" is not a DNS name (write for example`},
		"dns name without a port":  {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discover: {dns: [{name: h}]}}    #", `dns name "h" wants either port or srv`},
		"registers for nothing":    {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discover: {register: true}}    #", `s.yaml:28:52: register: "true" is not a duration (write for example`},
		"registers too long":       {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discover: {register: 1h}}    #", `s.yaml:28:42: register 1h0m0s is not between 2s and 5m0s (30s is a good start`},
		"registers a bad name":     {"shop: http://127.0.0.1:9000    #", "shop: http://127.0.0.1:9000\n      Shop_2: {url: 'http://h', discover: {register: 30s}}    #", `name "Shop_2"`},
		"weight of an instance":    {"shop: http://127.0.0.1:9000    #", "shop: {url: 'http://h', discover: {static: [{address: 'h:1', weight: -1}]}}    #", "weight -1 is not between 1 and 1000"},
		"zone of a gateway":        {"admin: 127.0.0.1:8081        #", "zone: Z!        #", `name "Z!"`},
		"bad duration":             {"max_lag: 5s", "max_lag: soon", `max_lag: "soon" is not a duration (write for example`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := strings.Replace(string(Sample()), c.old, c.new, 1)
			if text == string(Sample()) {
				t.Fatalf("the sample has no %q", c.old)
			}
			_, err := Parse("s.yaml", []byte(text))
			var problems Problems
			if !errors.As(err, &problems) || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got: %v\nwant: %s", err, c.want)
			}
			if problems[0].Line == 0 || problems[0].Column == 0 {
				t.Errorf("%v has no place", problems[0])
			}
		})
	}
}

func TestParse_UpstreamsInBothForms(t *testing.T) {
	t.Parallel()
	long := `shop:
        url: h2c://shop.internal
        timeout: 5s
        discover:
          static: [{address: '10.0.0.1:9000', zone: z1, weight: 2}, {address: '10.0.0.2:9000'}]
        health: {path: /healthz, interval: 2s}
        eject: {unreached: 3, errors: -1, base: 2s}    #`
	s, err := Parse("s.yaml", []byte(strings.Replace(string(Sample()), "shop: http://127.0.0.1:9000    #", long, 1)))
	if err != nil {
		t.Fatal(err)
	}
	short, got := s.Sites["b"].Upstreams["shop"], s.Sites["a"].Upstreams["shop"]
	if *short != (Upstream{URL: "http://127.0.0.1:9000"}) || short.Instances() != nil {
		t.Errorf("%+v", short)
	}
	if got.URL != "h2c://shop.internal" || got.Timeout != 5*time.Second || len(got.Instances()) != 2 || got.Instances()[0] != (Instance{"10.0.0.1:9000", "z1", 2}) ||
		got.Eject != (Eject{Unreached: 3, Errors: -1, Base: 2 * time.Second}) || *got.Health != (HealthCheck{Path: "/healthz", Interval: 2 * time.Second}) {
		t.Errorf("%+v", got)
	}
	for _, u := range []*Upstream{short, got} {
		text, err := yaml.Marshal(u)
		if err != nil {
			t.Fatal(err)
		}
		var back Upstream
		if err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&back); err != nil || !reflect.DeepEqual(back, *u) {
			t.Errorf("%s came back as %+v, %v", text, back, err)
		}
	}
}

// TestUpstreams_TheDocumentsExample: what docs/services.md shows is taken, and means what is said there.
func TestUpstreams_TheDocumentsExample(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/services.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := strings.Split(string(text), "```yaml\n")[1:]
	if len(examples) != 1 {
		t.Fatalf("%d examples in YAML; want one", len(examples))
	}
	example, _, _ := strings.Cut(examples[0], "```")
	var part struct {
		Sites  map[topo.SiteID]*Site `yaml:"sites"`
		Routes []*Route              `yaml:"routes"`
	}
	if err := yaml.NewDecoder(strings.NewReader(example), yaml.Strict()).Decode(&part); err != nil {
		t.Fatal(err)
	}
	// The example leaves out what is not its matter: the rest of a deployment stands around it.
	whole := "version: 1\ndeployment: shop\nseed: a\nkeyspaces: {users: {}}\ntables: {public.item: {kind: keyed, keyspace: users, key: id}}\n" +
		strings.Replace(example, "  a:\n", "  a:\n    store: {client: 'a:1', peer: 'a:2'}\n    database: {dsn_env: ATOLL_DSN}\n", 1)
	s, err := Parse("services.md", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	u := s.Sites["a"].Upstreams["basket"]
	if len(s.Routes) == 0 || len(s.Routes) != len(part.Routes) || len(u.Discover.Static) != 1 || len(u.Discover.DNS) != 2 || u.Health == nil || u.Limits == nil {
		t.Errorf("%+v with %+v", s.Routes, u)
	}
	if got := s.Sites["a"].Registering(); len(got) != 1 || got["basket"] != 30*time.Second {
		t.Errorf("instances that register themselves: %v", got)
	}
}

func TestRouteTableAt_SharesQuotas(t *testing.T) {
	t.Parallel()
	text := strings.Replace(string(Sample()), "upstream: shop         #", "upstream: shop\n    rate: {per: client, rps: 100, burst: 30, shares: {a: 3, b: 1}}         #", 1)
	text = strings.Replace(text, "    gateways:\n", "    gateways:\n      g2: {listen: '127.0.0.1:8090', peer: 'h:1'}\n", 1)
	s, err := Parse("s.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for site, want := range map[topo.SiteID]topo.Rate{"a": {Per: topo.PerClient, PerSecond: 37.5, Burst: 12}, "b": {Per: topo.PerClient, PerSecond: 25, Burst: 8}} {
		for _, r := range s.RouteTableAt(site) {
			if r.Name == "events" && *r.Rate != want || r.Name != "events" && r.Rate != nil {
				t.Errorf("at %s: route %s has %+v", site, r.Name, r.Rate)
			}
		}
	}
}

func TestParse_TwoStoresAndWitnessWithGateway(t *testing.T) {
	t.Parallel()
	text := string(Sample())
	start, end := strings.Index(text, "  w:  "), strings.Index(text, "keyspaces:")
	_, err := Parse("s.yaml", []byte(text[:start]+text[end:]))
	if err == nil || !strings.Contains(err.Error(), "two store members tolerate no loss (add a witness") {
		t.Errorf("two members: %v", err)
	}
	_, err = Parse("s.yaml", []byte(strings.Replace(text, "    witness: true\n", "    witness: true\n    upstreams: {shop: 'http://h:1'}\n", 1)))
	if err == nil || !strings.Contains(err.Error(), "witness w has upstreams") {
		t.Errorf("witness: %v", err)
	}
}

func TestParse_RefusesWhatIsNoSpec(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "# nothing\n", "42", "- a\n", "a: b: c", "\x00", "---\nversion: 1\n---\nversion: 1\n", "sites: {a: ~}", "sites: ~"} {
		if _, err := Parse("s.yaml", []byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

func TestSchema_KnowsWhatTheDecoderKnows(t *testing.T) {
	t.Parallel()
	var doc map[string]any
	if err := json.Unmarshal(Schema(), &doc); err != nil {
		t.Fatal(err)
	}
	for _, key := range knownKeys() {
		if !bytes.Contains(Schema(), []byte(`"`+key+`"`)) {
			t.Errorf("the schema lacks %q", key)
		}
	}
}

func TestDatabase_SecretsComeFromOutside(t *testing.T) {
	t.Setenv("SPEC_TEST_DSN", "postgres://x")
	if got, err := (&Database{DSNEnv: "SPEC_TEST_DSN"}).AdminDSN(); err != nil || got != "postgres://x" {
		t.Errorf("got %q, %v; the agent's DSN serves where no admin's is declared", got, err)
	}
	if _, err := (&Database{DSNEnv: "SPEC_TEST_UNSET"}).DSN(); err == nil || !strings.Contains(err.Error(), "SPEC_TEST_UNSET is not set") {
		t.Errorf("unset variable: %v", err)
	}
	file := filepath.Join(t.TempDir(), "dsn")
	if err := os.WriteFile(file, []byte("postgres://y\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := (&Database{DSNFile: file}).DSN(); err != nil || got != "postgres://y" {
		t.Errorf("got %q, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Sample())
	f.Add(withDNS(dnsSection))
	f.Add([]byte("sites: {a: ~}\nroutes: [~]\ntables: {x.y: ~}\nkeyspaces: {u: ~}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("f.yaml", data)
		if err == nil && len(s.FullSites()) == 0 {
			t.Error("a spec without a site was taken")
		}
	})
}
