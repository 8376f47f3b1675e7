package api

import (
	"context"
	"net/http"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// RebuildRequest asks a site's agent to bring its database, which is another one than before (a promoted standby, a
// restored copy, an empty one), to the content of the other full site.
type RebuildRequest struct {
	Site   topo.SiteID `json:"site"` // must be the site of the agent that is asked
	Why    string      `json:"why,omitempty"`
	DryRun bool        `json:"dry_run,omitempty"` // say whether it could start, and change nothing
}

// RebuildAnswer says what was done, or with DryRun that it would be tried. A refusal is an Error with CodeRefused.
type RebuildAnswer struct {
	Site      topo.SiteID       `json:"site"`
	From      topo.SiteID       `json:"from"`
	DryRun    bool              `json:"dry_run,omitempty"`
	Handovers []topo.HandoverID `json:"handovers,omitempty"` // failovers from the site that are not settled
	Copied    uint64            `json:"copied,omitempty"`    // position in From's stream of the content
	Tables    []RebuiltTable    `json:"tables,omitempty"`
	Logged    int               `json:"logged"` // row versions that only this site had, in its conflict log
	TookMS    int64             `json:"took_ms,omitempty"`
}

// RebuiltTable counts what was done to one table.
type RebuiltTable struct {
	Table   string `json:"table"`
	Logged  int    `json:"logged"`  // row versions that only this site had
	Removed int    `json:"removed"` // rows that are not the other site's, replaced ones included
	Written int    `json:"written"` // rows of the other site's that were not here, or differed
}

// BeginAnewRequest tells a site that the stream of another one, which asks, has nothing to do with the one before.
type BeginAnewRequest struct {
	Origin   topo.SiteID   `json:"origin"`
	Position uint64        `json:"position"` // where it begins
	Epochs   change.Epochs `json:"epochs"`   // at which Origin last held its buckets
}

// BeginAnewAnswer is empty: it has begun anew.
type BeginAnewAnswer struct{}

// Rebuild rebuilds the site of the agent that is asked. It answers when that is done.
func (c *Client) Rebuild(ctx context.Context, r RebuildRequest) (RebuildAnswer, error) {
	return call[RebuildAnswer](ctx, c, http.MethodPost, "/v1/rebuilds", r)
}

// BeginAnew makes a site forget how far it has come in the caller's former stream.
func (c *Client) BeginAnew(ctx context.Context, r BeginAnewRequest) (BeginAnewAnswer, error) {
	return call[BeginAnewAnswer](ctx, c, http.MethodPost, "/v1/site/begin-anew", r)
}
