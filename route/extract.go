package route

import (
	"net/url"
	"strings"

	"github.com/atollhq/atoll/topo"
)

type sourceKind uint8

const (
	fromHeader sourceKind = iota
	fromCookie
	fromPath
	fromQuery
	fromJWT
	fromCertificate
)

// source is one place where a request may carry its key.
type source struct {
	kind    sourceKind
	name    string // header in canonical form, cookie, parameter, claim, or field of a certificate
	segment int    // 1-based
}

// bucketOf tries the route's sources in order; the first that has a value decides.
func (r *Route) bucketOf(req *Request) (b topo.BucketID, name string, found bool, reason Reason) {
	for i := range r.sources {
		raw, reason := r.sources[i].read(req)
		if reason != None {
			return 0, "", false, reason
		}
		if raw == "" {
			continue
		}
		var buf [MaxKey]byte
		key, err := appendCanonical(buf[:0], r.space.Key, raw)
		if err != nil {
			return 0, "", false, MalformedKey
		}
		if r.keeps {
			name = string(key)
		}
		return bucketMD5(key, r.space.Buckets), name, true, None
	}
	return 0, "", false, None
}

// read returns the decoded value of the source, "" if the request does not have it.
func (s *source) read(req *Request) (string, Reason) {
	switch s.kind {
	case fromHeader:
		values := req.Header[s.name]
		if len(values) > 1 {
			return "", DuplicateKey
		}
		if len(values) == 1 {
			return values[0], None
		}
		return "", None
	case fromCookie:
		return cookie(req.Header["Cookie"], s.name)
	case fromPath:
		return pathSegment(req, s.segment)
	case fromJWT, fromCertificate:
		return s.verified(req.Verified)
	default:
		return queryValue(req.RawQuery, s.name)
	}
}

// verified asks whoever has verified the sender.
func (s *source) verified(v Verified) (string, Reason) {
	switch {
	case v == nil:
		return "", None
	case s.kind == fromJWT:
		return v.Claim(s.name)
	}
	return v.Certificate(topo.CertificateField(s.name))
}

// cookie finds a cookie by its exact name over all Cookie fields (HTTP/2 may split them, RFC 9113 section 8.2.3).
// Double quotes around a value are dropped, as net/http drops them.
func cookie(fields []string, name string) (string, Reason) {
	value, seen := "", false
	for _, field := range fields {
		for field != "" {
			var pair string
			pair, field, _ = strings.Cut(field, ";")
			n, v, _ := strings.Cut(strings.Trim(pair, " \t"), "=")
			if strings.Trim(n, " \t") != name {
				continue
			}
			if seen {
				return "", DuplicateKey
			}
			seen = true
			v = strings.Trim(v, " \t")
			if len(v) > 1 && v[0] == '"' && v[len(v)-1] == '"' {
				v = v[1 : len(v)-1]
			}
			value = v
		}
	}
	return value, None
}

// queryValue finds a parameter. A semicolon in the query, or a broken encoding of any name, is refused: a reader that
// takes it otherwise would see another key.
func queryValue(query, name string) (string, Reason) {
	if strings.IndexByte(query, ';') >= 0 {
		return "", MalformedKey
	}
	value, seen := "", false
	for query != "" {
		var pair string
		pair, query, _ = strings.Cut(query, "&")
		n, v, _ := strings.Cut(pair, "=")
		n, err := unescapeQuery(n)
		if err != nil {
			return "", MalformedKey
		}
		if n != name {
			continue
		}
		if seen {
			return "", DuplicateKey
		}
		seen = true
		if value, err = unescapeQuery(v); err != nil {
			return "", MalformedKey
		}
	}
	return value, None
}

func unescapeQuery(s string) (string, error) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, nil
	}
	return url.QueryUnescape(s)
}

// pathOf is the path to look at, and whether its segments are percent-encoded: only where the encoding matters does
// net/url keep the path as sent.
func pathOf(req *Request) (path string, encoded bool) {
	if req.RawPath != "" {
		return req.RawPath, true
	}
	return req.Path, false
}

// nextSegment cuts "/a/b" into "a" and "/b". ok is false at the end of the path.
func nextSegment(path string) (segment, rest string, ok bool) {
	if path == "" || path[0] != '/' {
		return "", "", false
	}
	path = path[1:]
	if i := strings.IndexByte(path, '/'); i >= 0 {
		return path[:i], path[i:], true
	}
	return path, "", true
}

func segmentIs(segment, want string, encoded bool) bool {
	if !encoded || strings.IndexByte(segment, '%') < 0 {
		return segment == want
	}
	s, err := url.PathUnescape(segment)
	return err == nil && s == want
}

func pathSegment(req *Request, n int) (string, Reason) {
	path, encoded := pathOf(req)
	segment := ""
	for range n {
		var ok bool
		if segment, path, ok = nextSegment(path); !ok {
			return "", None
		}
	}
	if !encoded || strings.IndexByte(segment, '%') < 0 {
		return segment, None
	}
	s, err := url.PathUnescape(segment)
	if err != nil {
		return "", MalformedKey
	}
	return s, None
}

// badPath finds dot segments, encoded or not: what takes them away before it routes would route elsewhere. So would what
// takes away parameters first ("..;x"). A path that is not absolute is bad too.
func badPath(req *Request) bool {
	path, encoded := pathOf(req)
	if path == "" || path[0] != '/' {
		return true
	}
	for path != "" {
		var segment string
		segment, path, _ = nextSegment(path)
		segment, _, _ = strings.Cut(segment, ";")
		if len(segment) <= 6 && (segmentIs(segment, ".", encoded) || segmentIs(segment, "..", encoded)) {
			return true
		}
	}
	return false
}
