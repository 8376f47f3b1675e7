package gateway

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/atollhq/atoll/internal/bearer"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// issuer issues tokens whose public key stands in a file.
type issuer struct {
	key  *ecdsa.PrivateKey
	file string
}

func newIssuer(t testing.TB) *issuer {
	i := &issuer{file: filepath.Join(t.TempDir(), "keys.pem")}
	i.rotate(t)
	return i
}

func (i *issuer) rotate(t testing.TB) {
	t.Helper()
	var err error
	i.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must0(err)
	der, err := x509.MarshalPKIXPublicKey(&i.key.PublicKey)
	must0(err)
	must0(os.WriteFile(i.file, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600))
}

func (i *issuer) token(sub string, ends time.Duration) string {
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: i.key}, nil)
	must0(err)
	claims, err := json.Marshal(map[string]any{"iss": "test", "aud": "shop", "sub": sub, "exp": time.Now().Add(ends).Unix()})
	must0(err)
	signed, err := s.Sign(claims)
	must0(err)
	text, err := signed.CompactSerialize()
	must0(err)
	return text
}

func (i *issuer) use(c *Config) {
	v, err := bearer.Open(bearer.Config{Issuer: "test", Audience: []string{"shop"}, KeysFile: i.file, Leeway: time.Second})
	must0(err)
	c.Tokens, c.TokenCookie = v, "token"
	c.Routes = append([]topo.Route{
		{Name: "mine", Path: "/mine", Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{JWT: "sub"}}, WithoutKey: topo.NearestKeyless},
	}, c.Routes...)
}

func withToken(t testing.TB, s *site, header ...string) answer {
	t.Helper()
	req, err := http.NewRequest("POST", s.url("/mine/orders"), strings.NewReader("x"))
	must0(err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	return send(t, newClient(t), req)
}

func TestKeysFromTokens(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	a, b := pair(t, echo("a"), echo("b"), i.use)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	for bucket, owner := range map[topo.BucketID]string{0: "a", 9: "b"} {
		good := i.token(keyIn(bucket), time.Hour)
		for how, header := range map[string][]string{
			"bearer": {"Authorization", "Bearer " + good}, "scheme in any case": {"Authorization", "bEARER  " + good}, "cookie": {"Cookie", "token=" + good},
			"both, the same": {"Authorization", "Bearer " + good, "Cookie", "token=" + good},
		} {
			for _, s := range []*site{a, b} {
				got := withToken(t, s, header...)
				want(t, got, 200, "")
				if got.header.Get(hSite) != owner {
					t.Errorf("%s, asked at %s: answered by %s, want %s", how, s.id, got.header.Get(hSite), owner)
				}
			}
		}
	}
	other := newIssuer(t)
	for name, c := range map[string]struct {
		header []string
		status int
		reason route.Reason
	}{
		"none":             {nil, 200, ""},
		"another scheme":   {[]string{"Authorization", "Basic dTpw"}, 200, ""},
		"empty":            {[]string{"Authorization", "Bearer "}, 401, route.BadToken},
		"opaque":           {[]string{"Authorization", "Bearer abc"}, 401, route.BadToken},
		"another's":        {[]string{"Authorization", "Bearer " + other.token(keyIn(0), time.Hour)}, 401, route.BadToken},
		"another's cookie": {[]string{"Cookie", "token=" + other.token(keyIn(0), time.Hour)}, 401, route.BadToken},
		"expired":          {[]string{"Authorization", "Bearer " + i.token(keyIn(0), -time.Minute)}, 401, route.ExpiredToken},
		"two":              {[]string{"Authorization", "Bearer " + i.token(keyIn(0), time.Hour), "Authorization", "Bearer " + i.token(keyIn(9), time.Hour)}, 400, route.DuplicateKey},
		"two, one cookie":  {[]string{"Authorization", "Bearer " + i.token(keyIn(0), time.Hour), "Cookie", "token=" + i.token(keyIn(9), time.Hour)}, 400, route.DuplicateKey},
		"a user's word":    {[]string{"Atoll-Certificate", "cn=x"}, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := withToken(t, a, c.header...)
			want(t, got, c.status, c.reason)
			if challenge := got.header.Get("Www-Authenticate"); (c.status == 401) != (challenge != "") {
				t.Errorf("challenge %q", challenge)
			}
		})
	}
	if n := a.counter("refused_total", "reason", "expired-token"); n != 1 {
		t.Errorf("%v expired tokens counted", n)
	}
	// A new key of the issuer is used without a restart, and the old one no longer.
	old := i.token(keyIn(0), time.Hour)
	i.rotate(t)
	eventually(t, "the new key is used", func() bool {
		return withToken(t, a, "Authorization", "Bearer "+i.token(keyIn(0), time.Hour)).status == 200
	})
	want(t, withToken(t, a, "Authorization", "Bearer "+old), 401, route.BadToken)
}

// What another gateway forwards is verified again; what was good when it came in is, a while later.
func TestForwardedTokensAreVerifiedAgain(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	a := newSite(t, "a", echo("a"))
	conf := a.config()
	i.use(&conf)
	a.start(t, conf)
	publish(half(), 1, a)
	a.ready(t, 1)
	c := peerClient(t, "b", "a")
	ask := func(token string) answer {
		req := forwardedRequest(a, "POST", forwarded{"users", 0, 1, viewVersion{1, 1}, 1}, keyIn(0))
		req.URL.Path = "/mine"
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		return send(t, c, req)
	}
	want(t, ask(i.token(keyIn(0), time.Hour)), 200, "")
	want(t, ask(i.token(keyIn(0), -5*time.Second)), 200, "")
	want(t, ask(i.token(keyIn(0), -time.Hour)), 401, route.ExpiredToken)
	want(t, ask(newIssuer(t).token(keyIn(0), time.Hour)), 401, route.BadToken)
	want(t, ask(i.token(keyIn(9), time.Hour)), 503, reasonForwarded)
	want(t, ask(""), 503, reasonForwarded)
}

