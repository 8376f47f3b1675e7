package rejoin

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// closing is what a lost site has to close of one keyspace for one failover.
type closing struct {
	handover topo.HandoverID
	keyspace topo.KeyspaceID
	buckets  []topo.EpochSpan // at the cuts' epochs
}

func (c closing) String() string { return fmt.Sprintf("%s/%s", c.handover, c.keyspace) }

// closings lists what a site has to close, in order: every bucket that was taken over from it and not settled since.
func closings(site topo.SiteID, o topo.Ownership) []closing {
	var out []closing
	for _, c := range o.Cuts() {
		cut := c.Cut
		if cut.From != site || cut.Settled {
			continue
		}
		i := slices.IndexFunc(out, func(have closing) bool { return have.handover == cut.Handover && have.keyspace == c.Keyspace })
		if i < 0 {
			out, i = append(out, closing{handover: cut.Handover, keyspace: c.Keyspace}), len(out)
		}
		out[i].buckets = appendEpochs(out[i].buckets, topo.EpochSpan{First: c.Range.First, Last: c.Range.Last, Epoch: cut.Epoch})
	}
	slices.SortFunc(out, func(a, b closing) int {
		return cmp.Or(cmp.Compare(a.handover, b.handover), cmp.Compare(a.keyspace, b.keyspace))
	})
	return out
}

func appendEpochs(spans []topo.EpochSpan, s topo.EpochSpan) []topo.EpochSpan {
	if n := len(spans); n > 0 && spans[n-1].Last+1 == s.First && spans[n-1].Epoch == s.Epoch {
		spans[n-1].Last = s.Last
		return spans
	}
	return append(spans, s)
}

// arrear is a failover whose lost site is not settled, or of whose cuts not every site has taken note.
type arrear struct {
	settled   bool
	handover  topo.HandoverID
	from      topo.SiteID
	keyspaces []topo.KeyspaceID
	others    []topo.SiteID // owners of some of its buckets besides the asked site
}

// arrears lists the failovers that a site has to settle: those with cuts in buckets that it owns.
func arrears(owner topo.SiteID, o topo.Ownership) []arrear {
	var out []arrear
	for _, c := range o.Cuts() {
		cut := c.Cut
		i := slices.IndexFunc(out, func(have arrear) bool { return have.handover == cut.Handover })
		if i < 0 {
			out, i = append(out, arrear{handover: cut.Handover, from: cut.From, settled: cut.Settled}), len(out)
		}
		if a := &out[i]; !slices.Contains(a.keyspaces, c.Keyspace) {
			a.keyspaces = append(a.keyspaces, c.Keyspace)
		}
		if a := &out[i]; !slices.Contains(a.others, c.Range.Owner) {
			a.others = append(a.others, c.Range.Owner)
		}
	}
	out = slices.DeleteFunc(out, func(a arrear) bool { return !slices.Contains(a.others, owner) })
	for i := range out {
		out[i].others = slices.DeleteFunc(out[i].others, func(s topo.SiteID) bool { return s == owner })
	}
	return out
}

// late sorts the buckets for which a closing came too late.
type late struct {
	regained map[topo.BucketID]bool // the site holds them at a higher epoch again: not to be closed for this cut
	closed   int                    // closed by this very handover; only its marker is missing
	other    *postgres.LateBucket   // one that neither explains
}

func (c closing) late(buckets []postgres.LateBucket) late {
	l := late{regained: map[topo.BucketID]bool{}}
	for _, b := range buckets {
		switch {
		case b.Epoch > b.Asked:
			l.regained[b.Bucket] = true
		case b.State == "closed" && b.Handover == c.handover:
			l.closed++
		default:
			l.other = &b
		}
	}
	return l
}

// without leaves buckets out.
func (c closing) without(out map[topo.BucketID]bool) closing {
	rest := closing{handover: c.handover, keyspace: c.keyspace}
	for _, s := range c.buckets {
		for b := s.First; b <= s.Last; b++ {
			if !out[b] {
				rest.buckets = appendEpochs(rest.buckets, topo.EpochSpan{First: b, Last: b, Epoch: s.Epoch})
			}
		}
	}
	return rest
}

func (c closing) count() (n int) {
	for _, s := range c.buckets {
		n += int(s.Last-s.First) + 1
	}
	return n
}

func (c closing) order() postgres.CloseOrder {
	return postgres.CloseOrder{Handover: c.handover, Keyspace: c.keyspace, Buckets: c.buckets, Bound: closeBound, EndBlockers: true}
}

// owned tells whether a document gives a site any bucket, or is about to.
func owned(o topo.Ownership, site topo.SiteID) bool {
	for _, p := range o.Keyspaces {
		if slices.ContainsFunc(p.Ranges, func(r topo.Range) bool { return r.Owner == site || r.Target == site }) {
			return true
		}
	}
	return false
}
