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
	if !o.Full(to) {
		return o, nil, fmt.Errorf("site %s is no member that may own: take it in with atoll site add", to)
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
				Cut: &Cut{From: from, Epoch: r.Epoch, Position: position, Handover: id, Earlier: r.Cut}}, nil
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

// Settle says that the site which a failover lost is back and its tail decided: it may own again. With everywhere, every
// site has taken note of the failover's cuts, and they are removed.
func (o Ownership) Settle(id HandoverID, everywhere bool) (Ownership, error) {
	found := false
	next := o
	next.Keyspaces = maps.Clone(o.Keyspaces)
	for ks, p := range o.Keyspaces {
		var ranges []Range
		for _, r := range p.Ranges {
			var hit bool
			r.Cut, hit = r.Cut.settle(id, everywhere)
			found = found || hit
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

// settle returns the chain with the failover's cut settled or, with everywhere, without it.
func (c *Cut) settle(id HandoverID, everywhere bool) (out *Cut, found bool) {
	switch {
	case c == nil:
		return nil, false
	case c.Handover == id && everywhere:
		return c.Earlier, true
	case c.Handover == id && c.Settled:
		return c, false
	case c.Handover == id:
		settled := *c
		settled.Settled = true
		return &settled, true
	}
	rest, found := c.Earlier.settle(id, everywhere)
	if !found {
		return c, false
	}
	copied := *c
	copied.Earlier = rest
	return &copied, true
}

// Unsettled names a failover that took buckets from the site and whose tail is not settled; "" if there is none.
func (o Ownership) Unsettled(site SiteID) HandoverID {
	for _, c := range o.Cuts() {
		if c.Cut.From == site && !c.Cut.Settled {
			return c.Cut.Handover
		}
	}
	return ""
}

// CutRange is a run of buckets with a cut, one of its chain, and who owns them now.
type CutRange struct {
	Keyspace KeyspaceID
	Range    Range
	Cut      Cut
}

// Busy tells whether a bucket is moving, or a failover has left a cut.
func (o Ownership) Busy() bool {
	for _, p := range o.Keyspaces {
		if slices.ContainsFunc(p.Ranges, func(r Range) bool { return r.State == Moving || r.Cut != nil }) {
			return true
		}
	}
	return false
}

// Cuts lists every cut of every range that has one, in order; of a range the newest first.
func (o Ownership) Cuts() []CutRange {
	var out []CutRange
	for _, ks := range slices.Sorted(maps.Keys(o.Keyspaces)) {
		for _, r := range o.Keyspaces[ks].Ranges {
			for c := r.Cut; c != nil; c = c.Earlier {
				out = append(out, CutRange{ks, r, *c})
			}
		}
	}
	return out
}
