package topo

import "time"

// TableKind says how a table takes part; it is the level of the table (see "Levels" in docs/concepts.md).
type TableKind string

const (
	// Keyed: each row belongs to the bucket of its key; writes are accepted at the bucket's owner.
	Keyed TableKind = "keyed"
	// Home: all rows belong to one bucket of a keyspace; writes are accepted at its owner.
	Home TableKind = "home"
	// Shared: writes are accepted everywhere; a conflict rule decides.
	Shared TableKind = "shared"
	// Local: neither fenced nor replicated.
	Local TableKind = "local"
)

// WithoutKey is a route's own word for a request that carries no key.
type WithoutKey string

const (
	// RefuseKeyless answers 400.
	RefuseKeyless WithoutKey = "refuse"
	// HomeKeyless sends to the owner of the keyspace's bucket 0.
	HomeKeyless WithoutKey = "home"
	// NearestKeyless serves at the site that got the request.
	NearestKeyless WithoutKey = "nearest"
)

// KeyForm says how a key is brought into the one form that is hashed, alike in gateway, SDK and database.
type KeyForm string

const (
	// TextKey hashes the key's bytes as they are.
	TextKey KeyForm = "text"
	// IntegerKey wants a decimal integer and drops leading zeros and a plus sign, as the database prints it.
	IntegerKey KeyForm = "integer"
	// UUIDKey wants a UUID and hashes its lower-case hyphenated form.
	UUIDKey KeyForm = "uuid"
)

// HashMD5 is the bucket hash: big-endian first four bytes of MD5(key) & (buckets-1).
const HashMD5 = "md5"

// Keyspace is the declared form of a keyspace.
type Keyspace struct {
	Buckets int     `json:"buckets"`
	Hash    string  `json:"hash"`
	Key     KeyForm `json:"key"`
}

// Reads says where a route's reads are answered.
type Reads string

const (
	// OwnerReads go to the owner of their bucket; so do those of a route that says nothing.
	OwnerReads Reads = "owner"
	// NearestReads are answered by the site that got them, from its copy, which may be behind the owner's.
	NearestReads Reads = "nearest"
)

// WhenStale says what becomes of a read from a copy that is older than its route allows.
type WhenStale string

const (
	// StaleToOwner: the owner answers it; where it cannot be reached, nobody does. The default.
	StaleToOwner WhenStale = "owner"
	// StaleRefused: 503.
	StaleRefused WhenStale = "refuse"
	// StaleServed: the owner answers it; where it cannot be reached, the copy does, and says how old it is.
	StaleServed WhenStale = "serve"
)

// Sessions says how a route's answers carry a session token: what their reader has written and seen. Who brings it along
// with a later request is answered by a site that has it.
type Sessions string

const (
	// NoSessions: a route without tokens.
	NoSessions Sessions = ""
	// HeaderSessions: in the header Atoll-Session, for clients that send one: "new" at first, then the newest that they got.
	HeaderSessions Sessions = "header"
	// CookieSessions: in a cookie besides, for everybody; browsers send it again.
	CookieSessions Sessions = "cookie"
)

// Priority says which routes' requests go first where a service cannot take all.
type Priority string

const (
	// LowPriority goes last, and is turned away first.
	LowPriority Priority = "low"
	// NormalPriority is that of a route that says nothing.
	NormalPriority Priority = "normal"
	// HighPriority goes first.
	HighPriority Priority = "high"
)

// RatePer says whose requests a quota counts together.
type RatePer string

const (
	// PerRoute counts all of a route's requests together.
	PerRoute RatePer = "route"
	// PerKey counts those of each key, and those without a key per client.
	PerKey RatePer = "key"
	// PerClient counts those of each address; of IPv6, of each /64.
	PerClient RatePer = "client"
)

// Rate is the quota of a route at one gateway.
type Rate struct {
	Per       RatePer `json:"per"`
	PerSecond float64 `json:"per_second"`
	Burst     int     `json:"burst"` // at once
}

