package rejoin

import (
	"context"
	"fmt"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// BeginAnew lets go of how far this site has come in an origin's former stream. The origin must own nothing, or its
// former stream would have held changes that nobody else has and that are no tail.
func (r *Rejoin) BeginAnew(ctx context.Context, req api.BeginAnewRequest) (api.BeginAnewAnswer, error) {
	bad := func(format string, args ...any) (api.BeginAnewAnswer, error) {
		return api.BeginAnewAnswer{}, &api.Error{Status: 400, Code: api.CodeBadRequest, Message: fmt.Sprintf(format, args...)}
	}
	unavailable := func(err error) (api.BeginAnewAnswer, error) {
		return api.BeginAnewAnswer{}, &api.Error{Status: 503, Code: api.CodeUnavailable, Message: err.Error()}
	}
	if req.Position == 0 || req.Position > 1<<63-1 {
		return bad("a stream that begins at position %d", req.Position)
	}
	o, _, err := r.cfg.Store.Ownership(ctx)
	if err != nil {
		return unavailable(err)
	}
	if owned(o, req.Origin) {
		return api.BeginAnewAnswer{}, &api.Error{Status: 409, Code: api.CodeRefused, Message: fmt.Sprintf("site %s owns buckets, or some are on their way to it", req.Origin)}
	}
	for ks, in := range req.Epochs {
		for b, e := range in {
			if now, exists := o.At(ks, b); !exists || e == 0 || e >= now.Epoch {
				return bad("site %s says that it held bucket %d of keyspace %s at epoch %d; the ownership is at %d", req.Origin, b, ks, e, now.Epoch)
			}
		}
	}
	anew := postgres.Anew{Origin: req.Origin, Position: change.Position(req.Position), Epochs: req.Epochs}
	for _, c := range closings(req.Origin, o) {
		anew.Handovers = append(anew.Handovers, c.handover)
	}
	if err := r.cfg.BeginAnew(ctx, anew); err != nil {
		return unavailable(err)
	}
	r.log.Info("begins anew with a site's stream", "site", r.cfg.Site, "origin", req.Origin, "position", req.Position)
	return api.BeginAnewAnswer{}, nil
}

// remembered are the epochs of a site that another one may be told of: those that the ownership has left behind.
func remembered(o topo.Ownership, epochs change.Epochs) change.Epochs {
	out := change.Epochs{}
	for ks, in := range epochs {
		for b, e := range in {
			if now, exists := o.At(ks, b); exists && e > 0 && e < now.Epoch {
				if out[ks] == nil {
					out[ks] = map[topo.BucketID]topo.Epoch{}
				}
				out[ks][b] = e
			}
		}
	}
	return out
}