func TestTokensBeforeTheirKeysAreKnown(t *testing.T) {
	t.Parallel()
	i := newIssuer(t)
	a := alone(t, echo("a"), func(c *Config) {
		i.use(c)
		var err error
		c.Tokens, err = bearer.Open(bearer.Config{Issuer: "test", Audience: []string{"shop"}, KeysURL: "https://" + freeAddr(t) + "/keys"})
		must0(err)
	})
	want(t, withToken(t, a, "Authorization", "Bearer "+i.token(keyIn(0), time.Hour)), 503, reasonNoTokenKeys)
	want(t, withToken(t, a), 200, "")
}

func TestRoutesWithTokensWantAVerifier(t *testing.T) {
	t.Parallel()
	a := newSite(t, "a", echo("a"))
	conf := a.config()
	newIssuer(t).use(&conf)
	conf.Tokens = nil
	if _, err := New(conf); err == nil || !strings.Contains(err.Error(), "nothing says how tokens are verified") {
		t.Error(err)
	}
}

// clientAuthority issues certificates of users.
type clientAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newClientAuthority(t testing.TB) *clientAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must0(err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "users"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	must0(err)
	cert, err := x509.ParseCertificate(der)
	must0(err)
	return &clientAuthority{cert, key}
}

func (a *clientAuthority) issue(cn string, dns []string, uris ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must0(err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), DNSNames: dns, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		must0(err)
		tmpl.URIs = append(tmpl.URIs, parsed)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	must0(err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *clientAuthority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw})
}

// cutHello is a client's connection whose first record goes out in pieces: of TCP, or as TLS records of their own.
type cutHello struct {
	net.Conn
	size    int
	records bool
	said    bool
}

func (c *cutHello) Write(b []byte) (int, error) {
	const header = 5
	if c.said || len(b) < header {
		return c.Conn.Write(b)
	}
	c.said = true
	rest := b
	if c.records {
		rest = b[header:]
	}
	for piece := range slices.Chunk(rest, c.size) {
		if c.records {
			piece = append([]byte{b[0], b[1], b[2], byte(len(piece) >> 8), byte(len(piece))}, piece...)
		}
		if _, err := c.Conn.Write(piece); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func TestKeysFromCertificates(t *testing.T) {
	t.Parallel()
	ca := newClientAuthority(t)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	field := func(name string, f topo.CertificateField) topo.Route {
		return topo.Route{Name: name, Path: "/" + name, Upstream: "app", Keyspace: "users", Key: []topo.KeySource{{Certificate: f}}, WithoutKey: topo.RefuseKeyless}
	}
	a, b := pair(t, echo("a"), echo("b"), func(c *Config) {
		c.Listen.TLS = &tls.Config{Certificates: []tls.Certificate{certs.users}, ClientCAs: pool, ClientAuth: tls.VerifyClientCertIfGiven}
		c.Routes = []topo.Route{field("cn", topo.CommonName), field("dns", topo.DNSName), field("uri", topo.URIName)}
	})
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	client := func(certs ...tls.Certificate) *http.Client {
		c := newClient(t)
		c.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true, Certificates: certs}
		return c
	}
	at := func(c *http.Client, s *site, path string) answer {
		req, err := http.NewRequest("POST", "https://"+s.gw.UserAddr()+path, strings.NewReader("x"))
		must0(err)
		req.Header["Atoll-Certificate"] = []string{"cn=" + keyIn(3), "uri=x"} // nobody believes a user
		req.Header["X-Forwarded-Client-Cert"] = []string{"Subject=\"CN=somebody\""}
		return send(t, c, req)
	}
	for bucket, owner := range map[topo.BucketID]string{0: "a", 9: "b"} {
		key := keyIn(bucket)
		c := client(ca.issue(key, []string{key}, key))
		for _, path := range []string{"/cn", "/dns", "/uri/x"} {
			for _, s := range []*site{a, b} {
				got := at(c, s, path)
				want(t, got, 200, "")
				if got.header.Get(hSite) != owner {
					t.Errorf("%s of %s at %s: answered by %s", path, key, s.id, got.header.Get(hSite))
				}
			}
		}
	}
	want(t, at(client(), a, "/cn"), 400, route.NoKey)
	want(t, at(client(ca.issue("", nil, "spiffe://x/y")), a, "/cn"), 400, route.NoKey)
	want(t, at(client(ca.issue("x", []string{"a.example", "b.example"})), a, "/dns"), 400, route.DuplicateKey)
	for _, size := range []int{1, 100} {
		for _, records := range []bool{false, true} { // who has to show what is not decided by a piece of the hello
			known, unknown := client(ca.issue(keyIn(9), nil)), client()
			for _, c := range []*http.Client{known, unknown} {
				c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
					conn, err := new(net.Dialer).DialContext(ctx, network, addr)
					return &cutHello{Conn: conn, size: size, records: records}, err
				}
			}
			want(t, at(known, a, "/cn"), 200, "")
			want(t, at(unknown, a, "/cn"), 400, route.NoKey)
		}
	}
	stranger := client(newClientAuthority(t).issue(keyIn(0), nil))
	if resp, err := stranger.Get("https://" + a.gw.UserAddr() + "/cn"); err == nil {
		resp.Body.Close()
		t.Errorf("a stranger's certificate: %s", resp.Status)
	}
}
