// Package route turns a request into a decision: which route takes it, which key it carries, which bucket that is, and
// what the gateway of a site does with it under a view. Gateway and SDK share it.
//
// The main types are [Table], compiled from the declared routes and keyspaces, which finds a request's [Target]; and
// [Site], one site's reading of a view, whose Decide says Local, Forward, Hold or Refuse.
//
// It guarantees the same bucket for a key as the database's fence computes (test vectors in testdata), and no
// allocation on the way from a target to a decision. It refuses what would let two readers see two keys: a key
// header, cookie or parameter that occurs twice, a malformed key, a path with dot segments. What a token or a certificate says
// comes verified, from whoever calls; what is wrong with it is refused, and never makes a request one without a key.
//
// Everything here is pure: no clock, no network, no disk.
package route

import "github.com/atollhq/atoll/topo"

// Verdict is what a gateway does with a request.
type Verdict uint8

const (
	// Refuse: answer at once; the decision's Reason says why.
	Refuse Verdict = iota
	// Local: pass on to this site's upstream.
	Local
	// Forward: pass on to a gateway of the decision's Site.
	Forward
	// Hold: keep the request waiting and decide again under a newer view; the Reason says for what it waits.
	Hold
)

func (v Verdict) String() string {
	return [...]string{Refuse: "refuse", Local: "local", Forward: "forward", Hold: "hold"}[v]
}

// Reason is one word for why a request was held or refused; it goes into the answer's Atoll-Reason and into metrics.
type Reason string

const (
	// None is the reason of a request that is passed on.
	None Reason = ""
	// NoRoute: no route takes the request.
	NoRoute Reason = "no-route"
	// BadPath: the path has dot segments or is no path.
	BadPath Reason = "bad-path"
	// NoKey: the route wants a key and the request has none.
	NoKey Reason = "no-key"
	// DuplicateKey: the key's header, cookie or parameter occurs more than once.
	DuplicateKey Reason = "duplicate-key"
	// MalformedKey: the key has no canonical form, or its encoding is broken.
	MalformedKey Reason = "malformed-key"
	// BadToken: the key is a claim of a token, and the token is not valid.
	BadToken Reason = "bad-token"
	// ExpiredToken: the key is a claim of a token, and the token's time is over or has not come.
	ExpiredToken Reason = "expired-token"
	// UnknownKeyspace: the view does not know the route's keyspace, or with other buckets than the route's.
	UnknownKeyspace Reason = "unknown-keyspace"
	// MovingBucket: a handover moves the bucket.
	MovingBucket Reason = "moving"
	// PendingOpen: the bucket came here with this view and the site's fence is not known to be open for it yet.
	PendingOpen Reason = "pending-open"
)

// Status is the HTTP status of an answer that refuses for this reason.
func (r Reason) Status() int {
	switch r {
	case NoRoute:
		return 404
	case BadPath, NoKey, DuplicateKey, MalformedKey:
		return 400
	case BadToken, ExpiredToken:
		return 401
	}
	return 503
}

// Request is what the table looks at; the fields are those of net/http and net/url.
type Request struct {
	Method   string
	Host     string // with or without port
	Path     string // decoded
	RawPath  string // as sent, only where that is not the default encoding of Path
	RawQuery string
	Header   map[string][]string // canonical names
	Verified Verified            // nil: nothing was verified of who sends it
}

// Verified tells what was verified of who sends a request. It is asked only for a route that takes its key from there, and
// only where no earlier source has it. "" is a request without a token or certificate, or one that does not say it.
type Verified interface {
	Claim(name string) (string, Reason)
	Certificate(field topo.CertificateField) (string, Reason)
}

// Target is where a request wants to go, whatever the view says.
type Target struct {
	Route  *Route
	Keyed  bool // it goes to the owner of Bucket; otherwise it is served where it arrived
	Bucket topo.BucketID
	Key    string // in its one form; only where the route counts or divides requests by key
	Write  bool   // held while the bucket moves; true for a read too where the route holds reads
	Safe   bool   // GET, HEAD, OPTIONS or TRACE
	// Nearest: a read that this site may answer from its copy, whoever owns the bucket. Whoever wants it to go to the owner
	// clears this.
	Nearest bool
}

// Decision is what a gateway does with a target under a view.
type Decision struct {
	Verdict Verdict
	Reason  Reason      // of Hold and Refuse
	Site    topo.SiteID // who serves: of Local and Forward
	Slot    topo.Slot   // what the view says about the bucket; zero without one
}

// SafeMethod tells whether a method is a read (RFC 9110, section 9.2.1).
func SafeMethod(method string) bool {
	switch method {
	case "GET", "HEAD", "OPTIONS", "TRACE":
		return true
	}
	return false
}
