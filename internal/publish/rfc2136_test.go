package publish

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	wire "github.com/miekg/dns"

	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/supervise"
)

// knot is a real server with the zone live.shop.example, which key "atoll." may update.
type knot struct{ addr string }

const (
	tsigSecret  = "c2VjcmV0IG9mIHRoZSB0ZXN0cywgMzIgYnl0ZXMuLi4="
	otherSecret = "YW5vdGhlciBzZWNyZXQsIGFsc28gMzIgYnl0ZXMuLi4="
)

const knotConf = `
server:
    rundir: %[1]q
    listen: 127.0.0.1@%[2]s
database:
    storage: %[1]q
log:
  - target: stderr
    any: warning
key:
  - id: atoll.
    algorithm: hmac-sha256
    secret: %[3]s
  - id: reader.
    algorithm: hmac-sha512
    secret: %[3]s
acl:
  - id: update
    address: 127.0.0.1
    key: atoll.
    action: update
zone:
  - domain: live.shop.example
    storage: %[1]q
    file: zone
    acl: update
    zonefile-sync: -1
    journal-content: none
`

const knotZone = `$ORIGIN live.shop.example.
@ 3600 SOA ns hostmaster 1 3600 600 86400 30
@ 3600 NS ns
ns 3600 A 127.0.0.1
@ 3600 TXT "not ours"
www 300 CNAME elsewhere.example.
`

func startKnot(t *testing.T) knot {
	t.Helper()
	program := os.Getenv("ATOLL_KNOTD")
	for _, name := range []string{"knotd", "/usr/sbin/knotd"} {
		if path, err := exec.LookPath(name); program == "" && err == nil {
			program = path
		}
	}
	if program == "" {
		t.Skip("no server that takes dynamic updates: knotd is not installed; scripts/install-tools dns installs it, or name one with ATOLL_KNOTD")
	}
	dir := t.TempDir()
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	conf := filepath.Join(dir, "knot.conf")
	for path, text := range map[string]string{conf: fmt.Sprintf(knotConf, dir, port, tsigSecret), filepath.Join(dir, "zone"): knotZone} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	said := &tail{}
	cmd := exec.Command(program, "-c", conf)
	cmd.Stdout, cmd.Stderr = said, said
	p, err := supervise.Start(cmd)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.Stop(10 * time.Second)
		if t.Failed() {
			t.Logf("knotd: %v\n%s", p.Err(), said)
		}
	})
	k := knot{addr}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for bound := time.After(30 * time.Second); ; {
		if resp, err := k.ask("live.shop.example.", wire.TypeSOA); err == nil && resp.Authoritative && len(resp.Answer) == 1 {
			return k
		}
		select {
		case <-tick.C:
		case <-p.Done:
			t.Fatalf("knotd ended: %v\n%s", p.Err(), said)
		case <-bound:
			t.Fatal("knotd does not answer")
		}
	}
}

func (k knot) ask(name string, qtype uint16) (*wire.Msg, error) {
	client := wire.Client{Net: "tcp", Timeout: 5 * time.Second}
	resp, _, err := client.Exchange(new(wire.Msg).SetQuestion(name, qtype), k.addr)
	return resp, err
}

// has is what the server answers for a name: "30 192.0.2.1, …".
func (k knot) has(t *testing.T, name string, qtype uint16) string {
	t.Helper()
	resp, err := k.ask(name, qtype)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, rr := range resp.Answer {
		out = append(out, fmt.Sprint(rr.Header().Ttl, " ", strings.TrimPrefix(rr.String(), rr.Header().String())))
	}
	return strings.Join(out, ", ")
}

