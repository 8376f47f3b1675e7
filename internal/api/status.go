package api

import (
	"time"

	"github.com/atollhq/atoll/topo"
)

// Status is what an agent knows of its deployment: the answer of GET /v1/status.
type Status struct {
	Deployment string           `json:"deployment"`
	Site       topo.SiteID      `json:"site"` // who answers
	At         time.Time        `json:"at"`
	Ownership  *OwnershipStatus `json:"ownership,omitempty"` // nil: the agent has none yet
	Sites      []SiteStatus     `json:"sites"`               // every full site, in order of name
	Handovers  []Handover       `json:"handovers"`           // the last 20, newest first
	Problems   []string         `json:"problems,omitempty"`  // what should be looked at
}

// OwnershipStatus sums the document up.
type OwnershipStatus struct {
	Generation uint64           `json:"generation"`
	Version    uint64           `json:"version"`
	Members    []topo.Member    `json:"members,omitempty"` // who takes part; empty: a document of an earlier build, all sites do
	Keyspaces  []KeyspaceStatus `json:"keyspaces"`
	// Unsettled are the failovers whose lost site has not come back as an equal: until then it may own nothing more.
	Unsettled []UnsettledStatus `json:"unsettled,omitempty"`
}

// UnsettledStatus is the tail that a failover left: what a lost site committed beyond the cut, not decided yet.
type UnsettledStatus struct {
	Handover topo.HandoverID `json:"handover"`
	Site     topo.SiteID     `json:"site"`    // that was lost, and may be returning
	Owner    topo.SiteID     `json:"owner"`   // of buckets that were the lost site's, now
	Buckets  int             `json:"buckets"` // of all keyspaces
	Position uint64          `json:"position"`
}

// KeyspaceStatus says where the buckets of a keyspace are.
type KeyspaceStatus struct {
	Keyspace topo.KeyspaceID `json:"keyspace"`
	Buckets  int             `json:"buckets"`
	Owners   []OwnerStatus   `json:"owners"`
	Moving   []MovingStatus  `json:"moving,omitempty"`
}

// OwnerStatus is one site's part of a keyspace.
type OwnerStatus struct {
	Site     topo.SiteID `json:"site"`
	Count    int         `json:"count"`
	Buckets  string      `json:"buckets"` // "0-511,600"
	MinEpoch topo.Epoch  `json:"min_epoch"`
	MaxEpoch topo.Epoch  `json:"max_epoch"`
}

// MovingStatus is a set of buckets that a handover has claimed.
type MovingStatus struct {
	Handover topo.HandoverID `json:"handover"`
	Buckets  string          `json:"buckets"`
	From     topo.SiteID     `json:"from"`
	To       topo.SiteID     `json:"to"`
}

// SiteStatus is what a site's agent says of itself. Error is set, and the rest empty, where it does not answer.
type SiteStatus struct {
	Site     topo.SiteID     `json:"site"`
	Error    string          `json:"error,omitempty"`
	Agent    string          `json:"agent,omitempty"`   // incarnation, new with each start
	Standby  bool            `json:"standby,omitempty"` // it does not keep the site's lease: another agent of the site does, or nobody
	Keeper   *KeeperStatus   `json:"keeper,omitempty"`
	Since    time.Time       `json:"since,omitzero"`
	Lease    LeaseStatus     `json:"lease"`
	Database DatabaseStatus  `json:"database"`
	Version  uint64          `json:"version"`        // ownership version that the agent has seen
	Opened   uint64          `json:"opened_version"` // ownership version that the fence enforces
	Links    []LinkStatus    `json:"links,omitempty"`
	Gateways []GatewayStatus `json:"gateways,omitempty"`
	// Returning says what failovers have left to do here, as the lost site or as one that took its buckets over.
	Returning []string `json:"returning,omitempty"`
}

// KeeperStatus is what the agent's keeper of lease and fence does.
type KeeperStatus struct {
	Doing string `json:"doing"`
	WMS   int64  `json:"w_ms"` // once the lease has run out, application transactions are ended within this time
	// WritersEnded counts those that were, since the start; WritersLeft says which could not be, and what is missing.
	WritersEnded int    `json:"writers_ended,omitempty"`
	WritersLeft  string `json:"writers_left,omitempty"`
	Clock        string `json:"clock,omitempty"`   // the last step of the database's clock
	Rebuild      bool   `json:"rebuild,omitempty"` // the database was adopted in the place of another, and is not settled yet
}

// LeaseStatus is how long the site may go on accepting writes.
type LeaseStatus struct {
	Live        bool  `json:"live"`
	RemainingMS int64 `json:"remaining_ms"`
	DurationMS  int64 `json:"duration_ms,omitempty"` // as declared; a renewal makes the remaining time jump to it
}

// DatabaseStatus is whether the agent reaches its database.
type DatabaseStatus struct {
	Connected bool   `json:"connected"`
	Identity  string `json:"identity,omitempty"` // system identifier/timeline
	Error     string `json:"error,omitempty"`
}

// LinkStatus is the stream of changes from one site (Origin) to another (Target), as the reporting site sees it.
type LinkStatus struct {
	Origin    topo.SiteID `json:"origin"`
	Target    topo.SiteID `json:"target"`
	Connected bool        `json:"connected"`          // and changes come
	State     string      `json:"state,omitempty"`    // at the target: connecting, copying, streaming, retrying
	Position  uint64      `json:"position,omitempty"` // applied at the target
	LagMS     int64       `json:"lag_ms"`             // at the target; -1 is unknown
	Error     string      `json:"error,omitempty"`
	// Halted names a failover from the origin for which the target applies nothing more of it, until the cut is recorded.
	Halted topo.HandoverID `json:"halted,omitempty"`
}

// GatewayStatus is a gateway of the reporting site.
type GatewayStatus struct {
	Gateway   string                  `json:"gateway"`
	Connected bool                    `json:"connected"`
	Version   uint64                  `json:"version"`
	InFlight  map[topo.HandoverID]int `json:"in_flight,omitempty"`
	SeenMS    int64                   `json:"seen_ms"` // since its last word
}
