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
	// Released names handovers whose new owner has opened its fence: gateways may release what they hold for them.
	// A document that shows a bucket open at its new owner is not enough, the database opens a moment later.
	Opened map[topo.SiteID]uint64 `json:"opened,omitempty"` // per site: highest ownership version it has opened for
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
