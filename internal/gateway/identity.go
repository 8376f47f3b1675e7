package gateway

import (
	"crypto/x509"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/bearer"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// tokenLate is how much longer than its hold a request may be on its way to another gateway, which verifies its token again.
const tokenLate = 10 * time.Second

// identity is who sends a request, as far as that was verified: by the token's signature, and by the listener that wanted
// the certificate. What another gateway passes on it says of the certificate; the token is looked at again.
type identity struct {
	g    *Gateway
	r    *http.Request
	peer bool // the request comes from another gateway

	verified bool // the token was looked at
	claims   bearer.Claims
	reason   route.Reason
}

// Claim is a claim of the request's token.
func (w *identity) Claim(name string) (string, route.Reason) {
	if !w.verified {
		w.verified = true
		w.verify()
	}
	if w.reason != route.None {
		return "", w.reason
	}
	text, ok := w.claims.Text(name)
	if !ok {
		return "", route.MalformedKey
	}
	return text, route.None
}

func (w *identity) verify() {
	token, found, reason := tokenOf(w.r, w.g.conf.TokenCookie)
	if !found || reason != route.None {
		w.reason = reason
		return
	}
	late := time.Duration(0)
	if w.peer {
		late = w.g.conf.Hold.MaxTime + tokenLate // it was good when the request came in
	}
	var err error
	w.claims, err = w.g.conf.Tokens.Verify(w.r.Context(), token, late)
	switch {
	case err == nil:
		return
	case errors.Is(err, bearer.ErrExpired):
		w.reason = route.ExpiredToken
	case errors.Is(err, bearer.ErrNoKeys):
		w.reason = reasonNoTokenKeys
	default:
		w.reason = route.BadToken
	}
	w.g.log.Debug("refused a token", "reason", w.reason, "error", err)
}

// tokenOf finds the one token that a request brings. Two of them would let the application read the other one.
func tokenOf(r *http.Request, cookie string) (token string, found bool, reason route.Reason) {
	fields := r.Header["Authorization"]
	if len(fields) > 1 {
		return "", false, route.DuplicateKey
	}
	if len(fields) == 1 {
		scheme, rest, _ := strings.Cut(fields[0], " ")
		token, found = strings.TrimLeft(rest, " "), strings.EqualFold(scheme, "Bearer")
	}
	if cookie == "" {
		return token, found, route.None
	}
	cookies := r.CookiesNamed(cookie)
	switch {
	case len(cookies) == 0:
	case len(cookies) > 1, found && token != cookies[0].Value:
		return "", false, route.DuplicateKey
	default:
		token, found = cookies[0].Value, true
	}
	return token, found, route.None
}

// Certificate is a field of the client's certificate.
func (w *identity) Certificate(field topo.CertificateField) (string, route.Reason) {
	var values []string
	if w.peer {
		told, err := passedOn(w.r.Header)
		if err != nil {
			return "", route.MalformedKey
		}
		values = told[string(field)]
	} else if leaf := clientCertificate(w.r); leaf != nil {
		values = certificateValues(leaf, field)
	}
	switch len(values) {
	case 0:
		return "", route.None
	case 1:
		return values[0], route.None
	}
	return "", route.DuplicateKey
}

// clientCertificate is the certificate that the listener has verified, nil without one.
func clientCertificate(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return nil
	}
	return r.TLS.VerifiedChains[0][0]
}

func certificateValues(leaf *x509.Certificate, field topo.CertificateField) (out []string) {
	switch field {
	case topo.DNSName:
		return leaf.DNSNames
	case topo.URIName:
		for _, u := range leaf.URIs {
			out = append(out, u.String())
		}
	case topo.CommonName:
		if leaf.Subject.CommonName != "" {
			out = []string{leaf.Subject.CommonName}
		}
	}
	return out
}

// passOn tells the next gateway what the listener has verified, as far as the route asks for it. Copies that users send
// were taken away, and only gateways are let in there.
func passOn(out http.Header, r *http.Request, rt *route.Route) {
	leaf := clientCertificate(r)
	if leaf == nil {
		return
	}
	told := make(url.Values)
	for _, k := range rt.Key {
		if values := certificateValues(leaf, k.Certificate); len(values) > 0 {
			told[string(k.Certificate)] = values
		}
	}
	if len(told) > 0 {
		out[hCertificate] = []string{told.Encode()}
	}
}

func passedOn(h http.Header) (url.Values, error) {
	if len(h[hCertificate]) == 0 {
		return nil, nil
	}
	text, err := single(h, hCertificate)
	if err != nil {
		return nil, err
	}
	return url.ParseQuery(text)
}
