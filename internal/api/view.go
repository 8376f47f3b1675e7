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
	// Gateway is set on the stream of a gateway, which passes the view on to applications of its site.
	Gateway *GatewayWord `json:"gateway,omitempty"`
}

// GatewayWord is what a gateway says of itself on each line of its stream GET /v1/view, at its admin address.
type GatewayWord struct {
	Site topo.SiteID `json:"site"`
	Name string      `json:"name"`
	// AgeMS is how long ago an agent last said something; negative: never since this gateway started.
	AgeMS int64 `json:"age_ms"`
	// LeaseMS is what is left of the site's lease under the view of this stream; <= 0: nothing.
	LeaseMS int64       `json:"lease_ms"`
	Table   *RouteTable `json:"table,omitempty"` // on the first line of a stream
}

// RouteTable is what a gateway routes by, as its specification declares it.
type RouteTable struct {
	Keyspaces map[topo.KeyspaceID]topo.Keyspace `json:"keyspaces"`
	Routes    []topo.Route                      `json:"routes"`
}

// ViewAck is the body of POST /v1/view/ack: a gateway sends it after it applied a view, when a count in InFlight
// falls to zero, and every second.
type ViewAck struct {
	Gateway    string `json:"gateway"`
	Generation uint64 `json:"generation"`
	Version    uint64 `json:"version"`
	// InFlight counts, per handover that the view shows as moving, the writes and strong reads that were passed on
	// before the gateway began to hold and have not been answered.
	InFlight map[topo.HandoverID]int `json:"in_flight,omitempty"`
}

// LeaseState answers a ViewAck: how long, from the moment the request was received, this site may go on accepting
// writes. A gateway's deadline is the moment at which it sent the request plus RemainingMS.
//
// Generation and Version are those of the agent's document, which is no older than the one under which the lease was
// given. A lease that begins after a failover says nothing about the views before it: a gateway whose view is older
// answers no strong read.
type LeaseState struct {
	RemainingMS int64  `json:"remaining_ms"` // <= 0: not serving
	Generation  uint64 `json:"generation,omitempty"`
	Version     uint64 `json:"version,omitempty"`
	// StaleMS is how old this site's copies of other sites' changes are at most: everything that a site had committed so long
	// ago is applied here. A site that is not named may be of any age.
	StaleMS map[topo.SiteID]int64 `json:"stale_ms,omitempty"`
}
