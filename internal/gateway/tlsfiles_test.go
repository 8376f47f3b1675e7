package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTLSFilesAreReadAgain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key, clients := filepath.Join(dir, "crt"), filepath.Join(dir, "key"), filepath.Join(dir, "ca")
	one, two := newClientAuthority(t), newClientAuthority(t)
	put := func(c tls.Certificate) {
		der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
		must0(err)
		must0(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600))
		must0(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600))
	}
	put(one.issue("first", nil))
	must0(os.WriteFile(clients, one.pem(), 0o600))
	a := alone(t, echo("a"), func(c *Config) {
		var err error
		c.Listen.TLS, err = FileTLS(TLSFiles{Cert: cert, Key: key, ClientCA: clients}, c.Log)
		must0(err)
	})
	// shown is the name that the gateway shows, and by which protocol; "" if it refuses the user.
	shown := func(users ...tls.Certificate) (string, string) {
		tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, Certificates: users}, ForceAttemptHTTP2: true}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Get("https://" + a.gw.UserAddr() + "/")
		if err != nil {
			return "", ""
		}
		resp.Body.Close()
		return resp.TLS.PeerCertificates[0].Subject.CommonName, resp.Proto
	}
	if name, proto := shown(); name != "first" || proto != "HTTP/2.0" {
		t.Errorf("%s by %s", name, proto)
	}
	if name, _ := shown(one.issue("user", nil)); name != "first" {
		t.Error("a good user was refused")
	}
	if name, _ := shown(two.issue("user", nil)); name != "" {
		t.Error("a stranger was let in")
	}
	must0(os.WriteFile(cert, []byte("broken"), 0o600))
	eventually(t, "the broken file is reported", func() bool { shown(); return strings.Contains(a.log.String(), "do not load") })
	if name, _ := shown(); name != "first" {
		t.Errorf("a broken file took the good one away: %q", name)
	}
	put(one.issue("second", nil))
	must0(os.WriteFile(clients, two.pem(), 0o600))
	eventually(t, "the new files are used", func() bool {
		name, proto := shown(two.issue("user", nil))
		return name == "second" && proto == "HTTP/2.0"
	})
	if name, _ := shown(one.issue("user", nil)); name != "" {
		t.Error("a user of the authority that was taken away was let in")
	}
}

func TestTLSFilesThatDoNotLoad(t *testing.T) {
	t.Parallel()
	if _, err := FileTLS(TLSFiles{Cert: "/nowhere/crt", Key: "/nowhere/key"}, nil); err == nil {
		t.Error("taken")
	}
}

// Where certificates come from elsewhere, users are asked for theirs all the same; an ACME authority is not: it has none.
func TestClientsOfObtainedCertificates(t *testing.T) {
	t.Parallel()
	ca := newClientAuthority(t)
	file := filepath.Join(t.TempDir(), "ca")
	must0(os.WriteFile(file, ca.pem(), 0o600))
	base := &tls.Config{Certificates: []tls.Certificate{certs.users}, NextProtos: []string{"h2", "http/1.1", acmeProtocol}}
	a := alone(t, http.HandlerFunc(tell), func(c *Config) {
		var err error
		c.Listen.TLS, err = ClientTLSFrom(base, file, c.Log)
		must0(err)
	})
	asked := func(protocol string) (was bool, negotiated string) {
		conn, err := tls.Dial("tcp", a.gw.UserAddr(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocol},
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				was = true
				return &tls.Certificate{}, nil
			}})
		must0(err)
		defer conn.Close()
		return was, conn.ConnectionState().NegotiatedProtocol
	}
	for protocol, want := range map[string]bool{"h2": true, "http/1.1": true, acmeProtocol: false} {
		if was, negotiated := asked(protocol); was != want || negotiated != protocol {
			t.Errorf("%s: asked %v, negotiated %q", protocol, was, negotiated)
		}
	}
	c := newClient(t)
	c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{ca.issue("user", nil, "spiffe://x/y")}}
	req, _ := http.NewRequest("GET", "https://"+a.gw.UserAddr()+"/", nil)
	if got := send(t, c, req); !strings.Contains(got.body, `;Subject="CN=user";URI="spiffe://x/y"`) {
		t.Errorf("the application saw %s", got.body)
	}
	if _, err := ClientTLSFrom(base, "/nowhere/ca", nil); err == nil {
		t.Error("taken without its file")
	}
}
