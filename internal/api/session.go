package api

import (
	"context"
	"net/http"

	"github.com/atollhq/atoll/topo"
)

// Seen is a place in the history of a bucket: all of its epochs before Epoch, and of Epoch what its owner Site has put into
// its change stream up to Position. A reader of a database has seen no more than where that database stands.
type Seen struct {
	Keyspace topo.KeyspaceID `json:"keyspace"`
	Bucket   topo.BucketID   `json:"bucket"`
	Epoch    topo.Epoch      `json:"epoch"` // 0: nothing is known of the bucket
	Site     topo.SiteID     `json:"site"`
	Position uint64          `json:"position"`
}

// SeenRequest is the body of POST /v1/view/seen: a gateway asks where its site's database stands, for buckets of which
// answers have come. What those showed is covered by the answer.
type SeenRequest struct {
	Buckets []Seen `json:"buckets"` // their keyspaces and numbers
}

// SeenAnswer has one entry for each that was asked for, in the same order.
type SeenAnswer struct {
	Buckets []Seen `json:"buckets"`
}

// AwaitRequest is the body of POST /v1/view/await: a gateway waits until its site's database has what a reader has seen.
type AwaitRequest struct {
	Seen    Seen  `json:"seen"`
	BoundMS int64 `json:"bound_ms"`
}

// AwaitAnswer says whether it has. Applied is how far the changes of Seen.Site are applied. With Epoch it has because the
// bucket is at this later epoch: then it has all of what was seen but for what a failover cut off, which the view at that
// epoch says.
type AwaitAnswer struct {
	Here    bool       `json:"here"`
	Applied uint64     `json:"applied"`
	Epoch   topo.Epoch `json:"epoch,omitempty"`
}

// EndAnswer answers POST /v1/site/end: another site asks where the end of this site's change stream is. Whatever was
// committed before the question lies at or before it.
type EndAnswer struct {
	Position uint64 `json:"position"`
}

// End tells where the end of the site's change stream is.
func (c *Client) End(ctx context.Context) (EndAnswer, error) {
	return call[EndAnswer](ctx, c, http.MethodPost, "/v1/site/end", struct{}{})
}

// Seen tells where the database of the agent's site stands.
func (c *Client) Seen(ctx context.Context, r SeenRequest) (SeenAnswer, error) {
	return call[SeenAnswer](ctx, c, http.MethodPost, "/v1/view/seen", r)
}

// Await waits until the agent's site has what a reader has seen.
func (c *Client) Await(ctx context.Context, r AwaitRequest) (AwaitAnswer, error) {
	return call[AwaitAnswer](ctx, c, http.MethodPost, "/v1/view/await", r)
}
