package route

import "github.com/atollhq/atoll/topo"

// Site is one site's reading of a view: besides the view it knows at which version each bucket came here. It is
// immutable and safe for concurrent use.
type Site struct {
	Here topo.SiteID
	View *topo.View
	// since holds, per bucket that is owned here, the version of the view that brought it (or brought its epoch):
	// writes wait until the site's fence has opened for that version. 0: no wait.
	since map[topo.KeyspaceID][]uint64
}

// First is the reading of a site's first view. gated says that the fence may not have opened yet for buckets that the
// view shows here, because somebody who knows will tell; otherwise they count as open, and the fence has the last word.
func First(here topo.SiteID, view *topo.View, gated bool) *Site {
	return (&Site{Here: here}).with(view, gated)
}

// Next is the reading after a newer view. A bucket that is new here, or here under a new epoch, waits for its fence.
func (s *Site) Next(view *topo.View) *Site {
	if s.View.Ownership.Generation != view.Ownership.Generation {
		return First(s.Here, view, true) // versions of two generations do not compare
	}
	return s.with(view, true)
}

func (s *Site) with(view *topo.View, gated bool) *Site {
	next := &Site{Here: s.Here, View: view, since: make(map[topo.KeyspaceID][]uint64, len(view.Ownership.Keyspaces))}
	for ks, p := range view.Ownership.Keyspaces {
		since := make([]uint64, p.Buckets)
		for _, r := range p.Ranges {
			if r.Owner != s.Here {
				continue
			}
			for b := r.First; b <= r.Last; b++ {
				since[b] = s.sinceOf(ks, b, r.Epoch, view.Ownership.Version, gated)
			}
		}
		next.since[ks] = since
	}
	return next
}

func (s *Site) sinceOf(ks topo.KeyspaceID, b topo.BucketID, epoch topo.Epoch, version uint64, gated bool) uint64 {
	if s.View != nil {
		if old, ok := s.View.Slot(ks, b); ok && old.Owner == s.Here && old.Epoch == epoch {
			return s.since[ks][b]
		}
	}
	if gated {
		return version
	}
	return 0
}

// Pending tells whether a bucket that is owned here waits for the site's fence, which is known to be open for the
// views up to version opened.
func (s *Site) Pending(ks topo.KeyspaceID, b topo.BucketID, opened uint64) bool {
	since := s.since[ks]
	return int(b) < len(since) && since[b] > opened
}

// undecided tells whether a site's copy of a bucket may still hold what it committed beyond a cut, and nobody has decided
// yet. It goes with the cut, which stays until the decisions are on the site's disk.
func undecided(slot topo.Slot, here topo.SiteID) bool {
	for c := slot.Cut; c != nil; c = c.Earlier {
		if c.From == here {
			return true
		}
	}
	return false
}

// Decide says what this site's gateway does with a target. It does not allocate.
func (s *Site) Decide(t Target, opened uint64) Decision {
	if !t.Keyed {
		return Decision{Verdict: Local, Site: s.Here}
	}
	ks := t.Route.Keyspace
	slot, ok := s.View.Slot(ks, t.Bucket)
	if !ok || s.View.Buckets(ks) != t.Route.space.Buckets {
		return Decision{Verdict: Refuse, Reason: UnknownKeyspace}
	}
	switch {
	case slot.Moving && t.Write:
		return Decision{Verdict: Hold, Reason: MovingBucket, Slot: slot}
	case slot.Owner != s.Here && t.Nearest && !undecided(slot, s.Here):
		return Decision{Verdict: Local, Site: s.Here, Slot: slot}
	case slot.Owner != s.Here:
		return Decision{Verdict: Forward, Site: slot.Owner, Slot: slot}
	case !t.Safe && s.Pending(ks, t.Bucket, opened):
		// Reads need not wait: whatever the bucket's last epoch wrote is applied here before the view says so (I3).
		return Decision{Verdict: Hold, Reason: PendingOpen, Slot: slot}
	}
	return Decision{Verdict: Local, Site: s.Here, Slot: slot}
}
