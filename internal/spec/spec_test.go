package spec

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
		"route names no upstream":  {"upstream: shop\n    keyspace: catalog", "upstream: shp\n    keyspace: catalog", `site a has no upstream "shp" (did you mean "shop"?)`},
		"route name twice":         {"- name: seats", "- name: customer", `two routes are named "customer" (route 1 has it already)`},
		"key source ambiguous":     {"[{header: X-Customer}, ", "[{header: X-Customer, query: c}, ", "key source 1 of route customer"},
		"lease below election":     {"duration: 10s", "duration: 2s", "would run out during an election of the store (want at least 3s"},
		"hold shorter than switch": {"max_time: 20s", "max_time: 2s", "shorter than drain_bound + fence_bound"},
		"two agents, one port":     {"      link: a.agent.example:7401\n", "      link: a.agent.example:7401\n    standby_agent:\n      api: a.agent.example:7401\n      link: a.agent.example:7403\n", "standby_agent.api is a.agent.example:7401, which agent.link has already (give the standby"},
		"half a standby agent":     {"      link: a.agent.example:7401\n", "      link: a.agent.example:7401\n    standby_agent: {api: a.agent.example:7405}\n", "link is missing"},
		"reach without standby":    {"    upstreams:\n      shop: http://127.0.0.1:9000    # the", "    reach: {b: {standby_api: 10.0.0.1:7}}\n    upstreams:\n      shop: http://127.0.0.1:9000    # the", "site b has no standby agent to reach"},
		"negative duration":        {"max_lag: 5s", "max_lag: -5s", "max_lag is negative"},
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
	f.Add([]byte("sites: {a: ~}\nroutes: [~]\ntables: {x.y: ~}\nkeyspaces: {u: ~}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Parse("f.yaml", data)
		if err == nil && len(s.FullSites()) == 0 {
			t.Error("a spec without a site was taken")
		}
	})
}
