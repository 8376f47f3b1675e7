package agent

import (
	"context"
	"errors"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// readers answers for this site's database to gateways whose readers carry what they have seen. It satisfies
// control.Readers.
type readers struct{ *agent }

// Seen tells where the database stands; whatever it has shown before the call is covered.
func (r readers) Seen(ctx context.Context, buckets []api.Seen) ([]api.Seen, error) {
	db, err := r.reading()
	if err != nil {
		return nil, err
	}
	places := make([]postgres.BucketPlace, len(buckets))
	for i, b := range buckets {
		places[i] = postgres.BucketPlace{Keyspace: b.Keyspace, Bucket: b.Bucket}
	}
	if err := db.fence.Places(ctx, places, r.cfg.Spec.FullSites()); err != nil {
		return nil, unavailable(err)
	}
	out := make([]api.Seen, len(places))
	for i, p := range places {
		out[i] = api.Seen{Keyspace: p.Keyspace, Bucket: p.Bucket, Epoch: p.Epoch, Site: p.Owner, Position: uint64(p.Position)}
	}
	return out, nil
}

// Await waits until the database has what a reader has seen: its epoch's owner is applied that far, or the bucket is at a
// later epoch here, in front of which everything before was applied (I3, I5).
func (r readers) Await(ctx context.Context, seen api.Seen, bound time.Duration) (api.AwaitAnswer, error) {
	db, err := r.reading()
	if err != nil {
		return api.AwaitAnswer{}, err
	}
	at := func() uint64 { return db.applied.Vector()[seen.Site] }
	if seen.Site == r.site || at() >= seen.Position {
		return api.AwaitAnswer{Here: true, Applied: at()}, nil
	}
	if later, err := r.later(ctx, db, seen); err != nil || later > 0 {
		return api.AwaitAnswer{Here: later > 0, Applied: at(), Epoch: later}, err
	}
	if f := db.follows[seen.Site]; f != nil {
		f.Want(change.Position(seen.Position))
	}
	wait, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	err = db.applied.WaitApplied(wait, seen.Site, change.Position(seen.Position))
	switch {
	case err == nil:
		return api.AwaitAnswer{Here: true, Applied: at()}, nil
	case ctx.Err() != nil:
		return api.AwaitAnswer{}, context.Cause(ctx)
	}
	later, err := r.later(ctx, db, seen)
	return api.AwaitAnswer{Here: later > 0, Applied: at(), Epoch: later}, err
}

// End is where this site's change stream ends: at or behind everything that was committed before the call.
func (r readers) End(ctx context.Context) (api.EndAnswer, error) {
	db, err := r.reading()
	if err != nil {
		return api.EndAnswer{}, err
	}
	end, err := db.fence.End(ctx)
	if err != nil {
		return api.EndAnswer{}, unavailable(err)
	}
	return api.EndAnswer{Position: uint64(end)}, nil
}

// Stale is how old this site's copies are at most.
func (r readers) Stale() map[topo.SiteID]time.Duration { return r.fresh.ages(time.Now()) }

// later is the epoch at which the bucket is here, if that is a later one than was seen; else 0.
func (r readers) later(ctx context.Context, db *database, seen api.Seen) (topo.Epoch, error) {
	place := []postgres.BucketPlace{{Keyspace: seen.Keyspace, Bucket: seen.Bucket}}
	if err := db.fence.Places(ctx, place, r.cfg.Spec.FullSites()); err != nil {
		return 0, unavailable(err)
	}
	if place[0].Epoch <= seen.Epoch {
		return 0, nil
	}
	return place[0].Epoch, nil
}

// reading is this site's database while it is usable: one that is being rebuilt shows something in between.
func (r readers) reading() (*database, error) {
	db := r.database.Load()
	if db == nil {
		return nil, unavailable(errors.New("the database is away: " + r.whyAway()))
	}
	if err := db.whole(); err != nil {
		return nil, unavailable(err)
	}
	return db, nil
}
