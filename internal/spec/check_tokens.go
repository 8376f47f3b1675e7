package spec

import (
	"reflect"
	"slices"
	"strings"
	"time"
)

// jwtAlgorithms are those that can be allowed; the ones with HS take a secret.
var jwtAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "HS256", "HS384", "HS512"}

// tokens checks how tokens are verified.
func (c *checker) tokens(p JWTPolicy) {
	if reflect.ValueOf(p).IsZero() {
		return
	}
	here := func(keys ...any) []any { return append(at("policies", "jwt"), keys...) }
	if p.Issuer == "" {
		c.add(here(), "add issuer: with the value of iss; else a token that somebody else issued would be taken", "jwt has no issuer")
	}
	if len(p.Audience) == 0 || slices.Contains(p.Audience, "") {
		c.add(here(), "add audience: with the values of aud; else a token that was issued for another service would be taken", "jwt has no audience")
	}
	if (p.KeysFile == "") == (p.KeysURL == "") {
		c.add(here(), "", "jwt wants exactly one of keys_file and keys_url")
	}
	if p.KeysURL != "" && !strings.HasPrefix(p.KeysURL, "https://") {
		c.add(here("keys_url"), "who can change keys on their way can make tokens", "keys_url %q is not an https URL", p.KeysURL)
	}
	if p.KeysCA != "" && p.KeysURL == "" {
		c.add(here("keys_ca"), "drop it", "keys_ca is for keys_url, which is not there")
	}
	if p.Refresh > 0 && p.Refresh < 10*time.Second {
		c.add(here("refresh"), "the default is 10m; a key that is not known is asked for at once in any case", "refresh of %v", p.Refresh)
	}
	if p.Leeway > 10*time.Minute {
		c.add(here("leeway"), "the default is 30s", "a leeway of %v takes tokens that ended long ago", p.Leeway)
	}
	for i, a := range p.Algorithms {
		switch {
		case !slices.Contains(jwtAlgorithms, a):
			c.add(here("algorithms", i), "want some of "+strings.Join(jwtAlgorithms, ", "), "unknown algorithm %q", a)
		case strings.HasPrefix(a, "HS") && p.KeysFile == "":
			c.add(here("algorithms", i), "name a keys_file, or drop it", "%s takes a secret, which no URL publishes", a)
		}
	}
}
