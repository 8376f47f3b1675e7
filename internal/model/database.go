package model

// What the statements of internal/postgres do to a site's database (fence.sql, fence_open.go, fence_close.go,
// fence_halt.go), each as one step: the control row serialises them. Where a statement waits for a lock, its step is not
// possible yet.

// atDatabase carries out what a request asks of a database that answers.
func (s *step) atDatabase(q request) answer {
	d := &s.w.db[q.at]
	if !d.runs() {
		return answer{text: "away"}
	}
	switch q.kind {
	case writeMoment:
		s.extend(int(q.at), q)
		return answer{ok: true}
	case recordCuts:
		return s.recordCuts(int(q.at), q)
	case openRows:
		return s.openRows(int(q.at), q)
	case openBits:
		return s.openBits(int(q.at), q)
	case halt:
		return s.halt(int(q.at), q)
	case unhalt:
		if d.halt == q.ho {
			d.halt = 0
		}
		return answer{ok: true}
	case beginClose:
		return s.beginClose(int(q.at), q)
	case finishClose:
		return s.finishClose(int(q.at), q)
	case abandonClose:
		s.abandonClose(int(q.at), q)
		return answer{ok: true}
	}
	panic("BUG: no database does a " + q.kind.String())
}

// waits tells whether a request would wait for the applier's lock on the progress row.
func (s *step) waits(q request) bool {
	return (q.kind == halt || q.kind == recordCuts) && s.w.db[q.at].busy != 0 && s.m.cfg.Plant != OpenBeforeApplierIdle
}

// extend is atoll.extend_lease: moments only grow, but for one that lies beyond what can have been meant.
func (s *step) extend(at int, q request) {
	d, clock := &s.w.db[at], s.m.dbClock(&s.w, at)
	when := q.val
	if s.m.cfg.Plant == LeaseRelative {
		when = uint16(clock) + q.lead
	}
	if when > d.lease || int(d.lease) > clock+int(q.lead)+1000 {
		d.lease = when
	}
}

// restrict is atoll.restrict: bits outside keep go off, and whatever was decided before is void.
func (s *step) restrict(at int, keep uint8) {
	d := &s.w.db[at]
	d.bits &= keep
	for b := range d.shut {
		if keep>>b&1 == 0 {
			d.shut[b].reopen = 0
		}
	}
	d.voids++
}

// openRows is atoll.open_rows, with the loop around it: late buckets are left out.
func (s *step) openRows(at int, q request) answer {
	d := &s.w.db[at]
	if d.voids != q.void {
		return answer{text: "restricted"}
	}
	a := answer{ok: true}
	for b := range buckets {
		if q.mask>>b&1 == 0 {
			continue
		}
		e, r := q.ep[b], &d.row[b]
		if s.m.cfg.Plant != OpenUnconditional && (r.epoch > e || r.epoch == e && r.state == 2 || d.shut[b].epoch >= e) {
			a.text = "stale"
			continue
		}
		d.shut[b] = shut{}
		a.mask |= 1 << b
		if r.epoch != e || r.state != 1 {
			*r = row{e, 1}
			d.append(newItem(opened, b, e, q.ho))
		}
	}
	return a
}

// openBits is atoll.open_bits: only where the row is still the one that was written.
func (s *step) openBits(at int, q request) answer {
	d := &s.w.db[at]
	if d.voids != q.void {
		return answer{text: "restricted"}
	}
	a := answer{ok: true}
	for b := range buckets {
		if q.mask>>b&1 == 0 {
			continue
		}
		still := d.row[b] == (row{q.ep[b], 1}) && d.shut[b].epoch == 0
		if !still && s.m.cfg.Plant != BitsUnchecked {
			a.text = "stale"
			continue
		}
		if d.bits>>b&1 == 0 {
			d.bits |= 1 << b
			s.checkOpen(at, b)
		}
	}
	return a
}

// beginClose is atoll.begin_close; mask says whose writers have to be waited for.
func (s *step) beginClose(at int, q request) answer {
	d := &s.w.db[at]
	if d.marker(q.ho) >= 0 {
		return answer{ok: true}
	}
	for b := range buckets {
		if q.mask>>b&1 == 1 {
			r, c := d.row[b], d.shut[b]
			if r.epoch > q.ep[b] || r.epoch == q.ep[b] && r.state == 2 || c.epoch >= q.ep[b] && c.ho != q.ho {
				return answer{text: "stale"}
			}
		}
	}
	a := answer{ok: true, text: "closing"}
	for b := range buckets {
		if q.mask>>b&1 == 0 {
			continue
		}
		if c := &d.shut[b]; c.ho != q.ho || c.epoch != q.ep[b] {
			d.tries++
			*c = shut{q.ep[b], q.ho, d.bits >> b & 1, d.tries}
		}
		a.void = d.shut[b].attempt
		d.bits &^= 1 << b
		if d.tx[b].stage != 0 && s.m.cfg.Plant != WaitOutRemoved {
			a.mask |= 1 << b
		}
	}
	return a
}

