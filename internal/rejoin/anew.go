package rejoin

import (
	"context"
	"fmt"
	"slices"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// Place makes ready for the rebuild of the asking site, which must own nothing.
func (r *Rejoin) Place(ctx context.Context, req api.PlaceRequest) (api.PlaceAnswer, error) {
	refused := func(format string, args ...any) (api.PlaceAnswer, error) {
		return api.PlaceAnswer{}, &api.Error{Status: 409, Code: api.CodeRefused, Message: fmt.Sprintf(format, args...)}
	}
	unavailable := func(err error) (api.PlaceAnswer, error) {
		return api.PlaceAnswer{}, &api.Error{Status: 503, Code: api.CodeUnavailable, Message: err.Error()}
	}
	if !slices.Contains(r.cfg.Sites, req.Site) {
		return refused("site %q is no other full site of site %s", req.Site, r.cfg.Site)
	}
	o, _, err := r.cfg.Store.Ownership(ctx)
	if err != nil {
		return unavailable(err)
	}
	if owned(o, req.Site) {
		return refused("site %s owns buckets, or some are on their way to it", req.Site)
	}
	ctx, end, err := r.within(ctx)
	if err != nil {
		return api.PlaceAnswer{}, err
	}
	defer end()
	if !r.rebuilding.TryLock() {
		return refused("site %s is being rebuilt itself, or makes ready for another one's rebuild; try again", r.cfg.Site)
	}
	defer r.rebuilding.Unlock()
	if r.cfg.Rebuilding.Replaced() {
		return refused("site %s has to be rebuilt itself", r.cfg.Site)
	}
	var at change.Position
	if req.Place {
		at, err = r.cfg.Place(ctx, req.Site)
	}
	if err == nil && len(req.Until) > 0 {
		err = r.cfg.WaitVector(ctx, req.Until)
	}
	if err != nil {
		return unavailable(err)
	}
	r.log.Info("makes ready for a site's rebuild", "site", r.cfg.Site, "for", req.Site, "place", req.Place, "position", at)
	return api.PlaceAnswer{Position: uint64(at)}, nil
}

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
	if len(req.Until) > 0 {
		wait, cancel := context.WithTimeout(ctx, equalBound)
		defer cancel()
		if err := r.cfg.WaitVector(wait, req.Until); err != nil {
			return unavailable(fmt.Errorf("site %s lacks what other sites had written before they began anew with site %s: %w", r.cfg.Site, req.Origin, err))
		}
	}
	if err := r.cfg.BeginAnew(ctx, anew, req.Last); err != nil {
		return unavailable(err)
	}
	at, err := r.cfg.Fence.Point(ctx)
	if err != nil {
		return unavailable(err)
	}
	r.log.Info("begins anew with a site's stream", "site", r.cfg.Site, "origin", req.Origin, "position", req.Position, "last", req.Last)
	return api.BeginAnewAnswer{Position: uint64(at)}, nil
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
