package model

import "fmt"

// checkDocument is I1: one owner at any epoch, and epochs only grow, by one, with the owner.
func (s *step) checkDocument(doc uint16) {
	is := s.m.document(doc)
	if err := is.Validate(); err != nil && s.m.cfg.Plant != EpochKept {
		s.fail("I1", err.Error())
	}
	for b, p := range is.at {
		if s.w.doc != 0 {
			was := s.m.document(s.w.doc).at[b]
			if p.epoch < was.epoch || p.owner != was.owner && p.epoch == was.epoch || was.moving != 0 && p.moving == 0 && p.epoch == was.epoch {
				s.fail("I1", fmt.Sprintf("bucket %d goes from %s at epoch %d to %s at %d", b, siteID(was.owner), was.epoch, siteID(p.owner), p.epoch))
			}
		}
		o := &s.w.mon.owner[b][p.epoch]
		if *o != 0 && *o != uint8(p.owner+1) {
			s.fail("I1", fmt.Sprintf("bucket %d has two owners at epoch %d", b, p.epoch))
		}
		*o = uint8(p.owner + 1)
	}
}

// checkCommit is what must hold where an application's write is committed: the site owns the bucket at that epoch (I2,
// K1), no other site has opened it at a higher one (K1, I4), and the epoch's marker does not stand before it (I3).
func (s *step) checkCommit(at, b int) {
	w, r := &s.w, s.w.db[at].row[b]
	switch {
	case r.state == 2:
		s.fail("I3", fmt.Sprintf("%s commits a write to bucket %d behind its marker for epoch %d", siteID(at), b, r.epoch))
	case w.mon.open[other(at)][b] > r.epoch:
		s.fail("K1", fmt.Sprintf("%s commits a write to bucket %d at epoch %d; %s has opened it at epoch %d", siteID(at), b, r.epoch, siteID(other(at)), w.mon.open[other(at)][b]))
	case w.mon.owner[b][r.epoch] != uint8(at+1):
		s.fail("I2", fmt.Sprintf("%s commits a write to bucket %d at epoch %d, which the store never gave it", siteID(at), b, r.epoch))
	}
}

// checkOpen is what must hold where an ownership bit comes on: the store has given the epoch (I6), the former owner can
// commit nothing any more (I4), and everything up to its marker or its cut is here (I3, I9).
func (s *step) checkOpen(at, b int) {
	w := &s.w
	d, e := &w.db[at], w.db[at].row[b].epoch
	w.mon.open[at][b] = max(w.mon.open[at][b], e)
	was := other(at)
	from := &w.db[was]
	if d.row[b].state != 1 || w.mon.owner[b][e] != uint8(at+1) {
		s.fail("I6", fmt.Sprintf("%s opens bucket %d at epoch %d, which the store never gave it, or whose row is closed", siteID(at), b, e))
		return
	}
	if e == 1 || w.mon.owner[b][e-1] != uint8(was+1) {
		return
	}
	if !s.m.cfg.Outcomes {
		switch {
		case s.m.accepts(w, was, b):
			s.fail("I4", fmt.Sprintf("%s opens bucket %d at epoch %d while the fence of %s still accepts writes to it", siteID(at), b, e, siteID(was)))
		case from.tx[b].stage == 2:
			s.fail("I4", fmt.Sprintf("%s opens bucket %d at epoch %d while a write at %s may still commit", siteID(at), b, e, siteID(was)))
		}
	}
	if c := w.mon.cut[b]; c.epoch == e-1 {
		if d.done < c.pos {
			s.fail("I9", fmt.Sprintf("%s opens bucket %d without what stands at or before the cut %d of failover %s; it has %d", siteID(at), b, c.pos, s.m.name(c.ho), d.done))
		}
		return
	}
	for i, it := range from.log[:from.n] {
		if it.kind() == closed && it.bucket() == b && it.epoch() == e-1 {
			if int(d.done) <= i {
				s.fail("I3", fmt.Sprintf("%s opens bucket %d at epoch %d before it has applied the marker of epoch %d", siteID(at), b, e, e-1))
			}
			return
		}
	}
	s.fail("I3", fmt.Sprintf("%s opens bucket %d at epoch %d, and %s has written no marker for epoch %d", siteID(at), b, e, siteID(was), e-1))
}

// checkApply is I5: what stands beyond a cut in the store is stale, and nothing else is.
func (s *step) checkApply(at int, it item, stale bool) {
	c := s.w.mon.cut[it.bucket()]
	beyond := it.kind() == write && c.epoch >= it.epoch() && s.w.mon.owner[it.bucket()][c.epoch] == uint8(other(at)+1) && s.w.db[at].done >= c.pos
	if beyond != stale {
		s.fail("I5", fmt.Sprintf("%s applies a change of bucket %d at epoch %d as stale=%t; its place in the stream is %d, and the cut of epoch %d is %d",
			siteID(at), it.bucket(), it.epoch(), stale, s.w.db[at].done+1, c.epoch, c.pos))
	}
}

func text(r any) string { return fmt.Sprint(r) }
