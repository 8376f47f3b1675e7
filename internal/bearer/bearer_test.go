package bearer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	rsaKey      = must(rsa.GenerateKey(rand.Reader, 2048))
	ecKey       = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	otherEC     = must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	_, edKey, _ = ed25519.GenerateKey(rand.Reader)
	secret      = []byte("0123456789abcdef0123456789abcdef")
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func sign(alg jose.SignatureAlgorithm, key any, kid string, claims map[string]any) string {
	opts := (&jose.SignerOptions{}).WithType("JWT")
	if kid != "" {
		opts = opts.WithHeader("kid", kid)
	}
	s := must(jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, opts))
	return must(must(s.Sign(must(json.Marshal(claims)))).CompactSerialize())
}

// raw signs anything with HMAC, whatever its head says.
func raw(head, claims string, key []byte) string {
	enc := base64.RawURLEncoding.EncodeToString
	text := enc([]byte(head)) + "." + enc([]byte(claims))
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return text + "." + enc(mac.Sum(nil))
}

func pemOf(keys ...crypto.PublicKey) []byte {
	var out []byte
	for _, k := range keys {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: must(x509.MarshalPKIXPublicKey(k))})...)
	}
	return out
}

func jwks(keys ...jose.JSONWebKey) []byte { return must(json.Marshal(jose.JSONWebKeySet{Keys: keys})) }

func good() map[string]any {
	return map[string]any{"iss": "https://login.example", "aud": "shop", "sub": "user-1", "exp": time.Now().Add(time.Hour).Unix()}
}

func with(name string, value any) map[string]any {
	c := good()
	if value == nil {
		delete(c, name)
	} else {
		c[name] = value
	}
	return c
}

