package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/spec"
)

// withDNS adds a section dns to a place's spec and returns the address of a's server.
func (p *place) withDNS(t *testing.T, publish string) string {
	t.Helper()
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(p.file)
	if err != nil {
		t.Fatal(err)
	}
	section := "\ndns:\n  zones: [live.shop.example]\n  names: [live.shop.example]\n  sites:\n    a: {addresses: [192.0.2.10], listen: '" + addr + "'}\n    b: {addresses: ['2001:db8::1']}\n" + publish + "\npolicies:\n"
	if err := os.WriteFile(p.file, []byte(strings.Replace(string(text), "\npolicies:\n", section, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return addr
}

// TestDNS_AnswersWithoutAnAgent: the server is there as soon as it is started, and ends in good order.
func TestDNS_AnswersWithoutAnAgent(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	addr := p.withDNS(t, "")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		root := newRoot()
		root.SetArgs([]string{"dns", "--site", "a", "-f", p.file, "--log-level", "error"})
		ended <- root.ExecuteContext(ctx)
	}()
	client := dns.Client{Timeout: 5 * time.Second, Net: "tcp"}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for bound := time.After(30 * time.Second); ; {
		resp, _, err := client.ExchangeContext(t.Context(), new(dns.Msg).SetQuestion("live.shop.example.", dns.TypeA), addr)
		if err == nil {
			if len(resp.Answer) != 1 || resp.Answer[0].(*dns.A).A.String() != "192.0.2.10" {
				t.Errorf("%v", resp)
			}
			break
		}
		select {
		case <-tick.C:
		case err := <-ended:
			t.Fatalf("it ended: %v", err)
		case <-bound:
			t.Fatal(err)
		}
	}
	if _, err := run(t, "dns", "--site", "a", "-f", p.file); err == nil || !strings.Contains(err.Error(), "does another program have the port") {
		t.Errorf("a second server: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestDNS_Errors(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	_, err := run(t, "dns", "--site", "a", "-f", p.file)
	wantError(t, err, "has no section dns", "--sample")
	_, err = run(t, "dns", "publish", "-f", p.file)
	wantError(t, err, "has no section dns")
	p.withDNS(t, "  publish: {rfc2136: {server: '127.0.0.1:9', key: atoll, secret_env: ATOLL_TEST_NO_SUCH_VARIABLE}}")
	_, err = run(t, "dns", "--site", "b", "-f", p.file)
	wantError(t, err, "gives site b no DNS server", "dns.sites.b.listen")
	_, err = run(t, "dns", "--site", "w", "-f", p.file)
	wantError(t, err, "site w is a witness")
	_, err = run(t, "dns", "publish", "-f", p.file)
	wantError(t, err, "environment variable ATOLL_TEST_NO_SUCH_VARIABLE is not set")
}

// TestDNSPublish_OnlyItsNames: a document cannot reach beyond the names of the spec.
func TestDNSPublish_OnlyItsNames(t *testing.T) {
	p := newPlace(t)
	p.withDNS(t, "  publish: {rfc2136: {server: '127.0.0.1:9', key: atoll, secret_env: ATOLL_TEST_TSIG}}")
	t.Setenv("ATOLL_TEST_TSIG", "c2VjcmV0")
	for document, want := range map[string]string{
		`{"format": 1, "records": [{"zone": "live.shop.example", "name": "www.live.shop.example", "type": "A", "ttl": 30, "values": ["192.0.2.1"]}]}`: "is not under dns.names",
		`{"format": 1, "records": []}`: "nothing is never published",
		`{"format": 1, "records": [{"zone": "live.shop.example", "name": "live.shop.example", "type": "A", "ttl": 30, "values": ["192.0.2.1"]}]}`: "server 127.0.0.1:9",
	} {
		root := newRoot()
		root.SetArgs([]string{"dns", "publish", "-f", p.file})
		root.SetIn(strings.NewReader(document))
		wantError(t, root.ExecuteContext(t.Context()), want)
	}
}

func TestWithoutDSNs(t *testing.T) {
	t.Parallel()
	s, err := spec.Parse(filepath.Join(t.TempDir(), "atoll.yaml"), spec.Sample())
	if err != nil {
		t.Fatal(err)
	}
	got := withoutDSNs(s, []string{"PATH=/bin", "ATOLL_DSN=postgres://u:p@h/d", "ATOLL_ADMIN_DSN=x", "ATOLL_DSN_NOTE=1"})
	if !slices.Equal(got, []string{"PATH=/bin", "ATOLL_DSN_NOTE=1"}) {
		t.Errorf("%q", got)
	}
}
