package gateway

import (
	"sync/atomic"

	"github.com/atollhq/atoll/topo"
)

// flights counts, per bucket, the writes and strong reads that were passed on and are not answered yet, so that an
// acknowledgement of a view can say how many from before the view's holds are still under way.
//
// The count may never miss one. A request counts itself, then looks whether the view under which it was decided is still
// the current one; whoever acknowledges a view makes it the current one first, then reads the counts. Whichever comes
// first, either the reader sees the count or the request sees the view and is decided again.
type flights struct {
	current *atomic.Pointer[snapshot]
	counts  map[topo.KeyspaceID][]atomic.Int64
	landed  func() // called when the count of a moving bucket falls to zero
}

func newFlights(current *atomic.Pointer[snapshot], spaces map[topo.KeyspaceID]topo.Keyspace, landed func()) *flights {
	f := &flights{current: current, counts: make(map[topo.KeyspaceID][]atomic.Int64, len(spaces)), landed: landed}
	for ks, space := range spaces {
		f.counts[ks] = make([]atomic.Int64, space.Buckets)
	}
	return f
}

// enter counts a request that was decided under snap. If snap is no longer current it counts nothing and returns false:
// decide again.
func (f *flights) enter(snap *snapshot, ks topo.KeyspaceID, b topo.BucketID) bool {
	f.counts[ks][b].Add(1)
	if f.current.Load() == snap {
		return true
	}
	f.leave(ks, b)
	return false
}

// leave ends what enter began.
func (f *flights) leave(ks topo.KeyspaceID, b topo.BucketID) {
	if f.counts[ks][b].Add(-1) > 0 {
		return
	}
	// If this reads an older view than the one that moves the bucket, the acknowledgement of that one is yet to read
	// the count.
	if snap := f.current.Load(); snap.site != nil {
		if slot, ok := snap.site.View.Slot(ks, b); ok && slot.Moving {
			f.landed()
		}
	}
}

// moving counts per handover that snap shows as moving. snap must have been loaded as the current one before the call.
func (f *flights) moving(snap *snapshot) map[topo.HandoverID]int {
	if snap.site == nil {
		return nil
	}
	var out map[topo.HandoverID]int
	for ks, p := range snap.site.View.Ownership.Keyspaces {
		counts := f.counts[ks]
		for _, r := range p.Ranges {
			if r.State != topo.Moving {
				continue
			}
			if out == nil {
				out = make(map[topo.HandoverID]int)
			}
			n := 0
			for b := int(r.First); b <= int(r.Last) && b < len(counts); b++ {
				n += int(counts[b].Load())
			}
			out[r.Handover] += n
		}
	}
	return out
}
