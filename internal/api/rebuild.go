package api

import (
	"context"
	"net/http"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// RebuildRequest asks a site's agent to bring its database, which is another one than before (a promoted standby, a
// restored copy, an empty one), to the content of another full site.
type RebuildRequest struct {
	Site   topo.SiteID `json:"site"`           // must be the site of the agent that is asked
	From   topo.SiteID `json:"from,omitempty"` // the site to copy; empty: one that took buckets over, else the first
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
	// Last is the second round: every site has begun anew, and Until says what their streams may still hold of before.
	Last  bool        `json:"last,omitempty"`
	Until topo.Vector `json:"until,omitempty"`
}

// BeginAnewAnswer says from where on the asked site's own stream speaks of the new one only.
type BeginAnewAnswer struct {
	Position uint64 `json:"position,omitempty"`
}

// PlaceRequest asks a site to make ready for the rebuild of the one that asks.
type PlaceRequest struct {
	Site  topo.SiteID `json:"site"`            // who asks
	Place bool        `json:"place,omitempty"` // make its place in the asked site's stream anew; of the site that is copied, the copy does that
	Until topo.Vector `json:"until,omitempty"` // answer when the asked site has applied so much of others
}

// PlaceAnswer has, with Place, a position of the asked site's stream: who has applied it has all that is before the place.
type PlaceAnswer struct {
	Position uint64 `json:"position,omitempty"`
}

// StandingRequest asks a site what it knows of another one.
type StandingRequest struct {
	Of topo.SiteID `json:"of"`
}

// Rebuild rebuilds the site of the agent that is asked. It answers when that is done.
func (c *Client) Rebuild(ctx context.Context, r RebuildRequest) (RebuildAnswer, error) {
	return call[RebuildAnswer](ctx, c, http.MethodPost, "/v1/rebuilds", r)
}

// BeginAnew makes a site forget how far it has come in the caller's former stream.
func (c *Client) BeginAnew(ctx context.Context, r BeginAnewRequest) (BeginAnewAnswer, error) {
	return call[BeginAnewAnswer](ctx, c, http.MethodPost, "/v1/site/begin-anew", r)
}

// Place asks a site to make ready for the rebuild of the caller.
func (c *Client) Place(ctx context.Context, r PlaceRequest) (PlaceAnswer, error) {
	return call[PlaceAnswer](ctx, c, http.MethodPost, "/v1/site/place", r)
}

// Standing asks a site what it knows of another one.
func (c *Client) Standing(ctx context.Context, r StandingRequest) (Standing, error) {
	return call[Standing](ctx, c, http.MethodPost, "/v1/site/standing", r)
}
