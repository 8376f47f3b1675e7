package bearer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/atollhq/atoll/internal/reload"
)

const (
	maxKeys     = 1 << 20 // bytes of a file or an answer
	maxInSet    = 64      // keys
	minRSA      = 2048    // bits
	minSecret   = 32      // bytes
	maxAttempts = 8       // keys that are tried for one token
)

// key is one key with the algorithms that it may be used with.
type key struct {
	id         string // "": any
	algorithms []string
	key        any // *rsa.PublicKey, *ecdsa.PublicKey, ed25519.PublicKey or, of a secret, []byte
}

type keySet []key

// find lists the keys that may have signed a token: those that it names, or all of the algorithm if it names none.
func (s keySet) find(id, algorithm string) []key {
	var out []key
	for _, k := range s {
		if (id == "" || k.id == "" || k.id == id) && slices.Contains(k.algorithms, algorithm) && len(out) < maxAttempts {
			out = append(out, k)
		}
	}
	return out
}

func fileKeys(conf Config) (func() keySet, error) {
	secrets := slices.ContainsFunc(conf.Algorithms, symmetric)
	load := func() (keySet, error) {
		data, err := os.ReadFile(conf.KeysFile)
		if err != nil {
			return nil, err
		}
		s, err := parseKeys(data, secrets)
		if err != nil {
			return nil, fmt.Errorf("keys file %s: %w", conf.KeysFile, err)
		}
		return s, nil
	}
	report := func(err error) {
		if err != nil {
			conf.Log.Warn("the changed keys of tokens do not load; the last good ones stay in use", "error", err)
			return
		}
		conf.Log.Info("read the keys of tokens again", "file", conf.KeysFile)
	}
	v, err := reload.Open(load, report, conf.KeysFile)
	if err != nil {
		return nil, err
	}
	return v.Get, nil
}

// parseKeys reads PEM or a JWKS. secrets says whether symmetric keys are wanted; otherwise they are left out.
func parseKeys(data []byte, secrets bool) (keySet, error) {
	if len(data) > maxKeys {
		return nil, fmt.Errorf("larger than %d bytes", maxKeys)
	}
	var out keySet
	var err error
	if text := bytes.TrimSpace(data); bytes.HasPrefix(text, []byte("{")) {
		out, err = parseJWKS(text, secrets)
	} else {
		out, err = parsePEM(data)
	}
	if err == nil && len(out) == 0 {
		err = errors.New("it has no key that can be used; want PEM (PUBLIC KEY, CERTIFICATE) or a JWKS with keys for signatures")
	}
	if err == nil && len(out) > maxInSet {
		err = fmt.Errorf("it has more than %d keys", maxInSet)
	}
	return out, err
}

// parseJWKS leaves out keys of other kinds and for other uses, as RFC 7517, section 5 says.
func parseJWKS(data []byte, secrets bool) (keySet, error) {
	var doc struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	var out keySet
	for _, raw := range doc.Keys {
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || !k.Valid() && !isSecret(k.Key) || k.Use != "" && k.Use != "sig" {
			continue
		}
		usable := k.Key
		if !isSecret(usable) {
			usable = k.Public().Key
		} else if !secrets {
			continue
		}
		fits := fitting(usable)
		if k.Algorithm != "" {
			fits = slices.DeleteFunc(fits, func(a string) bool { return a != k.Algorithm })
		}
		if len(fits) > 0 {
			out = append(out, key{k.KeyID, fits, usable})
		}
	}
	return out, nil
}

func isSecret(k any) bool { _, is := k.([]byte); return is }

func parsePEM(data []byte) (keySet, error) {
	var out keySet
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return out, nil
		}
		var k any
		var err error
		switch {
		case strings.Contains(block.Type, "PRIVATE KEY"):
			return nil, errors.New("it has a private key; a gateway needs and should know the public one only")
		case block.Type == "CERTIFICATE":
			var cert *x509.Certificate
			if cert, err = x509.ParseCertificate(block.Bytes); err == nil {
				k = cert.PublicKey
			}
		case block.Type == "RSA PUBLIC KEY":
			k, err = x509.ParsePKCS1PublicKey(block.Bytes)
		default:
			k, err = x509.ParsePKIXPublicKey(block.Bytes)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", block.Type, err)
		}
		fits := fitting(k)
		if len(fits) == 0 {
			return nil, fmt.Errorf("%s: a %T that is too small or of an unknown kind; want RSA of %d bits or more, P-256, P-384, P-521 or Ed25519", block.Type, k, minRSA)
		}
		out = append(out, key{"", fits, k})
	}
}

// fitting lists the algorithms of a key's own kind: with any other, a public key could be taken for a secret.
func fitting(k any) []string {
	switch k := k.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() >= minRSA {
			return []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}
		}
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return []string{"ES256"}
		case elliptic.P384():
			return []string{"ES384"}
		case elliptic.P521():
			return []string{"ES512"}
		}
	case ed25519.PublicKey:
		return []string{"EdDSA"}
	case []byte:
		if len(k) >= minSecret {
			return []string{"HS256", "HS384", "HS512"}
		}
	}
	return nil
}
