// Package spec reads atoll.yaml, the one file that an operator writes: sites, keyspaces, tables, routes, policies.
//
// The main type is [Spec]; Load parses and validates it. Unknown keys and contradictions are refused with
// file, line, column and a hint. Secrets are never in the file: a DSN is named by environment variable or file.
package spec

import (
	"maps"
	"slices"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Version is the newest form of atoll.yaml that this build reads.
const Version = 1

// Spec is the whole of atoll.yaml.
type Spec struct {
	Version    int                           `yaml:"version" json:"version"`
	Deployment string                        `yaml:"deployment" json:"deployment"`
	Seed       topo.SiteID                   `yaml:"seed" json:"seed"`                       // the site whose database has the data at first; owns every bucket at first
	PKI        string                        `yaml:"pki,omitempty" json:"pki,omitempty"`     // folder of certificates, relative to the file; default "pki"
	State      string                        `yaml:"state,omitempty" json:"state,omitempty"` // folder of local state (store data, last view), relative to the file; default "state"
	Sites      map[topo.SiteID]*Site         `yaml:"sites" json:"sites"`
	Keyspaces  map[topo.KeyspaceID]*Keyspace `yaml:"keyspaces" json:"keyspaces"`
	Tables     map[string]*Table             `yaml:"tables" json:"tables"` // "schema.table"
	Routes     []*Route                      `yaml:"routes" json:"routes"`
	DNS        *DNS                          `yaml:"dns,omitempty" json:"dns,omitempty"`
	Policies   Policies                      `yaml:"policies,omitempty" json:"policies,omitempty"`
	Telemetry  *Telemetry                    `yaml:"telemetry,omitempty" json:"telemetry,omitempty"`
}

// Telemetry says where traces go. None: the trace context of requests passes as it is.
type Telemetry struct {
	OTLP      string   `yaml:"otlp" json:"otlp"`                               // host:port of a collector (OTLP over gRPC)
	Plaintext bool     `yaml:"plaintext,omitempty" json:"plaintext,omitempty"` // without TLS beyond loopback
	Sample    *float64 `yaml:"sample,omitempty" json:"sample,omitempty"`       // share of the traces that begin here, 0 to 1; default 0.01. A caller's decision stands
}

// Site is one failure domain. A witness has only a store.
type Site struct {
	Witness   bool                 `yaml:"witness,omitempty" json:"witness,omitempty"`
	Store     *StoreAddr           `yaml:"store,omitempty" json:"store,omitempty"`
	Agent     *AgentAddr           `yaml:"agent,omitempty" json:"agent,omitempty"`
	Standby   *AgentAddr           `yaml:"standby_agent,omitempty" json:"standby_agent,omitempty"` // a second agent of the site; which of the two is active, the lease says
	Gateways  map[string]*Gateway  `yaml:"gateways,omitempty" json:"gateways,omitempty"`           // by name
	Database  *Database            `yaml:"database,omitempty" json:"database,omitempty"`
	Upstreams map[string]*Upstream `yaml:"upstreams,omitempty" json:"upstreams,omitempty"` // this site's applications, by name
	// Reach overrides how this site's processes reach another site, where that is not the advertised address
	// (peering, NAT). By site, then by endpoint.
	Reach map[topo.SiteID]*Reach `yaml:"reach,omitempty" json:"reach,omitempty"`
}

// StoreAddr is where a site's store member listens. Host names are allowed; Listen* give the bind address where it
// differs.
type StoreAddr struct {
	Client       string `yaml:"client" json:"client"`                                   // host:port, mTLS
	Peer         string `yaml:"peer" json:"peer"`                                       // host:port, mTLS
	ListenClient string `yaml:"listen_client,omitempty" json:"listen_client,omitempty"` // ip:port, default: Client
	ListenPeer   string `yaml:"listen_peer,omitempty" json:"listen_peer,omitempty"`     // ip:port, default: Peer
}

// AgentAddr is where a site's agent listens; API and Link with mTLS.
type AgentAddr struct {
	API   string `yaml:"api" json:"api"`                         // host:port: operators, gateways, other agents
	Link  string `yaml:"link" json:"link"`                       // host:port: other agents' links
	Admin string `yaml:"admin,omitempty" json:"admin,omitempty"` // loopback ip:port without TLS: the status page, read only
}

// Gateway is where one gateway listens.
type Gateway struct {
	Listen    string    `yaml:"listen" json:"listen"`                             // ip:port for users and for this site's applications
	Peer      string    `yaml:"peer" json:"peer"`                                 // host:port for other sites' gateways, mTLS
	Admin     string    `yaml:"admin,omitempty" json:"admin,omitempty"`           // loopback ip:port: health, metrics
	TLS       *TLSFiles `yaml:"tls,omitempty" json:"tls,omitempty"`               // for Listen; files are read again when they change
	Zone      string    `yaml:"zone,omitempty" json:"zone,omitempty"`             // within its site: instances of upstreams there are preferred
	Plaintext bool      `yaml:"plaintext,omitempty" json:"plaintext,omitempty"`   // allow Listen without TLS beyond loopback
	AccessLog string    `yaml:"access_log,omitempty" json:"access_log,omitempty"` // file for a JSON line per request, "-" for standard output; none by default

	ProxyProtocol  []string `yaml:"proxy_protocol,omitempty" json:"proxy_protocol,omitempty"`   // addresses or networks of balancers whose connections to Listen begin with a PROXY header (v1 or v2)
	TrustedProxies []string `yaml:"trusted_proxies,omitempty" json:"trusted_proxies,omitempty"` // addresses or networks of proxies whose X-Forwarded-For, -Proto, -Host and Forwarded are kept and added to
	MaxConnections int      `yaml:"max_connections,omitempty" json:"max_connections,omitempty"` // of users, default 20000
	MaxPerClient   int      `yaml:"max_connections_per_client,omitempty" json:"max_connections_per_client,omitempty"`
}

// TLSFiles names a certificate and its key, relative to the file.
type TLSFiles struct {
	Cert     string `yaml:"cert,omitempty" json:"cert,omitempty"`
	Key      string `yaml:"key,omitempty" json:"key,omitempty"`
	ClientCA string `yaml:"client_ca,omitempty" json:"client_ca,omitempty"` // authorities of users' certificates; users may come without one
	ACME     *ACME  `yaml:"acme,omitempty" json:"acme,omitempty"`           // instead of cert and key
}

// ACME says for which names certificates are obtained, and from whom. The authority must reach Listen on port 443.
type ACME struct {
	Email   string   `yaml:"email,omitempty" json:"email,omitempty"`     // of the account, for the authority's warnings
	Domains []string `yaml:"domains" json:"domains"`                     // each gets a certificate
	CA      string   `yaml:"ca,omitempty" json:"ca,omitempty"`           // URL of the directory, default Let's Encrypt
	CARoot  string   `yaml:"ca_root,omitempty" json:"ca_root,omitempty"` // PEM of whom to trust when asking it, relative to the file; default: the system's
}

// Database says how to reach a site's database. Exactly one of Env and File per DSN.
type Database struct {
	DSNEnv       string `yaml:"dsn_env,omitempty" json:"dsn_env,omitempty"`             // agent's DSN, from this environment variable
	DSNFile      string `yaml:"dsn_file,omitempty" json:"dsn_file,omitempty"`           // agent's DSN, from this file
	AdminDSNEnv  string `yaml:"admin_dsn_env,omitempty" json:"admin_dsn_env,omitempty"` // for apply and remove; default: the agent's
	AdminDSNFile string `yaml:"admin_dsn_file,omitempty" json:"admin_dsn_file,omitempty"`
}

// Reach is how one site's processes reach another's endpoints; empty fields mean the advertised address.
type Reach struct {
	StoreClient string            `yaml:"store_client,omitempty" json:"store_client,omitempty"`
	AgentAPI    string            `yaml:"agent_api,omitempty" json:"agent_api,omitempty"`
	Link        string            `yaml:"link,omitempty" json:"link,omitempty"`
	StandbyAPI  string            `yaml:"standby_api,omitempty" json:"standby_api,omitempty"`
	StandbyLink string            `yaml:"standby_link,omitempty" json:"standby_link,omitempty"`
	Gateways    map[string]string `yaml:"gateways,omitempty" json:"gateways,omitempty"`
}

// Keyspace declares a set of keys that are placed together.
type Keyspace struct {
	Buckets int          `yaml:"buckets,omitempty" json:"buckets,omitempty"` // power of two; default 1024; 1 for a home keyspace
	Hash    string       `yaml:"hash,omitempty" json:"hash,omitempty"`       // default md5
	Key     topo.KeyForm `yaml:"key,omitempty" json:"key,omitempty"`         // default text
}

// Table declares how a table takes part.
type Table struct {
	Kind       topo.TableKind  `yaml:"kind" json:"kind"`
	Keyspace   topo.KeyspaceID `yaml:"keyspace,omitempty" json:"keyspace,omitempty"`
	Key        string          `yaml:"key,omitempty" json:"key,omitempty"`                 // column; keyed only
	AppendOnly bool            `yaml:"append_only,omitempty" json:"append_only,omitempty"` // no primary key, only inserts
	Identity   string          `yaml:"identity,omitempty" json:"identity,omitempty"`       // "full": no primary key, whole rows identify
}

// Route declares which requests go where.
type Route struct {
	Name        string           `yaml:"name" json:"name"`
	Match       Match            `yaml:"match" json:"match"`
	Upstream    string           `yaml:"upstream" json:"upstream"`                           // name under the site's upstreams
	Keyspace    topo.KeyspaceID  `yaml:"keyspace,omitempty" json:"keyspace,omitempty"`       // none: always served at the nearest site
	Key         []topo.KeySource `yaml:"key,omitempty" json:"key,omitempty"`                 // tried in order
	WithoutKey  topo.WithoutKey  `yaml:"without_key,omitempty" json:"without_key,omitempty"` // required with a keyspace of more than one bucket
	FencedRetry bool             `yaml:"fenced_retry,omitempty" json:"fenced_retry,omitempty"`
	HoldReads   bool             `yaml:"hold_reads,omitempty" json:"hold_reads,omitempty"`

	Priority      topo.Priority  `yaml:"priority,omitempty" json:"priority,omitempty"`             // high, normal (default) or low: who goes first, and who last, where the upstream has limits: and not all can
	Rate          *Rate          `yaml:"rate,omitempty" json:"rate,omitempty"`                     // how many requests are let through in a time; the others get 429
	Move          *Move          `yaml:"move,omitempty" json:"move,omitempty"`                     // a part of the requests goes to another upstream: the way out of a monolith
	Shadow        *Shadow        `yaml:"shadow,omitempty" json:"shadow,omitempty"`                 // copies of a part of the requests go to another upstream, and its answers are compared
	Reads         topo.Reads     `yaml:"reads,omitempty" json:"reads,omitempty"`                   // owner (default) or nearest: answered from the copy of the site that got them
	Session       topo.Sessions  `yaml:"session,omitempty" json:"session,omitempty"`               // header or cookie: answers carry what their reader has written and seen
	MaxStaleness  time.Duration  `yaml:"max_staleness,omitempty" json:"max_staleness,omitempty"`   // with reads: nearest, how old the copy may be; at least 2s
	WhenStale     topo.WhenStale `yaml:"when_stale,omitempty" json:"when_stale,omitempty"`         // owner (default), refuse, or serve where the owner cannot be reached
	SessionStrict bool           `yaml:"session_strict,omitempty" json:"session_strict,omitempty"` // 409 for a session that lost something in a failover
}

// Rate is a quota of the whole deployment. Each gateway has a fixed share of it and counts for itself.
type Rate struct {
	Per    topo.RatePer            `yaml:"per" json:"per"`                           // route, key or client: whose requests are counted together
	RPS    float64                 `yaml:"rps" json:"rps"`                           // a second, in the long run
	Burst  int                     `yaml:"burst,omitempty" json:"burst,omitempty"`   // at once; default: what a second gives
	Shares map[topo.SiteID]float64 `yaml:"shares,omitempty" json:"shares,omitempty"` // of the sites, relative to each other; default: the same for each
}

// Match selects requests.
type Match struct {
	Hosts   []string `yaml:"hosts,omitempty" json:"hosts,omitempty"`
	Path    string   `yaml:"path" json:"path"`
	Methods []string `yaml:"methods,omitempty" json:"methods,omitempty"`
}

// Policies bound waiting; every field has a default.
type Policies struct {
	Lease    LeasePolicy    `yaml:"lease,omitempty" json:"lease,omitempty"`
	Switch   SwitchPolicy   `yaml:"switch,omitempty" json:"switch,omitempty"`
	Failover FailoverPolicy `yaml:"failover,omitempty" json:"failover,omitempty"`
	Hold     HoldPolicy     `yaml:"hold,omitempty" json:"hold,omitempty"`
	Store    StorePolicy    `yaml:"store,omitempty" json:"store,omitempty"`
	JWT      JWTPolicy      `yaml:"jwt,omitempty" json:"jwt,omitempty"`
}

// JWTPolicy says which tokens are good, for routes whose key is a claim.
type JWTPolicy struct {
	Issuer     string        `yaml:"issuer,omitempty" json:"issuer,omitempty"`         // iss, exactly
	Audience   []string      `yaml:"audience,omitempty" json:"audience,omitempty"`     // aud has one of these
	Algorithms []string      `yaml:"algorithms,omitempty" json:"algorithms,omitempty"` // default: all asymmetric ones; HS256, HS384, HS512 take a secret in keys_file
	KeysFile   string        `yaml:"keys_file,omitempty" json:"keys_file,omitempty"`   // PEM or JWKS, relative to the file; read again when it changes
	KeysURL    string        `yaml:"keys_url,omitempty" json:"keys_url,omitempty"`     // https URL of a JWKS
	KeysCA     string        `yaml:"keys_ca,omitempty" json:"keys_ca,omitempty"`       // PEM of the authorities for keys_url; default: the system's
	Refresh    time.Duration `yaml:"refresh,omitempty" json:"refresh,omitempty"`       // of keys_url, default 10m
	Leeway     time.Duration `yaml:"leeway,omitempty" json:"leeway,omitempty"`         // between the issuer's clock and the gateway's, default 30s
	Cookie     string        `yaml:"cookie,omitempty" json:"cookie,omitempty"`         // where a token may come besides Authorization: Bearer
}

// The modes of a failover.
const (
	FailoverAutomatic = "automatic" // a lost site is taken over
	FailoverObserve   = "observe"   // what would be done is said, and not done
	FailoverManual    = "manual"    // operators only
)

// What a site does while it does not reach the store's quorum.
const (
	QuorumStop    = "stop"
	QuorumPromise = "promise"
	QuorumKeep    = "keep"
)

// FailoverPolicy says when another site takes over from one that is lost, and when it does not by itself.
type FailoverPolicy struct {
	Mode         string         `yaml:"mode,omitempty" json:"mode,omitempty"`                     // automatic, observe (default) or manual
	QuietTime    *time.Duration `yaml:"quiet_time,omitempty" json:"quiet_time,omitempty"`         // no automatic failover of a bucket so soon after its last; default 10m, 0 is off
	MaxLoss      time.Duration  `yaml:"max_loss,omitempty" json:"max_loss,omitempty"`             // automatic only if at most so much of the lost site's time is missing, as estimated; default 30s
	PerHour      int            `yaml:"per_hour,omitempty" json:"per_hour,omitempty"`             // automatic failovers in any hour, in the whole deployment; default 3
	OnQuorumLoss string         `yaml:"on_quorum_loss,omitempty" json:"on_quorum_loss,omitempty"` // while a site does not reach the store's quorum: stop (default) its writes; promise: go on as long as every other full site promises not to take over; keep: go on, and never fail over automatically
	VetoBound    time.Duration  `yaml:"veto_bound,omitempty" json:"veto_bound,omitempty"`         // a site that says over its link that it serves puts a failover off for at most this long; default 3 leases
}

// LeasePolicy: D and W of docs/ownership.
type LeasePolicy struct {
	Duration time.Duration `yaml:"duration,omitempty" json:"duration,omitempty"` // D, default 10s
	W        time.Duration `yaml:"w,omitempty" json:"w,omitempty"`               // bound between fence check and commit, default 2s
	Margin   time.Duration `yaml:"margin,omitempty" json:"margin,omitempty"`     // taken off the deadline in the database, default D/10
}

// SwitchPolicy bounds the steps of a switch.
type SwitchPolicy struct {
	MaxLag      time.Duration `yaml:"max_lag,omitempty" json:"max_lag,omitempty"`           // PREPARE refuses beyond, default 5s
	DrainBound  time.Duration `yaml:"drain_bound,omitempty" json:"drain_bound,omitempty"`   // MOVING: wait for gateways and requests in flight, default 1s
	FenceBound  time.Duration `yaml:"fence_bound,omitempty" json:"fence_bound,omitempty"`   // FENCED: wait writers out, default 5s
	CatchBound  time.Duration `yaml:"catch_bound,omitempty" json:"catch_bound,omitempty"`   // CAUGHT_UP: wait for the marker, default 10s
	EndBlockers bool          `yaml:"end_blockers,omitempty" json:"end_blockers,omitempty"` // end writers beyond FenceBound instead of aborting
}

// HoldPolicy caps what a gateway holds.
type HoldPolicy struct {
	MaxTime      time.Duration `yaml:"max_time,omitempty" json:"max_time,omitempty"`             // per request, default 15s
	MaxPerBucket int           `yaml:"max_per_bucket,omitempty" json:"max_per_bucket,omitempty"` // default 1000
	MaxRequests  int           `yaml:"max_requests,omitempty" json:"max_requests,omitempty"`     // per gateway, default 10000
}

// StorePolicy times the embedded store.
type StorePolicy struct {
	External  []string      `yaml:"external,omitempty" json:"external,omitempty"`   // etcd client URLs; set: no embedded member
	Heartbeat time.Duration `yaml:"heartbeat,omitempty" json:"heartbeat,omitempty"` // default 50ms
	Election  time.Duration `yaml:"election,omitempty" json:"election,omitempty"`   // default 500ms
}

// SiteIDs lists all sites in order of name.
func (s *Spec) SiteIDs() []topo.SiteID { return slices.Sorted(maps.Keys(s.Sites)) }
