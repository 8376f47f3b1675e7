package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func authority(t *testing.T, deployment string, roles ...Role) string {
	t.Helper()
	dir := t.TempDir()
	if err := Init(dir, deployment); err != nil {
		t.Fatal(err)
	}
	for _, r := range roles {
		if err := Issue(dir, r); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func load(t *testing.T, dir, name string) *Identity {
	t.Helper()
	id, err := Load(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var siteA, siteB, anna = Role{Kind: Site, Name: "a"}, Role{Kind: Site, Name: "b"}, Role{Kind: Operator, Name: "anna"}

// shake makes a connection over loopback and returns what both sides think of it.
func shake(t *testing.T, server, client *tls.Config) (serverState, clientState tls.ConnectionState, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			serverErr = err
			return
		}
		conn := tls.Server(raw, server)
		defer conn.Close()
		if serverErr = conn.Handshake(); serverErr != nil {
			return
		}
		serverState = conn.ConnectionState()
		_, _ = conn.Write([]byte{1})
	}()
	conn, err := tls.Dial("tcp", ln.Addr().String(), client)
	if err != nil {
		<-done
		return serverState, clientState, serverErr, err
	}
	defer conn.Close()
	// On TLS 1.3 a client learns only from its first read that it was refused.
	_, clientErr = conn.Read(make([]byte, 1))
	clientState = conn.ConnectionState()
	<-done
	return serverState, clientState, serverErr, clientErr
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
}

func TestBothSidesKnowEachOther(t *testing.T) {
	t.Parallel()
	dir := authority(t, "shop", siteA, siteB, anna)
	a, b, op := load(t, dir, "site-a"), load(t, dir, "site-b"), load(t, dir, "operator-anna")

	server, client, err1, err2 := shake(t, a.ServerTLS(nil), b.ClientTLS("a"))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if server.Version != tls.VersionTLS13 {
		t.Errorf("TLS version %x", server.Version)
	}
	if p, err := a.Peer(server); err != nil || p != (Peer{Site, "b"}) {
		t.Errorf("the server sees %v, %v", p, err)
	}
	if p, err := b.Peer(client); err != nil || p != (Peer{Site, "a"}) {
		t.Errorf("the client sees %v, %v", p, err)
	}
	if server, _, err1, err2 = shake(t, a.ServerTLS(nil), op.ClientTLS("")); err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if p, err := a.Peer(server); err != nil || p != (Peer{Operator, "anna"}) {
		t.Errorf("the server sees %v, %v", p, err)
	}
	if _, err := a.Peer(tls.ConnectionState{}); err == nil {
		t.Error("a peer without certificate is known")
	}
}

// A service's certificate is for one that calls, and is known as that on the other side.
func TestServices(t *testing.T) {
	t.Parallel()
	dir := authority(t, "shop", siteA, Role{Kind: Service, Name: "basket"})
	a, basket := load(t, dir, "site-a"), load(t, dir, "service-basket")
	server, _, err1, err2 := shake(t, a.ServerTLS(nil), basket.ClientTLS("a"))
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	p, err := a.Peer(server)
	if _, isSite := p.Site(); err != nil || p != (Peer{Service, "basket"}) || isSite {
		t.Errorf("the server sees %v, %v", p, err)
	}
	if _, _, _, err := shake(t, basket.ServerTLS(nil), a.ClientTLS("")); err == nil {
		t.Error("a service's certificate serves")
	}
}

func TestRefusedPeers(t *testing.T) {
	t.Parallel()
	shop := authority(t, "shop", siteA, siteB, anna)
	twin := authority(t, "shop", siteA, siteB) // same names, another authority
	bank := authority(t, "bank", siteB)
	a, b := load(t, shop, "site-a"), load(t, shop, "site-b")

	t.Run("other authority", func(t *testing.T) {
		_, _, serverErr, clientErr := shake(t, a.ServerTLS(nil), load(t, twin, "site-b").ClientTLS("a"))
		wantError(t, clientErr, "not issued by this deployment's authority")
		if serverErr == nil {
			t.Error("the server is content")
		}
		insecure := load(t, twin, "site-b").ClientTLS("a")
		insecure.VerifyConnection = nil // a client that does not care must still be refused by the server
		_, _, serverErr, clientErr = shake(t, a.ServerTLS(nil), insecure)
		wantError(t, serverErr, "site b", "not issued by this deployment's authority")
		wantError(t, clientErr, "tls")
	})
	t.Run("other deployment", func(t *testing.T) {
		_, _, _, clientErr := shake(t, a.ServerTLS(nil), load(t, bank, "site-b").ClientTLS("a"))
		wantError(t, clientErr, `"shop"`, `"bank"`)
	})
	t.Run("other site", func(t *testing.T) {
		_, _, _, clientErr := shake(t, a.ServerTLS(nil), b.ClientTLS("b"))
		wantError(t, clientErr, "the server is site a; want site b")
	})
	t.Run("not allowed", func(t *testing.T) {
		only := a.ServerTLS(func(p Peer) error { return errors.New("sites only") })
		_, _, serverErr, clientErr := shake(t, only, load(t, shop, "operator-anna").ClientTLS("a"))
		wantError(t, serverErr, "operator anna", "sites only")
		wantError(t, clientErr, "tls")
	})
	t.Run("operator as server", func(t *testing.T) {
		_, _, _, clientErr := shake(t, load(t, shop, "operator-anna").ServerTLS(nil), b.ClientTLS(""))
		if clientErr == nil {
			t.Error("an operator's certificate serves")
		}
	})
	t.Run("no certificate", func(t *testing.T) {
		bare := b.ClientTLS("a")
		bare.GetClientCertificate = nil
		_, _, serverErr, _ := shake(t, a.ServerTLS(nil), bare)
		wantError(t, serverErr, "certificate")
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		old := b.ClientTLS("a")
		old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		_, _, serverErr, _ := shake(t, a.ServerTLS(nil), old)
		wantError(t, serverErr, "version")
	})
}

func TestOutOfDate(t *testing.T) {
	t.Parallel()
	dir := authority(t, "shop", siteA)
	if err := issueAt(dir, siteB, time.Now().Add(-certificateLife-time.Hour)); err != nil {
		t.Fatal(err)
	}
	_, err := Load(dir, "site-b")
	wantError(t, err, "ran out on", "atoll ca issue site b")
	if err := issueAt(dir, siteB, time.Now().Add(48*time.Hour)); err != nil {
		t.Fatal(err)
	}
	_, err = Load(dir, "site-b")
	wantError(t, err, "valid only from", "clock")

	old := t.TempDir()
	if err := initAt(old, "shop", time.Now().Add(-authorityLife-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if err := Issue(old, siteA); err != nil {
		t.Fatal(err)
	}
	_, err = Load(old, "site-a")
	wantError(t, err, "authority", "out of date")
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := authority(t, "shop", siteA)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", e.Name(), info.Mode(), err)
		}
	}
	if got := strings.Join(names, " "); got != "ca.crt ca.key site-a.crt site-a.key" {
		t.Errorf("files: %s", got)
	}
	before, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, Init(dir, "shop"), "ca.crt exists already")
	after, err := os.ReadFile(filepath.Join(dir, "ca.key"))
	if err != nil || string(after) != string(before) {
		t.Errorf("the refused Init changed the key: %v", err)
	}
	id := load(t, dir, "site-a")
	wantError(t, id.CheckDeployment("bank"), "shop", "bank")
	if err := id.CheckDeployment("shop"); err != nil {
		t.Error(err)
	}
	// etcd and other tools check a host name: the one that every site certificate carries.
	if err := id.current().cert.Leaf.VerifyHostname(SiteServerName); err != nil {
		t.Error(err)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	t.Parallel()
	empty := t.TempDir()
	_, err := Load(empty, "site-a")
	wantError(t, err, "ca.crt is missing", "atoll ca init")
	wantError(t, Issue(empty, siteA), "ca.crt is missing", "atoll ca init")
	dir := authority(t, "shop")
	_, err = Load(dir, "site-a")
	wantError(t, err, "site-a.crt is missing", "atoll ca issue site a")
	wantError(t, Issue(dir, Role{Kind: Site, Name: "A b"}), "lower-case")
	wantError(t, Issue(dir, Role{Kind: "robot", Name: "a"}), "robot")
	wantError(t, Init(t.TempDir(), "Shop!"), "deployment", "lower-case")
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	wantError(t, Issue(dir, siteA), "where the authority's key is kept")

	mixed := authority(t, "shop", siteA)
	other := authority(t, "shop", siteA)
	body, err := os.ReadFile(filepath.Join(other, "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(mixed, "ca.crt"), body, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, Issue(mixed, siteB), "does not belong")
	_, err = Load(mixed, "site-a")
	wantError(t, err, "not issued by this deployment's authority")
}

func TestRotationNeedsNoRestart(t *testing.T) {
	t.Parallel()
	dir := authority(t, "shop", siteA, siteB)
	a, b := load(t, dir, "site-a"), load(t, dir, "site-b")
	server, client := a.ServerTLS(nil), b.ClientTLS("a")
	serial := func() string {
		t.Helper()
		_, state, err1, err2 := shake(t, server, client)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		return state.PeerCertificates[0].SerialNumber.String()
	}
	first := serial()
	if serial() != first {
		t.Error("the certificate changed by itself")
	}
	if err := Issue(dir, siteA); err != nil {
		t.Fatal(err)
	}
	second := serial()
	if second == first {
		t.Error("the new certificate is not in use")
	}
	// Half a rotation, and garbage, leave the last good pair in use; the rest of the rotation is taken up.
	_, cert, _ := a.Files()
	good, err := os.ReadFile(cert)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"garbage", ""} {
		if err := os.WriteFile(cert, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if serial() != second {
			t.Error("the last good certificate is not in use")
		}
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if serial() != second {
		t.Error("the last good certificate is not in use")
	}
	if err := os.WriteFile(cert, good, 0o600); err != nil {
		t.Fatal(err)
	}
	if serial() != second {
		t.Error("the restored certificate is not in use")
	}
}

func TestAuthorityRotation(t *testing.T) {
	t.Parallel()
	oldDir, newDir := authority(t, "shop", siteA, siteB), authority(t, "shop", siteA)
	a, b := load(t, newDir, "site-a"), load(t, oldDir, "site-b")
	server, client := a.ServerTLS(nil), b.ClientTLS("a")
	if _, _, err1, err2 := shake(t, server, client); err1 == nil && err2 == nil {
		t.Fatal("strangers are content with each other")
	}
	both := append(mustRead(t, filepath.Join(oldDir, "ca.crt")), mustRead(t, filepath.Join(newDir, "ca.crt"))...)
	for _, dir := range []string{oldDir, newDir} {
		if err := os.WriteFile(filepath.Join(dir, "ca.crt"), both, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err1, err2 := shake(t, server, client); err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func FuzzIdentityOf(f *testing.F) {
	for _, s := range []string{"atoll://shop/site/a", "atoll://shop/operator/anna", "atoll:///site/", "https://x", "atoll://shop/ca", "atoll://u@shop/site/a?x#y"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		deployment, p, err := identityOf(&x509.Certificate{URIs: []*url.URL{u}})
		if err != nil {
			return
		}
		d2, p2, err := parsePeer(peerURI(deployment, p))
		if err != nil || d2 != deployment || p2 != p {
			t.Errorf("%q reads as %q %v, which reads as %q %v, %v", text, deployment, p, d2, p2, err)
		}
	})
}
