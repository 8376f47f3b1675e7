package gateway

import (
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"github.com/atollhq/atoll/route"
)

// Who sent a request, from where and how, is told to the application in X-Forwarded-For, -Host and -Proto. Whom to believe is
// decided once, here, by the address at the other end of the connection: what a trusted proxy says is kept and added to;
// what anybody else says is taken away, in every spelling.

// forwardedNames say the same, or where a proxy has rewritten the request; so does everything that begins with X-Forwarded-.
var forwardedNames = map[string]bool{
	"Forwarded": true, "X-Real-Ip": true, "X-Client-Ip": true, "X-Cluster-Client-Ip": true, "True-Client-Ip": true, "Cf-Connecting-Ip": true,
	"X-Original-Url": true, "X-Original-Host": true, "X-Rewrite-Url": true,
}

const hClientCert = "X-Forwarded-Client-Cert"

func tellsOrigin(name string) bool {
	return forwardedNames[name] || strings.HasPrefix(name, "X-Forwarded-")
}

// outboundHeader is the header of a user's request as the application gets it.
func outboundHeader(r *http.Request, rt *route.Route, trusted []netip.Prefix) http.Header {
	h := r.Header.Clone()
	from, believed := sender(r, trusted)
	stripHop(h, func(name string) bool {
		return isKey(rt, name) || name == "Cookie" || name == "Authorization" || name == "Content-Type" || believed && tellsOrigin(name)
	})
	stripOurs(h)
	delete(h, "Expect") // the server has answered it, or will when the body is read
	stripAliases(h, rt)
	if !believed {
		for name := range h {
			if tellsOrigin(name) {
				delete(h, name)
			}
		}
	}
	tellOrigin(h, r, from)
	return h
}

// sender is the address at the other end, "" if it has none, and whether it is a trusted proxy's.
func sender(r *http.Request, trusted []netip.Prefix) (from string, believed bool) {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return "", false
	}
	if len(trusted) == 0 {
		return host, false
	}
	addr, err := netip.ParseAddr(host)
	return host, err == nil && contains(trusted, addr.Unmap().WithZone(""))
}

// clientAddress is who asks, as logs tell it: the address at the other end, or the last one before the trusted proxies.
func clientAddress(r *http.Request, trusted []netip.Prefix) string {
	from, believed := sender(r, trusted)
	if from == "" {
		return r.RemoteAddr
	}
	return beforeProxies(r, from, believed, trusted)
}

// client is who asks. Another gateway is believed whom it saw: it has said so last.
func (x *exchange) client() string {
	trusted := x.g.conf.Listen.Trusted
	if x.from == nil {
		return clientAddress(x.r, trusted)
	}
	return beforeProxies(x.r, x.r.RemoteAddr, true, trusted)
}

// beforeProxies is the last address in X-Forwarded-For that no trusted proxy is at, if who said it is believed.
func beforeProxies(r *http.Request, from string, believed bool, trusted []netip.Prefix) string {
	said := strings.Split(strings.Join(r.Header["X-Forwarded-For"], ","), ",")
	for i := len(said) - 1; believed && i >= 0; i-- {
		addr, err := netip.ParseAddr(strings.TrimSpace(said[i]))
		if err != nil {
			break // a proxy that is trusted says nothing that could be told
		}
		from, believed = addr.Unmap().String(), contains(trusted, addr.Unmap().WithZone(""))
	}
	return from
}

func isKey(rt *route.Route, name string) bool {
	for _, k := range rt.Key {
		if k.Header != "" && strings.EqualFold(k.Header, name) {
			return true
		}
	}
	return false
}

// stripAliases takes headers away that many applications take for another one, because underscores, dots and hyphens are the
// same to them: a route's key or a client's address would be read from what nobody here has looked at.
func stripAliases(h http.Header, rt *route.Route) {
	for name := range h {
		if !strings.ContainsAny(name, "_.") || isKey(rt, name) {
			continue
		}
		meant := http.CanonicalHeaderKey(strings.NewReplacer("_", "-", ".", "-").Replace(name))
		if tellsOrigin(meant) || isKey(rt, meant) {
			delete(h, name)
		}
	}
}

// tellOrigin sets or adds to what is said of where a request came from. What is left of it is a trusted proxy's.
func tellOrigin(h http.Header, r *http.Request, from string) {
	if from != "" {
		h["X-Forwarded-For"] = []string{strings.Join(append(h["X-Forwarded-For"], from), ", ")}
	}
	proto := "http"
	if r.TLS != nil {
		proto = "https"
	}
	if said := h["Forwarded"]; len(said) > 0 {
		h["Forwarded"] = []string{strings.Join(append(said, forwardedElement(r, from, proto)), ", ")}
	}
	if said := h["X-Forwarded-Proto"]; len(said) != 1 || said[0] != "http" && said[0] != "https" {
		h["X-Forwarded-Proto"] = []string{proto}
	}
	if said := h["X-Forwarded-Host"]; len(said) != 1 || said[0] == "" {
		h["X-Forwarded-Host"] = []string{r.Host}
	}
	if leaf := clientCertificate(r); leaf != nil {
		sum := sha256.Sum256(leaf.Raw)
		text := "Hash=" + hex.EncodeToString(sum[:]) + `;Subject="` + quoted(leaf.Subject.String()) + `"`
		for _, u := range leaf.URIs {
			text += `;URI="` + quoted(u.String()) + `"`
		}
		for _, name := range leaf.DNSNames {
			text += `;DNS="` + quoted(name) + `"`
		}
		h[hClientCert] = []string{text}
	}
}

// forwardedElement is our part of Forwarded (RFC 7239).
func forwardedElement(r *http.Request, from, proto string) string {
	text := "for=unknown"
	if strings.Contains(from, ":") {
		text = `for="[` + from + `]"`
	} else if from != "" {
		text = "for=" + from
	}
	return text + `;host="` + quoted(r.Host) + `";proto=` + proto
}

// quoted escapes what may not stand in a quoted string; it leaves out what no header may have.
func quoted(text string) string {
	var b strings.Builder
	for _, c := range text {
		if c == '"' || c == '\\' {
			b.WriteByte('\\')
		}
		if c >= ' ' && c != 0x7f {
			b.WriteRune(c)
		}
	}
	return b.String()
}
