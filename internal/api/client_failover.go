package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/atollhq/atoll/topo"
)

// Failover asks the agent of the taker to take over from a lost site, and waits until that stands; with DryRun it asks
// whether it would be tried. A refusal is an *Error with CodeRefused whose Problems name the rules.
func (c *Client) Failover(ctx context.Context, r FailoverRequest) (FailoverAnswer, error) {
	return call[FailoverAnswer](ctx, c, http.MethodPost, "/v1/failovers", r)
}

// Explain asks why the agent's site took over from another one, or does not; site is empty for every other one.
func (c *Client) Explain(ctx context.Context, site topo.SiteID) (Explanation, error) {
	path := "/v1/explain"
	if site != "" {
		path += "?site=" + url.QueryEscape(string(site))
	}
	return call[Explanation](ctx, c, http.MethodGet, path, nil)
}
