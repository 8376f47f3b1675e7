package api

import (
	"context"
	"net/http"

	"github.com/atollhq/atoll/topo"
)

// What can be done with a member.
const (
	MemberAdd    = "add"    // asked of the agent of the site itself
	MemberRemove = "remove" // in good order; asked of another site's
	MemberForget = "forget" // one that never comes back; asked of another site's
)

// MemberRequest changes who takes part in the deployment.
type MemberRequest struct {
	Do     string      `json:"do"`
	Site   topo.SiteID `json:"site"`
	From   topo.SiteID `json:"from,omitempty"` // with MemberAdd: the site to copy; empty: the first
	Why    string      `json:"why,omitempty"`
	DryRun bool        `json:"dry_run,omitempty"` // say whether it could start, and change nothing
}

// MemberAnswer says what was done. A refusal is an Error with CodeRefused. Every command may be repeated.
type MemberAnswer struct {
	Site     topo.SiteID     `json:"site"`
	Do       string          `json:"do"`
	DryRun   bool            `json:"dry_run,omitempty"`
	From     topo.SiteID     `json:"from,omitempty"`     // the site that was copied
	Handover topo.HandoverID `json:"handover,omitempty"` // with MemberForget: a failover of it that is not settled; its estimated loss becomes the loss
	Version  uint64          `json:"version,omitempty"`  // of the ownership that says so
	Steps    []string        `json:"steps"`
	Left     string          `json:"left,omitempty"` // what has still to be done
}

// DismissRequest asks a site to let go of all that it keeps of and for one that is no member.
type DismissRequest struct {
	Site topo.SiteID `json:"site"`
}

// DismissAnswer is empty.
type DismissAnswer struct{}

// PointRequest asks where a site's stream ends.
type PointRequest struct{}

// PointAnswer is a position behind all that is committed.
type PointAnswer struct {
	Position uint64 `json:"position"`
}

// ChangeMember adds, removes or forgets a site. It answers when that is done.
func (c *Client) ChangeMember(ctx context.Context, r MemberRequest) (MemberAnswer, error) {
	return call[MemberAnswer](ctx, c, http.MethodPost, "/v1/members", r)
}

// Dismiss has a site let go of one that is no member.
func (c *Client) Dismiss(ctx context.Context, r DismissRequest) (DismissAnswer, error) {
	return call[DismissAnswer](ctx, c, http.MethodPost, "/v1/site/dismiss", r)
}

// Point asks where a site's stream ends.
func (c *Client) Point(ctx context.Context) (PointAnswer, error) {
	return call[PointAnswer](ctx, c, http.MethodPost, "/v1/site/point", PointRequest{})
}
