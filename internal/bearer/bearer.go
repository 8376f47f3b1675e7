// Package bearer verifies the tokens (JWT, RFC 7519) that users bring, and tells their claims.
//
// The main type is [Verifier]. Its keys come from a file (PEM or JWKS), read again when it changes, or from an https URL,
// fetched again after a while and when a token names a key that is not known; [Verifier.Run] does the fetching.
//
// It guarantees that a claim is told only of a token whose signature, issuer, audience and time were checked, and that a
// key is used only with algorithms of its own kind (RFC 8725, section 3.1). It refuses tokens without an end, and never
// reads keys from a token. What is wrong with a token is [ErrExpired] or [ErrBad]; [ErrNoKeys] is nobody's fault but ours.
package bearer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// Why a token is not taken.
var (
	ErrBad     = errors.New("the token is not valid")
	ErrExpired = errors.New("the token is out of date")
	ErrNoKeys  = errors.New("no keys to verify tokens with are known yet")
)

// MaxToken is the longest token in bytes.
const MaxToken = 16 << 10

// Algorithms are those that can be allowed. The symmetric ones need a JWKS file with a secret in it, and have to be named.
var Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"}

// Asymmetric are the algorithms that are allowed where none are named.
var Asymmetric = slices.DeleteFunc(slices.Clone(Algorithms), symmetric)

func symmetric(algorithm string) bool { return strings.HasPrefix(algorithm, "HS") }

// Config says which tokens are good. Exactly one of KeysFile and KeysURL is set.
type Config struct {
	Issuer     string   // iss, exactly
	Audience   []string // aud has one of them
	Algorithms []string // nil: Asymmetric
	KeysFile   string   // PEM (public keys, certificates) or JWKS
	KeysURL    string   // of a JWKS, https
	KeysCA     string   // PEM of the authorities for KeysURL; "": the system's
	KeepIn     string   // file for the last good keys of KeysURL; "" keeps none
	Refresh    time.Duration
	Leeway     time.Duration // between the issuer's clock and this one
	Log        *slog.Logger
}

// Verifier verifies tokens. It is safe for concurrent use.
type Verifier struct {
	conf    Config
	allowed []jose.SignatureAlgorithm
	keys    func() keySet
	remote  *remote // nil with a file
}

// Open checks the configuration and reads the keys of a file. Those of a URL are fetched by Run.
func Open(conf Config) (*Verifier, error) {
	if conf.Log == nil {
		conf.Log = slog.New(slog.DiscardHandler)
	}
	if len(conf.Algorithms) == 0 {
		conf.Algorithms = Asymmetric
	}
	if conf.Issuer == "" || len(conf.Audience) == 0 || slices.Contains(conf.Audience, "") {
		return nil, errors.New("tokens: name their issuer and audience; without these, tokens that were issued for somebody else would be taken")
	}
	v := &Verifier{conf: conf}
	for _, a := range conf.Algorithms {
		if !slices.Contains(Algorithms, a) {
			return nil, fmt.Errorf("tokens: algorithm %q; want some of %s", a, strings.Join(Algorithms, ", "))
		}
		if symmetric(a) && conf.KeysFile == "" {
			return nil, fmt.Errorf("tokens: %s takes a secret, which no URL publishes; name a keys file", a)
		}
		v.allowed = append(v.allowed, jose.SignatureAlgorithm(a))
	}
	var err error
	switch {
	case (conf.KeysFile == "") == (conf.KeysURL == ""):
		return nil, errors.New("tokens: want either a file or a URL of keys")
	case conf.KeysFile != "":
		v.keys, err = fileKeys(conf)
	default:
		if v.remote, err = newRemote(conf); err == nil {
			v.keys = v.remote.current
		}
	}
	if err != nil {
		return nil, fmt.Errorf("tokens: %w", err)
	}
	return v, nil
}

// Run keeps the keys of a URL fresh until ctx ends.
func (v *Verifier) Run(ctx context.Context) error {
	if v.remote == nil {
		<-ctx.Done()
		return ctx.Err()
	}
	return v.remote.run(ctx)
}

// Verify checks a token and tells its claims. late is how much longer than the leeway it may have been under way.
func (v *Verifier) Verify(ctx context.Context, token string, late time.Duration) (Claims, error) {
	if len(token) > MaxToken {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrBad, MaxToken)
	}
	parsed, err := jwt.ParseSigned(token, v.allowed) // compact form, one signature, an allowed algorithm, no unknown crit
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	head := parsed.Headers[0]
	candidates, err := v.candidates(ctx, head.KeyID, head.Algorithm)
	if err != nil {
		return nil, err
	}
	var std jwt.Claims
	var claims Claims
	err = errors.New("no known key is its signer's")
	for _, k := range candidates {
		if err = parsed.Claims(k.key, &std, &claims); err == nil {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrBad, err)
	}
	return claims, v.inForce(std, late)
}

// inForce checks what a token whose signature is good says of itself.
func (v *Verifier) inForce(std jwt.Claims, late time.Duration) error {
	if std.Expiry == nil {
		return fmt.Errorf("%w: it has no end (exp)", ErrBad)
	}
	err := std.ValidateWithLeeway(jwt.Expected{Issuer: v.conf.Issuer, AnyAudience: v.conf.Audience, Time: time.Now()}, v.conf.Leeway+late)
	switch {
	case errors.Is(err, jwt.ErrExpired):
		return fmt.Errorf("%w: it ended at %s", ErrExpired, std.Expiry.Time().UTC().Format(time.RFC3339))
	case errors.Is(err, jwt.ErrNotValidYet), errors.Is(err, jwt.ErrIssuedInTheFuture):
		return fmt.Errorf("%w: %w", ErrExpired, err)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrBad, err)
	}
	return nil
}

// candidates finds the keys that may have signed a token. A name that is not known may be a new key's.
func (v *Verifier) candidates(ctx context.Context, kid, algorithm string) ([]key, error) {
	set := v.keys()
	found := set.find(kid, algorithm)
	if len(found) == 0 && v.remote != nil {
		v.remote.again(ctx)
		set = v.keys()
		found = set.find(kid, algorithm)
	}
	if len(set) == 0 {
		return nil, ErrNoKeys
	}
	return found, nil
}

// Claims are what a verified token says, by name, as JSON.
type Claims map[string]json.RawMessage

// Text is a claim as text: a string as it is, an integer in decimal. "" is a claim that is not there; anything else is no text.
func (c Claims) Text(name string) (string, bool) {
	raw := bytes.TrimSpace(c[name])
	switch {
	case len(raw) == 0 || bytes.Equal(raw, []byte("null")):
		return "", true
	case raw[0] == '"':
		var text string
		err := json.Unmarshal(raw, &text)
		return text, err == nil
	case isInteger(raw):
		return string(raw), true
	}
	return "", false
}

func isInteger(raw []byte) bool {
	digits := bytes.TrimPrefix(raw, []byte("-"))
	return len(digits) > 0 && !bytes.ContainsFunc(digits, func(r rune) bool { return r < '0' || r > '9' })
}
