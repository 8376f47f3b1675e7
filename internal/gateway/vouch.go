package gateway

import (
	"net/http"

	"github.com/atollhq/atoll/route"
)

// What this site's application answers counts only while this site is known to own the bucket. A write has the fence
// behind it; a strong read has nothing but what is checked here, before it is sent and when its answer comes.

// fencedWrite tells whether the request is a write that the database's fence guards.
func (x *exchange) fencedWrite() bool { return x.target.Keyed && !x.target.Safe }

// strongRead tells whether the request is a read of a route that holds reads: it is to see what was written last.
func (x *exchange) strongRead() bool { return x.target.Keyed && x.target.Safe && x.target.Write }

// unfit returns what to do instead of sending the request to this site's application now; nil: send it.
func (x *exchange) unfit(snap *snapshot) func() step {
	if !x.fencedWrite() && !x.strongRead() {
		return nil
	}
	lease := x.g.lease.current.Load()
	switch {
	case !lease.live():
		// The fence would refuse a write; or it would not, and the answer would come too late to be believed.
		return x.awaitLease
	case x.strongRead() && snap.version().before(lease.view):
		return func() step { return x.awaitView(lease.view) }
	}
	return nil
}

func (x *exchange) awaitLease() step {
	x.g.kickAck()
	if !x.g.lease.await(x.ctx, leaseWait) && x.ctx.Err() == nil {
		return x.refuse(reasonLease)
	}
	return again
}

// awaitView waits for the view that the site's agent had when it answered for the lease: an older one may show as this
// site's what another site took over before the lease began.
func (x *exchange) awaitView(known viewVersion) step {
	_, ok := x.g.views.await(x.ctx, viewWait, func(now *snapshot) bool { return !now.version().before(known) })
	if !ok && x.ctx.Err() == nil {
		return x.refuse(reasonBehind)
	}
	return again
}

// late returns what to do instead of passing on an answer that came too late to be believed; nil: pass it on. A write
// that is refused late may stand all the same. A read did nothing: it can be decided again where the bucket has left.
func (x *exchange) late(resp *http.Response, d route.Decision) func() step {
	switch {
	case x.fencedWrite():
		if resp.StatusCode/100 != 2 || x.g.lease.live() {
			return nil
		}
		return func() step { return x.refuse(reasonDeadline) }
	case !x.strongRead() || resp.StatusCode >= 500: // not only 2xx: 304 and 404 say what is stored, too
		return nil
	}
	lease, snap := x.g.lease.current.Load(), x.g.views.load()
	slot, _ := snap.site.View.Slot(x.target.Route.Keyspace, x.target.Bucket)
	switch left := slot.Owner != d.Slot.Owner || slot.Epoch != d.Slot.Epoch; {
	case left && !x.sendable():
		return func() step { return x.refuse(reasonMoved) }
	case left:
		return func() step { return again }
	case !lease.live():
		return func() step { return x.refuse(reasonDeadline) }
	case snap.version().before(lease.view):
		return func() step { return x.awaitView(lease.view) }
	}
	// A bucket that moves is still here: the move waits for this read (see flights).
	return nil
}
