package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"github.com/atollhq/atoll/internal/loopback"
)

// authority is a real ACME server, which looks every name up at a name server that knows this machine only.
type authority struct {
	*httptest.Server
	root *x509.CertPool
	file string // whom to trust when asking it
}

func newAuthority(t *testing.T, tlsPort int) *authority {
	t.Helper()
	asked, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	names := &dns.Server{Listener: asked, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if q := r.Question[0]; q.Qtype == dns.TypeA {
			m.Answer = append(m.Answer, &dns.A{Hdr: dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 1}, A: net.IPv4(127, 0, 0, 1)})
		}
		_ = w.WriteMsg(m)
	})}
	go func() { _ = names.ActivateAndServe() }() // ends with the shutdown
	t.Cleanup(func() { _ = names.Shutdown() })

	quiet := log.New(io.Discard, "", 0)
	store := db.NewMemoryStore()
	signer := ca.New(quiet, store, "", "ecdsa", 0, 1, map[string]ca.Profile{"default": {ValidityPeriod: 3600 * 24 * 90}})
	front := wfe.New(quiet, store, va.New(quiet, 1, tlsPort, true, asked.Addr().String(), store), signer, nil, true, false, 1, 1)
	a := &authority{Server: httptest.NewTLSServer(front.Handler()), root: x509.NewCertPool(), file: filepath.Join(t.TempDir(), "root.pem")}
	t.Cleanup(a.Close)
	a.root.AddCert(signer.GetRootCert(0).Cert)
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return a
}

// serve runs a listener with the certificates, as a gateway does; nothing is left of it when stop returns.
func serve(t *testing.T, c *Certificates, addr string) (stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {}), TLSConfig: c.TLS(), ErrorLog: log.New(io.Discard, "", 0)}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { _ = s.ServeTLS(l, "", "") }() // ends with Close
	go func() { _ = c.Run(ctx); close(done) }()
	return func() { cancel(); <-done; _ = s.Close() }
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(time.Minute)
	defer deadline.Stop()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatal("not within a minute: " + what)
		}
	}
}

func TestObtainsKeepsAndShows(t *testing.T) {
	t.Setenv("PEBBLE_VA_NOSLEEP", "1")
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	port := addr[strings.LastIndex(addr, ":")+1:]
	tlsPort, _ := net.LookupPort("tcp", port)
	a := newAuthority(t, tlsPort)
	conf := Config{Email: "ops@shop.example", Domains: []string{"shop.example", "www.shop.example"}, CA: a.URL + wfe.DirectoryPath, CARoot: a.file,
		Dir: t.TempDir(), Listen: addr, Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))}
	c, err := Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	stop := serve(t, c, addr)
	shown := func(name string) *x509.Certificate {
		conn, err := tls.Dial("tcp", addr, &tls.Config{ServerName: name, RootCAs: a.root, NextProtos: []string{"h2"}})
		if err != nil {
			return nil
		}
		defer conn.Close()
		if p := conn.ConnectionState().NegotiatedProtocol; p != "h2" {
			t.Errorf("negotiated %q", p)
		}
		return conn.ConnectionState().PeerCertificates[0]
	}
	for _, name := range conf.Domains {
		eventually(t, "a certificate for "+name, func() bool { return shown(name) != nil })
	}
	if shown("other.example") != nil {
		t.Error("a certificate for a name that nobody asked for")
	}
	first := shown("shop.example")
	stop()

	// The next process goes on with what is in the folder, also while the authority is away.
	a.Close()
	if c, err = Open(conf); err != nil {
		t.Fatal(err)
	}
	defer serve(t, c, addr)()
	eventually(t, "the kept certificate is shown", func() bool { return shown("shop.example") != nil })
	if !shown("shop.example").Equal(first) {
		t.Error("another certificate after a restart")
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	base := Config{Domains: []string{"shop.example"}, Dir: t.TempDir(), Listen: "127.0.0.1:443", Log: slog.New(slog.DiscardHandler)}
	for name, edit := range map[string]func(*Config){
		"nothing": func(c *Config) { c.Domains = nil }, "a wildcard": func(c *Config) { c.Domains = []string{"*.shop.example"} },
		"no address": func(c *Config) { c.Listen = "443" }, "no such root": func(c *Config) { c.CARoot = "/nowhere" },
	} {
		conf := base
		edit(&conf)
		if _, err := Open(conf); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
