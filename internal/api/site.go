package api

import (
	"encoding/json"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// The steps of a switch that happen at a site. Every one may be asked for twice, late, or by two controllers at once:
// what changes a fence is monotonic in the epoch.

// ReadyRequest asks a site whether its part in a switch may start.
type ReadyRequest struct {
	Keyspace topo.KeyspaceID  `json:"keyspace"`
	Buckets  []topo.EpochSpan `json:"buckets"` // with the epochs that the store has
	From     topo.SiteID      `json:"from"`
	To       topo.SiteID      `json:"to"`
	MaxLagMS int64            `json:"max_lag_ms"`
}

// ReadyAnswer is empty of problems if it may.
type ReadyAnswer struct {
	Problems []Problem         `json:"problems,omitempty"`
	Facts    map[string]string `json:"facts,omitempty"`
}

// SettleRequest asks a site to wait until its gateways act on a version of the ownership document and have nothing in
// flight for the handover.
type SettleRequest struct {
	Handover   topo.HandoverID `json:"handover"`
	Generation uint64          `json:"generation"`
	Version    uint64          `json:"version"`
	Ownership  json.RawMessage `json:"ownership,omitempty"` // that version or a later one, so that the site need not fetch it
	BoundMS    int64           `json:"bound_ms"`
}

// SettleAnswer says what was waited for.
type SettleAnswer struct {
	Gateways  int      `json:"gateways"`            // that have settled
	Unsettled []string `json:"unsettled,omitempty"` // at the bound
	Gone      []string `json:"gone,omitempty"`      // left out: disconnected for too long to act on an older version
	WaitedUS  int64    `json:"waited_us"`
}

// CloseRequest asks a site to close its fence for buckets, wait writers out, and write its marker.
type CloseRequest struct {
	Handover    topo.HandoverID  `json:"handover"`
	Keyspace    topo.KeyspaceID  `json:"keyspace"`
	Buckets     []topo.EpochSpan `json:"buckets"`
	BoundMS     int64            `json:"bound_ms"`
	EndBlockers bool             `json:"end_blockers,omitempty"`
}

// CloseAnswer carries the marker, which is durable. Writers that outlived the bound are an Error with
// CodeWritersRemain.
type CloseAnswer struct {
	Marker change.Marker `json:"marker"`
}

// CaughtUpRequest asks a site to wait until it has applied the closing marker of a handover.
type CaughtUpRequest struct {
	Handover topo.HandoverID `json:"handover"`
	From     topo.SiteID     `json:"from"`
	BoundMS  int64           `json:"bound_ms"`
}

// CaughtUpAnswer carries the marker as the site has it. At the bound the answer is an Error with CodeNotYet.
type CaughtUpAnswer struct {
	Marker change.Marker `json:"marker"`
}

// OpenRequest asks a site to open its fence as a version of the ownership document says: behind a commit at the new
// owner (open), behind an abort at the old one (abort).
type OpenRequest struct {
	Handover   topo.HandoverID `json:"handover"`
	Generation uint64          `json:"generation"`
	Version    uint64          `json:"version"`
	Ownership  json.RawMessage `json:"ownership,omitempty"` // that version or a later one
	BoundMS    int64           `json:"bound_ms"`
}

// OpenAnswer is the version that the fence enforces now.
type OpenAnswer struct {
	Version uint64 `json:"version"`
}

// HaltRequest asks a site to apply nothing more of a lost one until the failover's cut is recorded there, or it is given
// up. Repeating it for the same failover changes nothing.
type HaltRequest struct {
	Handover topo.HandoverID `json:"handover"`
	Of       topo.SiteID     `json:"of"`  // the lost site
	For      topo.SiteID     `json:"for"` // the site that takes over
	BoundMS  int64           `json:"bound_ms"`
}

// HaltAnswer is how far the site has applied the lost one's changes, durably; 0 if it never had any.
type HaltAnswer struct {
	Position uint64 `json:"position"`
}

// UnhaltRequest lets the site apply them again, if it is this failover that halted them.
type UnhaltRequest struct {
	Handover topo.HandoverID `json:"handover"`
	Of       topo.SiteID     `json:"of"`
}

// UnhaltAnswer says that it does.
type UnhaltAnswer struct{}

// PromiseRequest is a site's plea to another one, while the store does not answer: not to take over from it for so long.
type PromiseRequest struct {
	Holder string `json:"holder"` // of its lease
	ForMS  int64  `json:"for_ms"`
}

// PromiseAnswer is what is promised, from the moment of the answer on; a refusal is an Error with CodeRefused.
type PromiseAnswer struct {
	ForMS int64 `json:"for_ms"`
}