// Move sends a part of a route's requests to another upstream of the site: by key, and by client where there is none. Zero
// fields take their defaults.
type Move struct {
	To     string        `json:"to"`               // name of an upstream of the site
	Share  float64       `json:"share"`            // of the keys, 0 to 1
	Errors float64       `json:"errors,omitempty"` // by how much more of the answers may be failures than at the other one; default 0.02
	Window time.Duration `json:"window,omitempty"` // over which they are counted; default 1 min
}

// Shadow sends copies of a part of a route's requests to another upstream of the site, and drops the answers. Zero fields take their
// defaults.
type Shadow struct {
	To      string        `json:"to"`                // name of an upstream of the site: the candidate
	Share   float64       `json:"share"`             // of the keys, and of requests without one, 0 to 1
	Writes  bool          `json:"writes,omitempty"`  // others than GET and HEAD, too: the candidate executes them
	Compare *Comparison   `json:"compare,omitempty"` // nil: nothing is compared
	Timeout time.Duration `json:"timeout,omitempty"` // for an answer of the candidate, all of it; default 2 s
	Errors  float64       `json:"errors,omitempty"`  // so many of its answers may be failures or late; default 0.05
	Window  time.Duration `json:"window,omitempty"`  // over which they are counted; default 1 min
}

// Comparison says what of a candidate's answers is compared with the primary's.
type Comparison struct {
	Headers []string `json:"headers,omitempty"` // nil: Content-Type
	Ignore  []string `json:"ignore,omitempty"`  // JSON pointers; * takes any one name or index
	Noise   float64  `json:"noise,omitempty"`   // of the copied reads, the primary is asked again about so many; default 0.1
	Values  bool     `json:"values,omitempty"`  // keep examples of values, not only their types
}

// KeySource is one place where a request may carry its key; exactly one field is set.
type KeySource struct {
	Header string `json:"header,omitempty" yaml:"header,omitempty"` // header name
	Cookie string `json:"cookie,omitempty" yaml:"cookie,omitempty"` // cookie name
	Path   int    `json:"path,omitempty" yaml:"path,omitempty"`     // 1-based segment: 2 is "42" in /users/42
	Query  string `json:"query,omitempty" yaml:"query,omitempty"`   // parameter name
	JWT    string `json:"jwt,omitempty" yaml:"jwt,omitempty"`       // claim of a verified token

	Certificate CertificateField `json:"certificate,omitempty" yaml:"certificate,omitempty"` // of a client's verified certificate
}

// CertificateField is what of a client's certificate is its key.
type CertificateField string

const (
	// CommonName is the subject's common name.
	CommonName CertificateField = "cn"
	// DNSName is the only DNS name.
	DNSName CertificateField = "dns"
	// URIName is the only URI, for example a SPIFFE ID.
	URIName CertificateField = "uri"
)

// Route is the declared form of a route: which requests it takes and where they go.
type Route struct {
	Name        string      `json:"name"`
	Hosts       []string    `json:"hosts,omitempty"`   // empty: any
	Path        string      `json:"path"`              // prefix of whole segments: /seats takes /seats and /seats/1/reserve
	Methods     []string    `json:"methods,omitempty"` // empty: any
	Upstream    string      `json:"upstream"`          // name of an upstream of the site
	Keyspace    KeyspaceID  `json:"keyspace,omitempty"`
	Key         []KeySource `json:"key,omitempty"`
	WithoutKey  WithoutKey  `json:"without_key,omitempty"`
	FencedRetry bool        `json:"fenced_retry,omitempty"`
	HoldReads   bool        `json:"hold_reads,omitempty"`
	Reads       Reads       `json:"reads,omitempty"` // "": owner
	Session     Sessions    `json:"session,omitempty"`
	Priority    Priority    `json:"priority,omitempty"` // "": normal
	Rate        *Rate       `json:"rate,omitempty"`     // nil: any number
	Move        *Move       `json:"move,omitempty"`
	Shadow      *Shadow     `json:"shadow,omitempty"`
	// MaxStaleness bounds how old a copy may be that answers; 0: any age. WhenStale says what becomes of others.
	MaxStaleness time.Duration `json:"max_staleness,omitempty"`
	WhenStale    WhenStale     `json:"when_stale,omitempty"`
	Strict       bool          `json:"session_strict,omitempty"` // a request whose session lost something is refused, not answered with a word about it
}
