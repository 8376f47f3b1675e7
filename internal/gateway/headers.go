package gateway

import (
	"fmt"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/topo"
)

// Headers of our own; see the package comment for who sends which.
const (
	hKeyspace = "Atoll-Keyspace"
	hBucket   = "Atoll-Bucket"
	hEpoch    = "Atoll-Epoch"
	hView     = "Atoll-View"
	hHops     = "Atoll-Hops"
	hGateway  = "Atoll-Gateway"
	hSite     = "Atoll-Site"
	hHeld     = "Atoll-Held"
	hFenced   = "Atoll-Fenced"
	hReason   = "Atoll-Reason"
	hOwner    = "Atoll-Owner"
	hSession  = "Atoll-Session"
	hLost     = "Atoll-Session-Lost"

	hCertificate = "Atoll-Certificate"
	hStale       = "Atoll-Stale-Ms"
)

// hopHeaders belong to one connection (RFC 9110, section 7.6.1) and are never passed on.
var hopHeaders = []string{
	"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Trailer",
	"Transfer-Encoding", "Upgrade", "Http2-Settings",
}

// ours tells whether a header name is ours, also as applications read it that make the same of underscores, dots and hyphens.
func ours(name string) bool {
	return len(name) >= 6 && strings.EqualFold(name[:5], "atoll") && (name[5] == '-' || name[5] == '_' || name[5] == '.')
}

func stripOurs(h http.Header) {
	for name := range h {
		if ours(name) {
			delete(h, name)
		}
	}
}

// stripHop removes what belongs to the connection. keep lists headers that a Connection header may not take away:
// those from which the next gateway reads the key again.
func stripHop(h http.Header, keep func(string) bool) {
	for _, field := range h["Connection"] {
		for name := range strings.SplitSeq(field, ",") {
			name = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(name))
			if name != "" && (keep == nil || !keep(name)) {
				delete(h, name)
			}
		}
	}
	for _, name := range hopHeaders {
		delete(h, name)
	}
}

// forwarded is what the headers of a forwarded request say.
type forwarded struct {
	keyspace topo.KeyspaceID
	bucket   topo.BucketID
	epoch    topo.Epoch
	view     viewVersion
	hops     int
}

func (f forwarded) set(h http.Header) {
	h[hKeyspace] = []string{string(f.keyspace)}
	h[hBucket] = []string{strconv.FormatUint(uint64(f.bucket), 10)}
	h[hEpoch] = []string{strconv.FormatUint(uint64(f.epoch), 10)}
	h[hView] = []string{f.view.String()}
	h[hHops] = []string{strconv.Itoa(f.hops)}
}

// parseForwarded reads the headers of a forwarded request. Each must be there exactly once.
func parseForwarded(h http.Header) (forwarded, error) {
	var f forwarded
	ks, err := single(h, hKeyspace)
	if err == nil {
		f.keyspace, err = topo.KeyspaceID(ks), topo.CheckName(ks)
	}
	var n uint64
	if err == nil {
		n, err = number(h, hBucket, topo.MaxBuckets-1)
		f.bucket = topo.BucketID(n)
	}
	if err == nil {
		n, err = number(h, hEpoch, 1<<63)
		f.epoch = topo.Epoch(n)
	}
	if err == nil {
		n, err = number(h, hHops, 1000)
		f.hops = int(n)
	}
	if err == nil {
		var v string
		if v, err = single(h, hView); err == nil {
			f.view, err = parseVersion(v)
		}
	}
	return f, err
}

func single(h http.Header, name string) (string, error) {
	if v := h[name]; len(v) == 1 {
		return v[0], nil
	}
	return "", fmt.Errorf("header %s occurs %d times, want once", name, len(h[name]))
}

func number(h http.Header, name string, limit uint64) (uint64, error) {
	text, err := single(h, name)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n > limit {
		return 0, fmt.Errorf("header %s: %q is not a number up to %d", name, text, limit)
	}
	return n, nil
}

func parseVersion(text string) (viewVersion, error) {
	g, v, ok := strings.Cut(text, ".")
	generation, err1 := strconv.ParseUint(g, 10, 64)
	version, err2 := strconv.ParseUint(v, 10, 64)
	if !ok || err1 != nil || err2 != nil {
		return viewVersion{}, fmt.Errorf("view %q is not GENERATION.VERSION", text)
	}
	return viewVersion{generation, version}, nil
}

// parseFenced reads an application's Atoll-Fenced: KEYSPACE/BUCKET/EPOCH.
func parseFenced(h http.Header) (ks topo.KeyspaceID, b topo.BucketID, epoch topo.Epoch, ok bool) {
	text, err := single(h, hFenced)
	if err != nil {
		return "", 0, 0, false
	}
	parts := strings.Split(strings.TrimSpace(text), "/")
	if len(parts) != 3 {
		return "", 0, 0, false
	}
	bucket, err1 := strconv.ParseUint(parts[1], 10, 32)
	e, err2 := strconv.ParseUint(parts[2], 10, 64)
	if err1 != nil || err2 != nil || bucket >= topo.MaxBuckets {
		return "", 0, 0, false
	}
	return topo.KeyspaceID(parts[0]), topo.BucketID(bucket), topo.Epoch(e), true
}