func open(t *testing.T, keys []byte, algorithms ...string) (*Verifier, string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(file, keys, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := Open(Config{Issuer: "https://login.example", Audience: []string{"shop", "shop-admin"}, Algorithms: algorithms, KeysFile: file, Leeway: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	return v, file
}

func TestTokens(t *testing.T) {
	t.Parallel()
	now := time.Now()
	three := pemOf(&rsaKey.PublicKey, &ecKey.PublicKey, edKey.Public())
	enc := base64.RawURLEncoding.EncodeToString
	claims := string(must(json.Marshal(good())))
	signed := sign(jose.ES256, ecKey, "", good())
	parts := strings.Split(signed, ".")
	none := enc([]byte(`{"alg":"none"}`)) + "." + enc([]byte(claims)) + "."
	for name, c := range map[string]struct {
		keys       []byte
		algorithms []string
		token      string
		want       error
	}{
		"RS256":                     {three, nil, sign(jose.RS256, rsaKey, "", good()), nil},
		"PS512":                     {three, nil, sign(jose.PS512, rsaKey, "", good()), nil},
		"ES256":                     {three, nil, signed, nil},
		"EdDSA":                     {three, nil, sign(jose.EdDSA, edKey, "any", good()), nil},
		"audience in a list":        {three, nil, sign(jose.ES256, ecKey, "", with("aud", []string{"x", "shop-admin"})), nil},
		"within the leeway":         {three, nil, sign(jose.ES256, ecKey, "", with("nbf", now.Add(time.Second).Unix())), nil},
		"HS256, named":              {jwks(jose.JSONWebKey{Key: secret}), []string{"HS256"}, sign(jose.HS256, secret, "", good()), nil},
		"HS256, not named":          {jwks(jose.JSONWebKey{Key: &ecKey.PublicKey}, jose.JSONWebKey{Key: secret}), nil, sign(jose.HS256, secret, "", good()), ErrBad},
		"its key is named":          {jwks(jose.JSONWebKey{Key: &ecKey.PublicKey, KeyID: "k1"}), nil, sign(jose.ES256, ecKey, "k1", good()), nil},
		"another key is named":      {jwks(jose.JSONWebKey{Key: &ecKey.PublicKey, KeyID: "k1"}), nil, sign(jose.ES256, ecKey, "k2", good()), ErrBad},
		"second key of a name":      {jwks(jose.JSONWebKey{Key: &otherEC.PublicKey, KeyID: "k"}, jose.JSONWebKey{Key: &ecKey.PublicKey, KeyID: "k"}), nil, sign(jose.ES256, ecKey, "k", good()), nil},
		"key for encryption":        {jwks(jose.JSONWebKey{Key: &otherEC.PublicKey}, jose.JSONWebKey{Key: &ecKey.PublicKey, Use: "enc"}), nil, signed, ErrBad},
		"key for another algorithm": {jwks(jose.JSONWebKey{Key: &rsaKey.PublicKey, Algorithm: "RS256"}), nil, sign(jose.PS256, rsaKey, "", good()), ErrBad},
		"algorithm not allowed":     {three, []string{"ES256"}, sign(jose.RS256, rsaKey, "", good()), ErrBad},
		"another's signature":       {three, nil, sign(jose.ES256, otherEC, "", good()), ErrBad},
		"none":                      {three, nil, none, ErrBad},
		"None, signature kept":      {three, nil, enc([]byte(`{"alg":"None"}`)) + "." + parts[1] + "." + parts[2], ErrBad},
		"no signature":              {three, nil, parts[0] + "." + parts[1] + ".", ErrBad},
		"other claims":              {three, nil, parts[0] + "." + enc([]byte(strings.Replace(claims, "user-1", "user-2", 1))) + "." + parts[2], ErrBad},
		"public key as secret":      {three, append([]string{"HS256"}, Asymmetric...), raw(`{"alg":"HS256"}`, claims, three), ErrBad},
		"public key as secret, DER": {pemOf(&rsaKey.PublicKey), []string{"HS256", "RS256"}, raw(`{"alg":"HS256"}`, claims, must(x509.MarshalPKIXPublicKey(&rsaKey.PublicKey))), ErrBad},
		"its own key in the head":   {three, nil, must(must(must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: otherEC}, &jose.SignerOptions{EmbedJWK: true})).Sign([]byte(claims))).CompactSerialize()), ErrBad},
		"unknown critical head":     {three, []string{"HS256", "ES256"}, raw(`{"alg":"HS256","crit":["x"],"x":1}`, claims, secret), ErrBad},
		"expired":                   {three, nil, sign(jose.ES256, ecKey, "", with("exp", now.Add(-time.Minute).Unix())), ErrExpired},
		"not yet":                   {three, nil, sign(jose.ES256, ecKey, "", with("nbf", now.Add(time.Minute).Unix())), ErrExpired},
		"expired and another's":     {three, nil, sign(jose.ES256, otherEC, "", with("exp", now.Add(-time.Minute).Unix())), ErrBad},
		"without end":               {three, nil, sign(jose.ES256, ecKey, "", with("exp", nil)), ErrBad},
		"another issuer":            {three, nil, sign(jose.ES256, ecKey, "", with("iss", "https://login.example/")), ErrBad},
		"no issuer":                 {three, nil, sign(jose.ES256, ecKey, "", with("iss", nil)), ErrBad},
		"another audience":          {three, nil, sign(jose.ES256, ecKey, "", with("aud", "shopper")), ErrBad},
		"no audience":               {three, nil, sign(jose.ES256, ecKey, "", with("aud", nil)), ErrBad},
		"claim twice":               {three, nil, must(must(must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: ecKey}, nil)).Sign([]byte(strings.Replace(claims, "{", `{"sub":"user-2",`, 1)))).CompactSerialize()), ErrBad},
		"JSON form":                 {three, nil, must(must(jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: ecKey}, nil)).Sign([]byte(claims))).FullSerialize(), ErrBad},
		"opaque":                    {three, nil, "2YotnFZFEjr1zCsicMWpAA", ErrBad},
		"encrypted":                 {three, nil, "a.b.c.d.e", ErrBad},
		"long":                      {three, nil, strings.Repeat("a", MaxToken+1), ErrBad},
	} {
		v, _ := open(t, c.keys, c.algorithms...)
		got, err := v.Verify(t.Context(), c.token, 0)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if sub, _ := got.Text("sub"); err == nil && sub != "user-1" {
			t.Errorf("%s: sub is %q", name, sub)
		}
	}
}

