package topo

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// RecoveryLift is what a recovered store's epochs and version are lifted by, above anything that is known: sites that
// were not reached, and what the lost store decided last, stay below.
const RecoveryLift = 1_000_000

// FenceRow is what a database's fence says of a run of buckets at a site.
type FenceRow struct {
	Site     SiteID     `json:"site"`
	Keyspace KeyspaceID `json:"keyspace"`
	First    BucketID   `json:"first"`
	Last     BucketID   `json:"last"`
	Epoch    Epoch      `json:"epoch"`
	Open     bool       `json:"open"` // else the site closed its fence for a handover
	Handover HandoverID `json:"handover,omitempty"`
}

// CutRow is where a database has the epochs of a lost site end.
type CutRow struct {
	From     SiteID     `json:"from"`
	Keyspace KeyspaceID `json:"keyspace"`
	First    BucketID   `json:"first"`
	Last     BucketID   `json:"last"`
	Epoch    Epoch      `json:"epoch"`
	Position uint64     `json:"position"`
	Handover HandoverID `json:"handover"`
}

// Evidence is what one site's database knows of ownership: its own rows, which are the truth about itself, and the other
// sites' as far as they have travelled here.
type Evidence struct {
	Site       SiteID     `json:"site"`
	Generation uint64     `json:"generation"` // the newest that the database was told of
	Rows       []FenceRow `json:"rows"`
	Cuts       []CutRow   `json:"cuts"`
}

// Recovery is what a recovered store's ownership is computed from, besides the document that was left.
type Recovery struct {
	Sites    []SiteID // every full site
	Evidence map[SiteID]Evidence
	Without  []SiteID            // sites that the operator gives up waiting for: off, and with nothing newer than what is known of them
	Known    map[HandoverID]bool // failovers whose record was left
}

// Recovered is the outcome of a recovery.
type Recovered struct {
	Ownership Ownership
	Ranges    []RecoveredRange
	Failovers []LostFailover // that the document did not know of; their records have to be written with it
}

// RecoveredRange says why a run of buckets is where it is.
type RecoveredRange struct {
	Keyspace KeyspaceID `json:"keyspace"`
	First    BucketID   `json:"first"`
	Last     BucketID   `json:"last"`
	Owner    SiteID     `json:"owner"`
	Was      SiteID     `json:"was"` // in the document that was left
	Because  string     `json:"because"`
}

// LostFailover is a takeover that the databases tell of, and the document that was left does not.
type LostFailover struct {
	ID       HandoverID
	From, To SiteID
	Position uint64
	Taken    []Taken
}

// Doubt is a recovery that is ambiguous: nothing may be written.
type Doubt struct{ Reasons []string }

func (d *Doubt) Error() string {
	return "who owns what is not certain:\n  - " + strings.Join(d.Reasons, "\n  - ")
}

// Recover computes the document of the next generation from what is left of the store and what the sites' databases say.
// o may be old: the highest epoch that any of them names decides, because a database opens only under an epoch that the
// store had given to its site, and only the owner of the moment could have written. Closed and nowhere opened again is
// still the owner's: the handover is given up. Every bucket gets one new epoch, above all others. The error is a
// [*Doubt].
func (o Ownership) Recover(r Recovery) (Recovered, error) {
	c := recovering{old: o, r: r, failovers: map[HandoverID]*LostFailover{}}
	c.lift()
	next := Ownership{Format: OwnershipFormat, Generation: c.generation + 1, Version: o.Version + RecoveryLift, Members: o.Members, Keyspaces: map[KeyspaceID]Placement{}}
	for _, ks := range slices.Sorted(maps.Keys(o.Keyspaces)) {
		next.Keyspaces[ks] = c.keyspace(ks)
	}
	if len(c.doubts) > 0 {
		return Recovered{}, &Doubt{c.doubts}
	}
	next.Members = next.withOwners()
	out := Recovered{Ownership: next.sealed(), Ranges: c.ranges}
	for _, id := range slices.Sorted(maps.Keys(c.failovers)) {
		out.Failovers = append(out.Failovers, *c.failovers[id])
	}
	return out, out.Ownership.Validate()
}

