package api

import (
	"context"
	"net/http"
	"time"

	"github.com/atollhq/atoll/topo"
)

// What is known of a site's lease.
const (
	LeaseLive    = "live"    // renewed within its time
	LeaseLapsed  = "lapsed"  // not renewed in time, revoked, or never taken
	LeaseUnknown = "unknown" // neither the store nor the site's agents say
)

// Health is what an agent knows of which sites can serve users: the answer of GET /v1/health. It is for the site's own
// processes that send users somewhere, and cheaper than Status.
type Health struct {
	Site  topo.SiteID  `json:"site"` // who answers
	At    time.Time    `json:"at"`
	Holds bool         `json:"holds"` // the answering agent holds its site's lease, and that is in force
	Sites []SiteHealth `json:"sites"` // every full site, in order of name
}

// SiteHealth is what is known of one site.
type SiteHealth struct {
	Site          topo.SiteID `json:"site"`
	Member        bool        `json:"member"` // takes part and has joined; also while nothing is known of that
	Lease         string      `json:"lease"`  // live, lapsed or unknown
	GatewaysKnown bool        `json:"gateways_known"`
	Gateways      []string    `json:"gateways,omitempty"` // that are connected to the site's agent, where known
}

// Health asks which sites can serve users. Any agent of a site answers, the active one or not.
func (c *Client) Health(ctx context.Context) (Health, error) {
	return call[Health](ctx, c, http.MethodGet, "/v1/health", nil)
}
