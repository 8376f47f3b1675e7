package sdk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/topo"
)

// DefaultLost is how long a [Guard] goes on without a word of the agent.
const DefaultLost = 10 * time.Second

// Guard runs functions only where a bucket is owned.
//
// It is advice, made of a copy of the ownership: a job may be running for a moment after its bucket has left, and then two
// sites run it. What must not happen twice has to be a write that the fence sees, in the database of this site: that has
// the last word. The guard saves work that the fence would refuse, and calls to others that no fence sees.
type Guard struct {
	view *View
	lost time.Duration
}

// NewGuard makes a guard. lost bounds how long a job goes on while no agent is heard of; 0 means [DefaultLost]. The site's
// lease ends it in any case.
func NewGuard(view *View, lost time.Duration) *Guard {
	if lost <= 0 {
		lost = DefaultLost
	}
	return &Guard{view: view, lost: lost}
}

// Why a bucket does not count as owned here.
const (
	WhyOwner   = "owner"    // another site owns it
	WhyEpoch   = "epoch"    // it is owned here again, under a later epoch than the job's
	WhyMoving  = "moving"   // a handover moves it
	WhyPending = "pending"  // it came here, and the fence is not known to be open for it yet
	WhyLease   = "lease"    // the site's lease has run out, or was never heard of
	WhyLost    = "no-agent" // no agent was heard of for longer than the guard's bound
)

// ElsewhereError says that a bucket is not owned here, or no more.
type ElsewhereError struct {
	Place        // what the view says
	Why   string // one of the words above
	Began bool   // the job ran, and was told to end
}

func (e *ElsewhereError) Error() string {
	what := "is not owned here"
	if e.Began {
		what = "is no more owned here"
	}
	return fmt.Sprintf("bucket %d of keyspace %s %s (%s; owner %s, epoch %d)", e.Bucket, e.Keyspace, what, e.Why, e.Owner, e.Epoch)
}

// Run runs job if key's bucket is owned by this site, with the epoch of that. The job's ctx is cancelled, with an
// *ElsewhereError as its cause, when the bucket begins to move, is owned by another site or under another epoch, when the
// site's lease runs out, or when no agent was heard of for longer than the bound.
//
// Run returns an *ElsewhereError without running the job where the bucket is not owned; else the error of the job, joined with
// the *ElsewhereError if its ctx was cancelled for that, and nil if the job returned nil. Errors of [View.Place] besides.
//
// One Run is one go: it does not wait for the bucket, nor start the job again.
func (g *Guard) Run(ctx context.Context, ks topo.KeyspaceID, key string, job func(ctx context.Context, epoch topo.Epoch) error) error {
	snap := g.view.current.Load()
	b, err := snap.bucket(ks, key)
	if err != nil {
		return err
	}
	place, why := g.stands(snap, ks, b, time.Now())
	if why != "" {
		return &ElsewhereError{Place: place, Why: why}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() { // joined below
		defer close(watched)
		g.watch(ctx, cancel, snap, place)
	}()
	defer func() { cancel(nil); <-watched }()
	err = job(ctx, place.Epoch)
	var left *ElsewhereError
	if err != nil && errors.As(context.Cause(ctx), &left) {
		return errors.Join(err, left)
	}
	return err
}

// watch cancels when the bucket leaves, and ends with ctx.
func (g *Guard) watch(ctx context.Context, cancel context.CancelCauseFunc, snap *snapshot, began Place) {
	for {
		until := snap.heard.Add(g.lost)
		if snap.lease.Before(until) {
			until = snap.lease
		}
		timer := time.NewTimer(time.Until(until))
		select {
		case <-snap.next:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return
		}
		snap = g.view.current.Load()
		now, why := g.stands(snap, began.Keyspace, began.Bucket, time.Now())
		if why == "" && now.Epoch != began.Epoch {
			why = WhyEpoch
		}
		if why != "" {
			cancel(&ElsewhereError{Place: now, Why: why, Began: true})
			return
		}
	}
}

// stands says whether a bucket is owned here at a moment; "": it is.
func (g *Guard) stands(s *snapshot, ks topo.KeyspaceID, b topo.BucketID, now time.Time) (Place, string) {
	slot, ok := s.site.View.Slot(ks, b)
	p := Place{ks, b, slot.Owner, slot.Epoch, slot.Moving}
	switch {
	case !ok || slot.Owner != g.view.site:
		return p, WhyOwner
	case slot.Moving:
		return p, WhyMoving
	case s.site.Pending(ks, b, s.opened):
		return p, WhyPending
	case !now.Before(s.lease):
		return p, WhyLease
	case now.Sub(s.heard) >= g.lost:
		return p, WhyLost
	}
	return p, ""
}