// withOwners is the list of members with every owner as a full one: a site that has opened buckets had joined, whatever an
// older document says of it.
func (o Ownership) withOwners() []Member {
	if len(o.Members) == 0 {
		return nil
	}
	owns := map[SiteID]bool{}
	for _, p := range o.Keyspaces {
		for _, r := range p.Ranges {
			owns[r.Owner] = true
		}
	}
	var out []Member
	for _, m := range o.Members {
		if !owns[m.Site] {
			out = append(out, m)
		}
	}
	for site := range owns {
		out = append(out, Member{Site: site})
	}
	slices.SortFunc(out, func(a, b Member) int { return cmp.Compare(a.Site, b.Site) })
	return out
}

type recovering struct {
	old        Ownership
	r          Recovery
	generation uint64
	epoch      Epoch // of every bucket from now on
	doubts     []string
	ranges     []RecoveredRange
	failovers  map[HandoverID]*LostFailover
}

func (c *recovering) doubt(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(c.doubts, text) {
		c.doubts = append(c.doubts, text)
	}
}

// lift finds what has to be exceeded, and what cannot be placed.
func (c *recovering) lift() {
	top := Epoch(0)
	c.generation = c.old.Generation
	for _, p := range c.old.Keyspaces {
		for _, r := range p.Ranges {
			top = max(top, r.Epoch)
		}
	}
	fits := func(of SiteID, ks KeyspaceID, last BucketID) {
		if p, known := c.old.Keyspaces[ks]; !known {
			c.doubt("the database of %s has rows of keyspace %s, which the document that was left does not know; use a newer backup", of, ks)
		} else if int(last) >= p.Buckets {
			c.doubt("the database of %s has rows of bucket %d of keyspace %s, which has %d", of, last, ks, p.Buckets)
		}
	}
	for _, site := range c.r.Sites {
		e, reached := c.r.Evidence[site]
		switch {
		case !reached && !slices.Contains(c.r.Without, site):
			c.doubt("the database of site %s was not read, neither through an agent nor directly; bring it up, or if it is off for good, leave it out by name", site)
		case reached && slices.Contains(c.r.Without, site):
			c.doubt("site %s was to be left out, and its database answers: it is not lost", site)
		}
		c.generation = max(c.generation, e.Generation)
		for _, row := range e.Rows {
			top = max(top, row.Epoch)
			fits(site, row.Keyspace, row.Last)
		}
		for _, cut := range e.Cuts {
			top = max(top, cut.Epoch)
			fits(site, cut.Keyspace, cut.Last)
		}
	}
	if len(c.r.Evidence) == 0 {
		c.doubt("no database was read: nothing says how high epochs have come")
	}
	c.epoch = top + RecoveryLift
}

// claim is one word on who owns a bucket.
type claim struct {
	site  SiteID
	epoch Epoch
	text  string
	row   *FenceRow // nil: the document's
}

// keyspace decides bucket by bucket, and puts equal neighbours together.
func (c *recovering) keyspace(ks KeyspaceID) Placement {
	p := c.old.Keyspaces[ks]
	out := Placement{Buckets: p.Buckets, Hash: p.Hash}
	rows := c.rowsOf(ks)
	for _, old := range p.Ranges {
		for b := old.First; b <= old.Last; b++ {
			owner, because := c.owner(ks, b, old, rows[b])
			r := Range{First: b, Last: b, Owner: owner, Epoch: c.epoch, State: Open, Cut: c.cuts(ks, b, old, owner)}
			if n := len(out.Ranges); n > 0 && out.Ranges[n-1].sameAs(r) {
				out.Ranges[n-1].Last = b
			} else {
				out.Ranges = append(out.Ranges, r)
			}
			if n := len(c.ranges); n > 0 && c.ranges[n-1].Keyspace == ks && c.ranges[n-1].Last+1 == b && c.ranges[n-1].Owner == owner &&
				c.ranges[n-1].Was == old.Owner && c.ranges[n-1].Because == because {
				c.ranges[n-1].Last = b
			} else {
				c.ranges = append(c.ranges, RecoveredRange{ks, b, b, owner, old.Owner, because})
			}
		}
	}
	return out
}

// rowsOf sorts the rows by bucket. What other sites have heard of a site comes first: its own word counts unless it is
// older, as in the place of a lost database.
func (c *recovering) rowsOf(ks KeyspaceID) map[BucketID][]claim {
	out := map[BucketID][]claim{}
	for _, own := range []bool{false, true} {
		for _, reader := range c.r.Sites {
			for _, row := range c.r.Evidence[reader].Rows {
				if row.Keyspace != ks || own != (row.Site == reader) {
					continue
				}
				for b := row.First; b <= row.Last && int(b) < c.old.Keyspaces[ks].Buckets; b++ {
					out[b] = append(out[b], claim{row.Site, row.Epoch, row.text(reader), &row})
				}
			}
		}
	}
	return out
}