func TestLateTokens(t *testing.T) {
	t.Parallel()
	v, _ := open(t, pemOf(&ecKey.PublicKey))
	token := sign(jose.ES256, ecKey, "", with("exp", time.Now().Add(-5*time.Second).Unix()))
	if _, err := v.Verify(t.Context(), token, 0); !errors.Is(err, ErrExpired) {
		t.Error(err)
	}
	if _, err := v.Verify(t.Context(), token, 10*time.Second); err != nil {
		t.Error(err)
	}
}

func TestClaimsAsText(t *testing.T) {
	t.Parallel()
	var c Claims
	if err := json.Unmarshal([]byte(`{"s":"a\u00fc","n":42,"m":-7,"f":1.5,"e":1e3,"b":true,"o":{},"l":["x"],"z":null,"":"empty"}`), &c); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"s": "aü", "n": "42", "m": "-7", "missing": "", "z": "", "": "empty"} {
		if got, ok := c.Text(name); !ok || got != want {
			t.Errorf("%s: %q %v, want %q", name, got, ok, want)
		}
	}
	for _, name := range []string{"f", "e", "b", "o", "l"} {
		if got, ok := c.Text(name); ok {
			t.Errorf("%s was taken as %q", name, got)
		}
	}
}

func TestKeysThatAreRefused(t *testing.T) {
	t.Parallel()
	small := must(rsa.GenerateKey(rand.Reader, 1024))
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(ecKey))})
	for name, data := range map[string][]byte{
		"nothing": nil, "text": []byte("hello"), "private": private, "small RSA": pemOf(&small.PublicKey), "no keys": []byte(`{"keys":[]}`),
		"a secret that nobody asked for": jwks(jose.JSONWebKey{Key: secret}), "broken": []byte(`{"keys":[`), "short secret": jwks(jose.JSONWebKey{Key: []byte("short")}),
	} {
		if got, err := parseKeys(data, name == "short secret"); err == nil {
			t.Errorf("%s: taken as %v", name, got)
		}
	}
	// A key of a kind that is not known does not spoil the others.
	set, err := parseKeys([]byte(strings.Replace(string(jwks(jose.JSONWebKey{Key: &ecKey.PublicKey})), `{"keys":[`, `{"keys":[{"kty":"future"},`, 1)), false)
	if err != nil || len(set) != 1 {
		t.Errorf("%v, %v", set, err)
	}
	// Of a private key in a set, the public half is used.
	set, err = parseKeys(jwks(jose.JSONWebKey{Key: ecKey}), false)
	if _, public := set[0].key.(*ecdsa.PublicKey); err != nil || !public {
		t.Errorf("%v, %v", set, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	base := Config{Issuer: "i", Audience: []string{"a"}, KeysURL: "https://login.example/keys"}
	for name, edit := range map[string]func(*Config){
		"no issuer": func(c *Config) { c.Issuer = "" }, "no audience": func(c *Config) { c.Audience = nil }, "no keys": func(c *Config) { c.KeysURL = "" },
		"two sources": func(c *Config) { c.KeysFile = "f" }, "plain URL": func(c *Config) { c.KeysURL = "http://login.example/keys" },
		"none": func(c *Config) { c.Algorithms = []string{"none"} }, "a secret from a URL": func(c *Config) { c.Algorithms = []string{"HS256"} },
		"no such file": func(c *Config) { c.KeysURL, c.KeysFile = "", "/nowhere/keys" },
	} {
		conf := base
		edit(&conf)
		if _, err := Open(conf); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestKeysFileIsReadAgain(t *testing.T) {
	t.Parallel()
	v, file := open(t, pemOf(&ecKey.PublicKey))
	token := sign(jose.ES256, otherEC, "", good())
	if _, err := v.Verify(t.Context(), token, 0); !errors.Is(err, ErrBad) {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, pemOf(&otherEC.PublicKey, &ecKey.PublicKey), 0o600); err != nil {
		t.Fatal(err)
	}
	within(t, "the new key is used", func() bool { _, err := v.Verify(t.Context(), token, 0); return err == nil })
}

func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for tick := time.NewTicker(10 * time.Millisecond); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// publisher publishes keys, as an issuer does.
type publisher struct {
	*httptest.Server
	keys  atomic.Pointer[[]byte] // nil: it is out of order
	asked atomic.Int64
	ca    string
}

func newPublisher(t *testing.T, keys []byte) *publisher {
	p := &publisher{}
	p.keys.Store(&keys)
	p.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.asked.Add(1)
		if k := p.keys.Load(); k != nil {
			_, _ = w.Write(*k)
			return
		}
		http.Error(w, "out of order", http.StatusInternalServerError)
	}))
	t.Cleanup(p.Close)
	p.ca = filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(p.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *publisher) open(t *testing.T, keep string) *Verifier {
	t.Helper()
	v, err := Open(Config{Issuer: "https://login.example", Audience: []string{"shop"}, KeysURL: p.URL, KeysCA: p.ca, KeepIn: keep, Refresh: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func run(t *testing.T, v *Verifier) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = v.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func TestKeysOfAURL(t *testing.T) {
	t.Parallel()
	p := newPublisher(t, jwks(jose.JSONWebKey{Key: &ecKey.PublicKey, KeyID: "old"}))
	keep := filepath.Join(t.TempDir(), "jwks.json")
	v := p.open(t, keep)
	old, fresh := sign(jose.ES256, ecKey, "old", good()), sign(jose.ES256, otherEC, "new", good())
	if _, err := v.Verify(t.Context(), old, 0); !errors.Is(err, ErrNoKeys) {
		t.Fatalf("before anything was fetched: %v", err)
	}
	run(t, v)
	within(t, "the keys are fetched", func() bool { _, err := v.Verify(t.Context(), old, 0); return err == nil })

	// A new key is fetched when a token names it, and made-up names do not make it fetch again and again.
	v.remote.mu.Lock()
	v.remote.mu.asked = time.Time{}
	v.remote.mu.Unlock()
	rotated := jwks(jose.JSONWebKey{Key: &otherEC.PublicKey, KeyID: "new"})
	p.keys.Store(&rotated)
	if _, err := v.Verify(t.Context(), fresh, 0); err != nil {
		t.Fatal(err)
	}
	asked := p.asked.Load()
	for range 20 {
		if _, err := v.Verify(t.Context(), sign(jose.ES256, otherEC, "made-up", good()), 0); !errors.Is(err, ErrBad) {
			t.Fatal(err)
		}
	}
	if n := p.asked.Load(); n > asked+1 {
		t.Errorf("20 made-up names made it fetch %d times", n-asked)
	}

	// Nothing good is given up for something broken, and a restart while the issuer is away goes on with what was saved.
	for _, broken := range []*[]byte{nil, {}} {
		p.keys.Store(broken)
		v.remote.kick <- struct{}{}
		n := p.asked.Load()
		within(t, "it asked again", func() bool { return p.asked.Load() > n })
		if _, err := v.Verify(t.Context(), fresh, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.open(t, keep).Verify(t.Context(), fresh, 0); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

func FuzzParseKeys(f *testing.F) {
	f.Add(pemOf(&ecKey.PublicKey))
	f.Add(jwks(jose.JSONWebKey{Key: &ecKey.PublicKey, KeyID: "k"}, jose.JSONWebKey{Key: secret}))
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := parseKeys(data, true)
		for _, k := range set {
			if err == nil && len(k.algorithms) == 0 {
				t.Error("a key without an algorithm")
			}
		}
	})
}

func FuzzVerify(f *testing.F) {
	file := filepath.Join(f.TempDir(), "keys")
	if err := os.WriteFile(file, pemOf(&ecKey.PublicKey), 0o600); err != nil {
		f.Fatal(err)
	}
	v := must(Open(Config{Issuer: "https://login.example", Audience: []string{"shop"}, KeysFile: file}))
	genuine := sign(jose.ES256, ecKey, "", good())
	f.Add(genuine)
	f.Add(raw(`{"alg":"none"}`, `{}`, nil))
	f.Fuzz(func(t *testing.T, token string) {
		if c, err := v.Verify(t.Context(), token, 24*time.Hour); err == nil {
			if sub, _ := c.Text("sub"); sub != "user-1" { // the same claims in another spelling are the issuer's, too
				t.Errorf("%q was taken", token)
			}
		}
	})
}
