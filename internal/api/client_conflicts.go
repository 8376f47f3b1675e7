package api

import (
	"context"
	"net/http"
	"net/url"
	"strconv"
)

// Conflicts lists entries of the conflict log of the agent's own database, newest first.
func (c *Client) Conflicts(ctx context.Context, q ConflictQuery) (ConflictList, error) {
	v := url.Values{}
	if q.Table != "" {
		v.Set("table", q.Table)
	}
	if q.Handover != "" {
		v.Set("handover", string(q.Handover))
	}
	if q.Before > 0 {
		v.Set("before", strconv.FormatInt(q.Before, 10))
	}
	if q.Limit > 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	path := "/v1/conflicts"
	if len(v) > 0 {
		path += "?" + v.Encode()
	}
	return call[ConflictList](ctx, c, http.MethodGet, path, nil)
}

// Conflict reads one entry of the conflict log of the agent's own database.
func (c *Client) Conflict(ctx context.Context, id int64) (Conflict, error) {
	return call[Conflict](ctx, c, http.MethodGet, "/v1/conflicts/"+strconv.FormatInt(id, 10), nil)
}
