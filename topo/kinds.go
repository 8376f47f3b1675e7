package topo

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

// KeySource is one place where a request may carry its key; exactly one field is set.
type KeySource struct {
	Header string `json:"header,omitempty" yaml:"header,omitempty"` // header name
	Cookie string `json:"cookie,omitempty" yaml:"cookie,omitempty"` // cookie name
	Path   int    `json:"path,omitempty" yaml:"path,omitempty"`     // 1-based segment: 2 is "42" in /users/42
	Query  string `json:"query,omitempty" yaml:"query,omitempty"`   // parameter name
}

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
}
