package lease

import (
	"fmt"
	"maps"
	"slices"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// plan is what brings a database's fence in line with the ownership, in this order: restrict, extend the lease, open.
type plan struct {
	keep     map[topo.KeyspaceID]topo.Spans // bits that may stay on
	surplus  bool                           // some bit outside keep is on
	open     []postgres.OpenOrder
	problems []error // buckets that should be open here and cannot be
}

// move is a handover that was last seen to move a bucket, and the epoch it moved it from.
type move struct {
	handover topo.HandoverID
	epoch    topo.Epoch
}

// moves remembers, from one ownership to the next, which handover a bucket's new epoch comes from: the document itself
// forgets it at the commit.
type moves map[topo.KeyspaceID]map[topo.BucketID]move

func movesOf(o topo.Ownership) moves {
	out := moves{}
	for ks, p := range o.Keyspaces {
		for _, r := range p.Ranges {
			if r.State != topo.Moving {
				continue
			}
			if out[ks] == nil {
				out[ks] = map[topo.BucketID]move{}
			}
			for b := r.First; b <= r.Last; b++ {
				out[ks][b] = move{r.Handover, r.Epoch}
			}
		}
	}
	return out
}

// planFence compares the fence with the ownership.
//
// A bit may stay on if its site owns the bucket and the fence's own row is open at the same epoch. While the lease has
// been in force without a break (continuous), a row may also lag behind: then only an aborted handover can have raised
// the epoch, and the bucket need not close for it. A bucket is opened if it is open in the ownership, and the fence's
// row is at a lower epoch, or open at the same one with its bit off. A row that is closed at the same epoch stays
// closed, and a moving bucket is never opened.
func planFence(site topo.SiteID, o topo.Ownership, from moves, st postgres.FenceState, continuous bool) plan {
	p := plan{keep: map[topo.KeyspaceID]topo.Spans{}}
	for _, ks := range slices.Sorted(maps.Keys(o.Keyspaces)) {
		p.keyspace(site, o, ks, from[ks], st, continuous)
	}
	for ks, bits := range st.Bits {
		if _, known := o.Keyspaces[ks]; !known && len(bits) > 0 {
			p.surplus = true
		}
	}
	return p
}

func (p *plan) keyspace(site topo.SiteID, o topo.Ownership, ks topo.KeyspaceID, from map[topo.BucketID]move, st postgres.FenceState, continuous bool) {
	rows := make(map[topo.BucketID]postgres.BucketRow, len(st.Rows[ks]))
	for _, row := range st.Rows[ks] {
		rows[row.Bucket] = row
	}
	bits := make(map[topo.BucketID]bool)
	for _, b := range st.Bits[ks].Buckets() {
		bits[b] = true
	}
	var keep topo.Spans
	orders := map[topo.HandoverID][]topo.EpochSpan{}
	owned, ahead, kept := 0, 0, 0
	for _, r := range o.Keyspaces[ks].Ranges {
		if r.Owner != site {
			continue
		}
		for b := r.First; b <= r.Last; b++ {
			owned++
			row := rows[b]
			behind, same := row.Epoch < r.Epoch, row.Epoch == r.Epoch && row.State == "open"
			if row.Epoch > r.Epoch {
				ahead++
			}
			if same || behind && continuous && row.State == "open" && bits[b] && r.State == topo.Open {
				keep = appendBucket(keep, b)
				if bits[b] {
					kept++
				}
			}
			if r.State == topo.Open && (behind || same && !bits[b]) {
				id := handoverOf(o, from, b, r)
				orders[id] = appendEpoch(orders[id], b, r.Epoch)
			}
		}
	}
	p.keep[ks] = keep
	p.surplus = p.surplus || kept < len(bits)
	switch n, installed := st.Buckets[ks]; {
	case owned == 0:
		return
	case !installed:
		p.problems = append(p.problems, fmt.Errorf("keyspace %s is not installed in this database; run `atoll apply`", ks))
		return
	case n != o.Keyspaces[ks].Buckets:
		p.problems = append(p.problems, fmt.Errorf("keyspace %s has %d buckets in this database, but %d in the ownership", ks, n, o.Keyspaces[ks].Buckets))
		return
	case ahead > 0:
		p.problems = append(p.problems, fmt.Errorf("keyspace %s: the fence is at higher epochs than the ownership for %d buckets; was the store restored from an old copy?", ks, ahead))
	}
	for _, id := range slices.Sorted(maps.Keys(orders)) {
		p.open = append(p.open, postgres.OpenOrder{Handover: id, Keyspace: ks, Buckets: orders[id], Generation: o.Generation})
	}
}

// handoverOf names an opening: by the handover that raised the epoch, be it a switch or a failover, or by the
// ownership's version.
func handoverOf(o topo.Ownership, from map[topo.BucketID]move, b topo.BucketID, r topo.Range) topo.HandoverID {
	if r.Cut != nil && r.Cut.Epoch+1 == r.Epoch {
		return r.Cut.Handover
	}
	if m, ok := from[b]; ok && m.epoch+1 == r.Epoch {
		return m.handover
	}
	return topo.HandoverID(fmt.Sprintf("open-%d.%d", o.Generation, o.Version))
}

// cutsHere lists the cuts that a site's database must know: all but those of the site itself. Where it owns the buckets it
// must know them before it opens them; elsewhere they keep it from applying what is for the owner to decide.
func cutsHere(site topo.SiteID, o topo.Ownership) []topo.CutRange {
	return slices.DeleteFunc(o.Cuts(), func(c topo.CutRange) bool { return c.Cut.From == site })
}

// opensAny tells whether an order opens a bucket of any of the ranges.
func opensAny(order postgres.OpenOrder, ranges []topo.CutRange) bool {
	return slices.ContainsFunc(ranges, func(c topo.CutRange) bool {
		return c.Keyspace == order.Keyspace && slices.ContainsFunc(order.Buckets, func(s topo.EpochSpan) bool {
			return s.First <= c.Range.Last && c.Range.First <= s.Last
		})
	})
}

func appendBucket(s topo.Spans, b topo.BucketID) topo.Spans {
	if n := len(s); n > 0 && s[n-1].Last+1 == b {
		s[n-1].Last = b
		return s
	}
	return append(s, topo.Span{First: b, Last: b})
}

func appendEpoch(s []topo.EpochSpan, b topo.BucketID, e topo.Epoch) []topo.EpochSpan {
	if n := len(s); n > 0 && s[n-1].Last+1 == b && s[n-1].Epoch == e {
		s[n-1].Last = b
		return s
	}
	return append(s, topo.EpochSpan{First: b, Last: b, Epoch: e})
}

// owns tells whether the ownership gives the site any bucket.
func owns(o topo.Ownership, site topo.SiteID) bool {
	for _, p := range o.Keyspaces {
		if slices.ContainsFunc(p.Ranges, func(r topo.Range) bool { return r.Owner == site }) {
			return true
		}
	}
	return false
}