// finishClose is atoll.finish_close: closed rows and the marker, in one transaction.
func (s *step) finishClose(at int, q request) answer {
	d := &s.w.db[at]
	if d.marker(q.ho) >= 0 {
		return answer{ok: true}
	}
	for b := range buckets {
		c := d.shut[b]
		if q.mask>>b&1 == 1 && (c.ho != q.ho || c.epoch != q.ep[b] || c.attempt != q.void && s.m.cfg.Plant != AttemptIgnored) {
			return answer{text: "superseded"}
		}
	}
	for b := range buckets {
		if q.mask>>b&1 == 0 {
			continue
		}
		if d.bits>>b&1 == 1 {
			s.fail("I6", "an ownership bit is on while its bucket is being closed")
		}
		d.row[b], d.shut[b] = row{q.ep[b], 2}, shut{}
		d.append(newItem(closed, b, q.ep[b], q.ho))
	}
	return answer{ok: true}
}

// abandonClose is atoll.abandon_close: bits that were turned off come on again.
func (s *step) abandonClose(at int, q request) {
	d := &s.w.db[at]
	for b := range d.shut {
		c := d.shut[b]
		if c.epoch == 0 || c.ho != q.ho {
			continue
		}
		d.shut[b] = shut{}
		if d.row[b] == (row{c.epoch, 1}) && c.reopen == 1 {
			d.bits |= 1 << b
			s.checkOpen(at, b)
		}
	}
}

// halt is Fence.Halt: nothing more of the other site is applied, and where that stands.
func (s *step) halt(at int, q request) answer {
	d := &s.w.db[at]
	if s.m.cfg.Plant == OpenBeforeApplierIdle {
		return answer{ok: true, pos: d.done}
	}
	for _, c := range d.cut {
		if c.epoch != 0 && c.ho == q.ho {
			return answer{ok: true, pos: c.pos}
		}
	}
	if d.halt != 0 && d.halt != q.ho {
		return answer{text: "halted by another failover"}
	}
	d.halt = q.ho
	return answer{ok: true, pos: d.done}
}

// recordCuts is atoll.record_cuts for the cuts that a document has at the buckets of the mask.
func (s *step) recordCuts(at int, q request) answer {
	d, doc := &s.w.db[at], s.m.document(q.doc)
	for b := range buckets {
		p := doc.at[b]
		if q.mask>>b&1 == 0 || p.cut.epoch == 0 || d.cut[b].epoch >= p.cut.epoch {
			continue
		}
		if p.cut.pos < d.done && s.m.cfg.Plant != OpenBeforeApplierIdle {
			s.fail("I9", "changes beyond the cut are applied already when it is recorded")
			return answer{text: "beyond"}
		}
	}
	for b := range buckets {
		p := doc.at[b]
		if q.mask>>b&1 == 0 || p.cut.epoch == 0 {
			continue
		}
		if d.cut[b].epoch < p.cut.epoch && s.m.cfg.Plant != CutIgnored {
			d.cut[b] = p.cut
		}
		if d.halt == p.cut.ho {
			d.halt = 0
		}
	}
	return answer{ok: true}
}

func (d *database) append(i item) {
	if int(d.n) == logMax {
		panic("BUG: the model's change stream is full; a run has more items than logMax")
	}
	d.log[d.n] = i
	d.n++
}

// marker is where a handover's closing stands in the stream, -1 if it does not.
func (d *database) marker(ho uint8) int {
	for i, it := range d.log[:d.n] {
		if it.kind() == closed && it.ho() == ho {
			return i
		}
	}
	return -1
}

// distrust is Fence.DistrustClock, forget is Fence.ForgetMoments.
func (s *step) distrust(at int) {
	s.restrict(at, 0)
	d := &s.w.db[at]
	d.reach = max(d.reach, d.lease)
}

func (s *step) forget(at int) {
	s.restrict(at, 0)
	d := &s.w.db[at]
	d.lease, d.reach = 0, uint16(s.m.dbClock(&s.w, at))
}