func (k knot) serial(t *testing.T) uint32 {
	t.Helper()
	resp, err := k.ask("live.shop.example.", wire.TypeSOA)
	if err != nil || len(resp.Answer) != 1 {
		t.Fatalf("%v, %v", resp, err)
	}
	return resp.Answer[0].(*wire.SOA).Serial
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	k := startKnot(t)
	u, err := NewUpdate(k.addr, "atoll", "hmac-sha256", tsigSecret)
	if err != nil {
		t.Fatal(err)
	}
	const star = "*.live.shop.example"
	doc := testDocument()
	doc.Records = append(doc.Records, dns.RecordSet{Zone: "live.shop.example", Name: star, Type: "A", TTL: 30, Values: []string{"192.0.2.1"}})
	set := func(what string, want int) {
		t.Helper()
		before := k.serial(t)
		if n, err := Document(t.Context(), u, doc); err != nil || n != want {
			t.Errorf("%s: %d changed, %v; want %d", what, n, err, want)
		}
		if moved := k.serial(t) != before; moved != (want > 0) {
			t.Errorf("%s: the zone was changed: %v", what, moved)
		}
	}
	set("the first time", 3)
	set("once more", 0)
	if a, aaaa, any := k.has(t, "live.shop.example.", wire.TypeA), k.has(t, "live.shop.example.", wire.TypeAAAA), k.has(t, "any.live.shop.example.", wire.TypeA); a != "30 192.0.2.1, 30 198.51.100.1" && a != "30 198.51.100.1, 30 192.0.2.1" || aaaa != "30 2001:db8::1" || any != "30 192.0.2.1" {
		t.Errorf("A %s, AAAA %s, any %s", a, aaaa, any)
	}
	doc.Records[0].Values, doc.Records[1].Values = []string{"198.51.100.1"}, nil
	set("a site is lost", 2)
	doc.Records[0].TTL = 60
	set("another TTL", 1)
	if a, aaaa := k.has(t, "live.shop.example.", wire.TypeA), k.has(t, "live.shop.example.", wire.TypeAAAA); a != "60 198.51.100.1" || aaaa != "" {
		t.Errorf("A %s, AAAA %s", a, aaaa)
	}
	if txt := k.has(t, "live.shop.example.", wire.TypeTXT); txt != `3600 "not ours"` {
		t.Errorf("what is not ours: %s", txt)
	}
}

func TestUpdate_Refused(t *testing.T) {
	t.Parallel()
	k := startKnot(t)
	for name, c := range map[string]struct {
		key, algorithm, secret, zone string
		record                       string
		want                         string
	}{
		"unknown key":       {"nobody", "hmac-sha256", tsigSecret, "", "", "it does not know key nobody. with this algorithm, or gives it no right"},
		"another algorithm": {"atoll", "hmac-sha512", tsigSecret, "", "", "it does not know key atoll. with this algorithm"},
		"another secret":    {"atoll", "hmac-sha256", otherSecret, "", "", "its secret of key atoll. is another one"},
		"may not update":    {"reader", "hmac-sha512", tsigSecret, "", "", "it does not know key reader. with this algorithm, or gives it no right"},
		"another zone":      {"atoll", "hmac-sha256", tsigSecret, "shop.test", "shop.test", "the server's rules must let the key"},
		"a name in between": {"atoll", "hmac-sha256", tsigSecret, "", "www.live.shop.example", "www.live.shop.example has a CNAME record; only addresses"},
	} {
		t.Run(name, func(t *testing.T) {
			u, err := NewUpdate(k.addr, c.key, c.algorithm, c.secret)
			if err != nil {
				t.Fatal(err)
			}
			doc := testDocument()
			if c.record != "" {
				doc.Records = doc.Records[:1]
				doc.Records[0].Name = c.record
			}
			if c.zone != "" {
				doc.Records[0].Zone = c.zone
			}
			if n, err := Document(t.Context(), u, doc); err == nil || !strings.Contains(err.Error(), c.want) || n != 0 {
				t.Errorf("%d, %v", n, err)
			}
		})
	}
	if a := k.has(t, "live.shop.example.", wire.TypeA); a != "" {
		t.Errorf("the zone has %s", a)
	}
	if _, err := NewUpdate(k.addr, "atoll", "hmac-sha256", "not base64!"); err == nil || !strings.Contains(err.Error(), "not base64") || strings.Contains(err.Error(), "not base64!") {
		t.Errorf("%v", err)
	}
}

func TestUpdate_ServerAway(t *testing.T) {
	t.Parallel()
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	u, err := NewUpdate(addr, "atoll", "hmac-sha256", tsigSecret)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Document(context.Background(), u, testDocument()); err == nil || !strings.Contains(err.Error(), "server "+addr) {
		t.Errorf("%v", err)
	}
}
