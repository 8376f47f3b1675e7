package topo

import (
	"fmt"
	"maps"
	"slices"
)

// Taken is what a failover takes of one keyspace: buckets with the epochs at which their dead owner held them.
type Taken struct {
	Keyspace KeyspaceID  `json:"keyspace"`
	Buckets  []EpochSpan `json:"buckets"`
}

// TakeOver makes to the owner of every open bucket of from, at the next epoch, with a cut at position in from's stream.
// Buckets that move are left to their handover; a later failover takes what that leaves with from. It refuses a taker
// whose own tail is not settled, and a document in which from owns nothing that is open.
func (o Ownership) TakeOver(from, to SiteID, id HandoverID, position uint64) (Ownership, []Taken, error) {
	if from == to {
		return o, nil, fmt.Errorf("site %s cannot take over from itself", from)
	}
	if o.Unsettled(to) != "" {
		return o, nil, fmt.Errorf("site %s is returning from failover %s: its tail is not settled", to, o.Unsettled(to))
	}
	var taken []Taken
	next := o
	for _, ks := range slices.Sorted(maps.Keys(o.Keyspaces)) {
		epochs := o.EpochsAt(ks, from)
		if len(epochs) == 0 {
			continue
		}
		taken = append(taken, Taken{ks, epochs})
		var buckets Spans
		for _, e := range epochs {
			if n := len(buckets); n > 0 && buckets[n-1].Last+1 == e.First {
				buckets[n-1].Last = e.Last
				continue
			}
			buckets = append(buckets, Span{e.First, e.Last})
		}
		var err error
		next, err = next.change(ks, buckets, func(r Range) (Range, error) {
			return Range{First: r.First, Last: r.Last, Owner: to, Epoch: r.Epoch + 1, State: Open,
				Cut: &Cut{From: from, Epoch: r.Epoch, Position: position, Handover: id}}, nil
		})
		if err != nil {
			return o, nil, err
		}
	}
	if len(taken) == 0 {
		return o, nil, fmt.Errorf("site %s owns no bucket that is open", from)
	}
	next.Version = o.Version + 1
	return next.sealed(), taken, nil
}

// Settle removes the cuts of a failover: the site that was lost is back, its tail is decided, and it may own again.
func (o Ownership) Settle(id HandoverID) (Ownership, error) {
	found := false
	next := o
	next.Keyspaces = maps.Clone(o.Keyspaces)
	for ks, p := range o.Keyspaces {
		var ranges []Range
		for _, r := range p.Ranges {
			if r.Cut != nil && r.Cut.Handover == id {
				r.Cut, found = nil, true
			}
			if n := len(ranges); n > 0 && ranges[n-1].sameAs(r) {
				ranges[n-1].Last = r.Last
				continue
			}
			ranges = append(ranges, r)
		}
		p.Ranges = ranges
		next.Keyspaces[ks] = p
	}
	if !found {
		return o, fmt.Errorf("no bucket has a cut of failover %s", id)
	}
	next.Version++
	return next.sealed(), nil
}

// Unsettled names a failover that took buckets from the site and whose tail is not settled; "" if there is none.
func (o Ownership) Unsettled(site SiteID) HandoverID {
	for _, ks := range slices.Sorted(maps.Keys(o.Keyspaces)) {
		for _, r := range o.Keyspaces[ks].Ranges {
			if r.Cut != nil && r.Cut.From == site {
				return r.Cut.Handover
			}
		}
	}
	return ""
}

// CutRange is a run of buckets with a cut, and who owns them now.
type CutRange struct {
	Keyspace KeyspaceID
	Range    Range
}

// Cuts lists every range that has a cut, in order.
func (o Ownership) Cuts() []CutRange {
	var out []CutRange
	for _, ks := range slices.Sorted(maps.Keys(o.Keyspaces)) {
		for _, r := range o.Keyspaces[ks].Ranges {
			if r.Cut != nil {
				out = append(out, CutRange{ks, r})
			}
		}
	}
	return out
}
