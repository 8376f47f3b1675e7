package api

import (
	"context"
	"net/http"
	"net/url"

	"github.com/atollhq/atoll/topo"
)

// Failover asks the agent to take over from a lost site, or with DryRun whether it would. A refusal is an *Error with
// CodeRefused whose Problems name the rules.
func (c *Client) Failover(ctx context.Context, r FailoverRequest) (FailoverAnswer, error) {
	return call[FailoverAnswer](ctx, c, http.MethodPost, "/v1/failovers", r)
}

// Explain asks why the agent took over from a site, or did not; an empty site means every other one.
func (c *Client) Explain(ctx context.Context, site topo.SiteID) (Explanation, error) {
	path := "/v1/explain"
	if site != "" {
		path += "?site=" + url.QueryEscape(string(site))
	}
	return call[Explanation](ctx, c, http.MethodGet, path, nil)
}
