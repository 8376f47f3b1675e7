package api

import (
	"encoding/json"

	"github.com/atollhq/atoll/topo"
)

// ViewFormat is the version of the view stream that this build speaks.
const ViewFormat = 1

// ViewUpdate is one line of the stream GET /v1/view?gateway=NAME (application/x-ndjson). The first line carries the
// whole ownership document, later ones each newer document; a keepalive line has none. A line goes out at least
// every two seconds.
type ViewUpdate struct {
	Format    int             `json:"format"`
	Ownership json.RawMessage `json:"ownership,omitempty"` // topo.DecodeOwnership
	// OpenedVersion is the highest ownership version for which this site's database has opened its fence. A gateway
	// of the owner's site holds writes of a bucket that a newer document brought here until this reaches that
	// document's version: the document is committed a moment before the fence opens.
	OpenedVersion uint64 `json:"opened_version,omitempty"`
	// Standby: the agent that sends is not the active one of its site. It passes the document on, and knows nothing of
	// the fence: a gateway of the site looks for the active agent.
	Standby bool `json:"standby,omitempty"`
}

// ViewAck is the body of POST /v1/view/ack: a gateway sends it after it applied a view, when a count in InFlight
// falls to zero, and every second.
type ViewAck struct {
	Gateway    string `json:"gateway"`
	Generation uint64 `json:"generation"`
	Version    uint64 `json:"version"`
	// InFlight counts, per handover that the view shows as moving, the writes that were passed on before the gateway
	// began to hold and have not been answered.
	InFlight map[topo.HandoverID]int `json:"in_flight,omitempty"`
}

// LeaseState answers a ViewAck: how long, from the moment the request was received, this site may go on accepting
// writes. A gateway's deadline is the moment at which it sent the request plus RemainingMS.
type LeaseState struct {
	RemainingMS int64 `json:"remaining_ms"` // <= 0: not serving
}
