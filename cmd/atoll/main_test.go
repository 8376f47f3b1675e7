package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/spec"
)

func TestMain(m *testing.M) { pgserver.Main(m) }

// run runs a command line and returns what it printed.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(append([]string{"--log-level", "error"}, args...))
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

func TestHelp_TeachesWithAnExample(t *testing.T) {
	t.Parallel()
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Short == "" {
			t.Errorf("%s: no word on what it does", c.CommandPath())
		}
		if c.Example == "" && !(c.HasParent() && c.Parent().Example != "") {
			t.Errorf("%s: neither it nor its parent shows an example", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	root := newRoot()
	walk(root)
	for _, name := range []string{"validate", "apply", "up", "agent", "gateway", "store", "status", "switch", "lab", "ca", "remove", "dns"} {
		if c, _, err := root.Find([]string{name}); err != nil || c.Name() != name {
			t.Errorf("no command %s: %v", name, err)
		}
	}
}

// place is a folder with a spec whose ports are free, certificates and a database that is not there.
type place struct {
	dir, file string
	addr      map[string]string // what a port of site a is for → address
}

func newPlace(t *testing.T) *place {
	t.Helper()
	p := &place{dir: t.TempDir(), addr: map[string]string{}}
	p.file = filepath.Join(p.dir, "atoll.yaml")
	freeAddr := func() string {
		addr, err := loopback.Addr()
		if err != nil {
			t.Fatal(err)
		}
		return addr
	}
	text := string(spec.Sample())
	for _, site := range []string{"b", "w", "a"} { // a last: its addresses are the ones that stay in addr
		for _, part := range []string{"store.example:2379", "store.example:2380", "agent.example:7400", "agent.example:7401", "gateway.example:7402"} {
			addr := freeAddr()
			text = strings.ReplaceAll(text, site+"."+part, addr)
			p.addr[part] = addr
		}
	}
	for _, fixed := range []string{"127.0.0.1:8080", "127.0.0.1:8081"} {
		addr := freeAddr()
		text = strings.ReplaceAll(text, fixed, addr)
		p.addr[fixed] = addr
	}
	text = strings.ReplaceAll(text, "      listen_client: 0.0.0.0:2379\n", "")
	text = strings.ReplaceAll(text, "      listen_peer: 0.0.0.0:2380\n", "")
	if err := os.WriteFile(p.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"ca", "init"}, {"ca", "issue", "site", "a"}, {"ca", "issue", "operator", "kim"}} {
		if out, err := run(t, append(args, "-f", p.file)...); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	return p
}

func wantError(t *testing.T, err error, words ...string) {
	t.Helper()
	for _, w := range words {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("error: %v\nwant it to say %q", err, w)
		}
	}
}

func TestErrors_SayWhatToDo(t *testing.T) {
	p := newPlace(t)
	broken := filepath.Join(p.dir, "broken.yaml")
	text := strings.Replace(string(spec.Sample()), "witness: true", "witnes: true", 1)
	if err := os.WriteFile(broken, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ATOLL_DSN", "")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"validate", "-f", broken}, []string{"broken.yaml:49:5", `unknown key "witnes"`, `did you mean "witness"?`}},
		{[]string{"validate", "-f", "nowhere.yaml"}, []string{"nowhere.yaml", "--sample"}},
		{[]string{"apply", "-f", p.file}, []string{`required flag(s) "site" not set`}},
		{[]string{"apply", "-f", p.file, "--site", "z"}, []string{"--site z", "[a b w]"}},
		{[]string{"apply", "-f", p.file, "--site", "w"}, []string{"site w is a witness"}},
		{[]string{"apply", "-f", p.file, "--site", "a"}, []string{"environment variable ATOLL_DSN is not set"}},
		{[]string{"gateway", "-f", p.file, "--site", "a", "--name", "g9"}, []string{`--name "g9"`, "[g1]"}},
		{[]string{"gateway", "-f", p.file, "--site", "b"}, []string{"site-b.crt", "atoll ca issue"}},
		{[]string{"status", "-f", p.file}, []string{"no agent answers", "atoll up"}},
		{[]string{"status", "-f", p.file, "--at", "w"}, []string{"--at w", "[a b]"}},
		{[]string{"status", "-f", p.file, "--as", "operator-lee"}, []string{"operator-lee.crt"}},
		{[]string{"switch", "-f", p.file}, []string{"required flag(s)"}},
		{[]string{"ca", "issue", "planet", "x", "-f", p.file}, []string{"planet"}},
		{[]string{"--log-format", "xml", "store", "-f", p.file, "--site", "a"}, []string{"want text or json"}},
		{[]string{"frobnicate"}, []string{"unknown command"}},
	} {
		_, err := run(t, c.args...)
		if err == nil {
			t.Errorf("%v succeeded", c.args)
		}
		wantError(t, err, c.want...)
	}
	for dsn, words := range map[string][]string{
		"postgres://atoll@127.0.0.1:1/shop?sslmode=disable": {"does not answer", "nothing was changed"},
		"postgres://%": {"DSN"},
	} {
		t.Setenv("ATOLL_DSN", dsn)
		t.Setenv("ATOLL_ADMIN_DSN", dsn)
		_, err := run(t, "apply", "-f", p.file, "--site", "a")
		wantError(t, err, words...)
	}
}

// Every process says which address is taken.
func TestPortInUse(t *testing.T) {
	p := newPlace(t)
	t.Setenv("ATOLL_DSN", "postgres://atoll@127.0.0.1:1/shop?sslmode=disable")
	for part, args := range map[string][]string{
		"store.example:2379":   {"store"},
		"store.example:2380":   {"store"},
		"agent.example:7400":   {"agent"},
		"agent.example:7401":   {"agent"},
		"127.0.0.1:8080":       {"gateway"},
		"127.0.0.1:8081":       {"gateway"},
		"gateway.example:7402": {"gateway"},
	} {
		l, err := net.Listen("tcp", p.addr[part])
		if err != nil {
			t.Fatal(err)
		}
		_, err = run(t, append(args, "-f", p.file, "--site", "a")...)
		wantError(t, err, "in use", p.addr[part])
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// From the command line: what is in the way, the statements, apply, nothing left to do, remove.
func TestApplyAndRemove(t *testing.T) {
	p := newPlace(t)
	srv := pgserver.Shared(t)
	db := srv.Database(t)
	t.Setenv("ATOLL_DSN", srv.DSN("cli_agent", db))
	t.Setenv("ATOLL_ADMIN_DSN", srv.DSN(pgserver.Superuser, db))
	on := func(sql string) {
		t.Helper()
		execSQL(t, srv.DSN(pgserver.Superuser, db), sql)
	}
	on("CREATE ROLE cli_agent LOGIN REPLICATION")
	t.Cleanup(func() {
		execSQL(t, srv.DSN(pgserver.Superuser, db), "DROP OWNED BY cli_agent")
		execSQL(t, srv.DSN(pgserver.Superuser, "postgres"), "DROP ROLE cli_agent")
	})
	apply := []string{"apply", "-f", p.file, "--site", "a"}
	_, err := run(t, apply...)
	wantError(t, err, "table public.customers does not exist", "nothing was changed")
	for _, name := range []string{"orders", "payments", "outbox"} {
		on(fmt.Sprintf("CREATE TABLE %s (customer_id uuid, id uuid, PRIMARY KEY (customer_id, id))", name))
	}
	on("CREATE TABLE customers (id uuid PRIMARY KEY); CREATE TABLE events (id uuid PRIMARY KEY); CREATE TABLE seats (id uuid PRIMARY KEY); CREATE TABLE sessions (id int)")

	for _, c := range []struct {
		args []string
		want string
	}{
		{append(apply, "--dry-run"), "statement(s) to run"},
		{append(apply, "--print-sql"), "CREATE SCHEMA atoll;"},
		{apply, "site a is prepared"},
		{append(apply, "--dry-run"), "nothing to do"},
		{append(apply, "--json", "--dry-run"), `"problems": []`},
	} {
		out, err := run(t, c.args...)
		if err != nil || !strings.Contains(out, c.want) {
			t.Fatalf("%v: %v\n%s\nwant %q", c.args, err, out, c.want)
		}
	}
	_, err = run(t, "remove", "-f", p.file, "--site", "a")
	wantError(t, err, "say --yes")
	if out, err := run(t, "remove", "-f", p.file, "--site", "a", "--yes"); err != nil || !strings.Contains(out, "site a: removed") {
		t.Fatalf("%v\n%s", err, out)
	}
	on("DO $$ BEGIN IF to_regnamespace('atoll') IS NOT NULL THEN RAISE 'the schema is still there'; END IF; END $$")
}