func (r FenceRow) text(reader SiteID) string {
	text := fmt.Sprintf("open at %s under epoch %d", r.Site, r.Epoch)
	if !r.Open {
		text = fmt.Sprintf("closed at %s under epoch %d for handover %s, and nowhere opened since", r.Site, r.Epoch, r.Handover)
	}
	if r.Site != reader {
		text += fmt.Sprintf(", as %s has heard", reader)
	}
	return text
}

// owner is whoever is named with the highest epoch.
func (c *recovering) owner(ks KeyspaceID, b BucketID, old Range, rows []claim) (SiteID, string) {
	best := claim{old.Owner, old.Epoch, fmt.Sprintf("owned by %s under epoch %d in the document that was left", old.Owner, old.Epoch), nil}
	for _, cl := range rows {
		switch {
		case cl.epoch > best.epoch, cl.epoch == best.epoch && cl.site == best.site:
			best = cl
		case cl.epoch == best.epoch:
			c.doubt("%s %d: %s, and %s: two owners of one epoch are damage", ks, b, best.text, cl.text)
		}
	}
	if !slices.Contains(c.r.Sites, best.site) {
		c.doubt("%s %d: %s, and the spec has no such full site", ks, b, best.text)
	}
	if best.row != nil && !best.row.Open {
		for _, lost := range c.r.Without {
			if lost != best.site && !(old.State == Moving && old.Epoch == best.epoch && old.Target != lost) {
				c.doubt("%s %d: %s; site %s, which was left out, may have opened it", ks, b, best.text, lost)
			}
		}
	}
	return best.site, best.text
}

// cuts are the ends of lost owners' epochs that are not settled: those of the document, if the bucket is still where it
// was, and those of failovers that the document does not know, as the owner's database has them.
func (c *recovering) cuts(ks KeyspaceID, b BucketID, old Range, owner SiteID) *Cut {
	var unknown []CutRow
	for _, row := range c.r.Evidence[owner].Cuts {
		if row.Keyspace == ks && row.First <= b && b <= row.Last && row.From != owner && !c.r.Known[row.Handover] {
			unknown = append(unknown, row)
		}
	}
	var chain *Cut
	if owner == old.Owner || len(unknown) > 0 { // else a switch moved it, which needs everything settled
		chain = old.Cut.without(owner)
	}
	slices.SortFunc(unknown, func(a, b CutRow) int { return cmp.Compare(a.Epoch, b.Epoch) })
	for _, row := range unknown {
		if chain != nil && chain.Epoch >= row.Epoch {
			c.doubt("%s %d: the database of %s has a failover %s at epoch %d, and the document that was left one at epoch %d", ks, b, owner, row.Handover, row.Epoch, chain.Epoch)
			continue
		}
		chain = &Cut{From: row.From, Epoch: row.Epoch, Position: row.Position, Handover: row.Handover, Earlier: chain}
		c.tells(ks, b, row, owner)
	}
	return chain
}

// tells notes a failover that the document does not know.
func (c *recovering) tells(ks KeyspaceID, b BucketID, row CutRow, owner SiteID) {
	f := c.failovers[row.Handover]
	if f == nil {
		f = &LostFailover{ID: row.Handover, From: row.From, To: owner, Position: row.Position}
		c.failovers[row.Handover] = f
	}
	if f.From != row.From || f.Position != row.Position {
		c.doubt("failover %s is told of in two ways: from %s at %d, and from %s at %d", row.Handover, f.From, f.Position, row.From, row.Position)
	}
	if n := len(f.Taken); n == 0 || f.Taken[n-1].Keyspace != ks {
		f.Taken = append(f.Taken, Taken{Keyspace: ks})
	}
	t := &f.Taken[len(f.Taken)-1]
	if n := len(t.Buckets); n > 0 && t.Buckets[n-1].Last+1 == b && t.Buckets[n-1].Epoch == row.Epoch {
		t.Buckets[n-1].Last = b
		return
	}
	t.Buckets = append(t.Buckets, EpochSpan{b, b, row.Epoch})
}
