package model

// Applications, appliers, and the return of a site: what happens to rows. Each takes its time as it likes.

func (s *step) data(e event) {
	at, i := int(e.at), int(e.i)
	switch e.what {
	case appWrites:
		s.begin(at, i)
	case appLooks:
		s.begin(at, i)
		s.lastLook(at, i)
	case appWorks:
		s.begin(at, i)
		if s.lastLook(at, i); s.w.db[at].tx[i].stage == 2 {
			s.commit(at, i)
		}
	case changeComes:
		s.applyBegin(at)
		s.applyEnd(at)
	case appCommits:
		s.commit(at, i)
	case applyBegins:
		s.applyBegin(at)
	case applyEnds:
		s.applyEnd(at)
	case applyBreaks:
		s.w.db[at].busy = 0
	case siteReturns:
		s.closeForGood(at, uint8(i))
	case siteSettles:
		s.settle(uint8(i))
	}
}

// begin is a write that passes the fence, in a transaction that stays open.
func (s *step) begin(at, b int) {
	if t := &s.w.db[at].tx[b]; t.stage == 0 {
		s.w.writes++
		*t = tx{stage: 1}
	}
}

// lastLook is the deferred trigger: it looks at the lease once more, and what is left until the commit record is bounded
// by W.
func (s *step) lastLook(at, b int) {
	t := &s.w.db[at].tx[b]
	if s.m.inForce(&s.w, at) || s.m.cfg.Plant == FenceRemoved {
		*t = tx{2, s.w.now + uint16(s.m.cfg.W.Milliseconds()) - 1}
		return
	}
	*t = tx{}
	s.writersGone(at, 1<<b)
}

// commit puts a write into the change stream, at the epoch that its fence's row has there.
func (s *step) commit(at, b int) {
	d := &s.w.db[at]
	s.checkCommit(at, b)
	d.append(newItem(write, b, d.row[b].epoch, 0))
	d.tx[b] = tx{}
	s.writersGone(at, 1<<b)
}

// applies tells whether the other site's next change can be taken up.
func (s *step) applies(at int) bool {
	w, d, from := &s.w, &s.w.db[at], &s.w.db[other(at)]
	return d.runs() && from.runs() && w.ag[at].acts() && w.ag[other(at)].acts() && d.busy == 0 && d.halt == 0 && d.done < from.n
}

// applyBegin locks the progress row, and decides by the cuts that the database knows whether the change is stale (I5).
func (s *step) applyBegin(at int) {
	d := &s.w.db[at]
	d.busy = 1
	it := s.w.db[other(at)].log[d.done]
	if c := d.cut[it.bucket()]; it.kind() == write && c.epoch >= it.epoch() && d.done >= c.pos && s.m.cfg.Plant != EpochIgnored {
		d.busy = 2
	}
}

func (s *step) applyEnd(at int) {
	d := &s.w.db[at]
	s.checkApply(at, s.w.db[other(at)].log[d.done], d.busy == 2)
	d.busy = 0
	d.done++
}

// returnEvents are the closing of a site that was taken over from, and the settling of its tail at the taker.
func (m *Model) returnEvents(w *world, at int, add func(what, int, int)) {
	a, d := &w.ag[at], &w.db[at]
	if !a.acts() || !d.runs() {
		return
	}
	if a.k.doc != 0 {
		if ho := m.lostIn(a.k.doc, at); ho != 0 && d.marker(ho) < 0 && d.tx == [buckets]tx{} {
			add(siteReturns, at, int(ho))
		}
	}
	if ho := m.lostIn(w.doc, other(at)); ho != 0 && !a.away {
		if end := w.db[other(at)].marker(ho); end >= 0 && int(d.done) > end {
			add(siteSettles, at, int(ho))
		}
	}
}

// lostIn is a failover of which a document has cuts of a site; 0: none.
func (m *Model) lostIn(doc uint16, at int) uint8 {
	for _, p := range m.document(doc).at {
		if p.cut.epoch != 0 && p.cutFrom == at {
			return p.cut.ho
		}
	}
	return 0
}

// closeForGood closes the epochs at which buckets were lost; its marker is the end of the tail.
func (s *step) closeForGood(at int, ho uint8) {
	k, d := &s.w.ag[at].k, &s.w.db[at]
	for b, p := range s.m.document(k.doc).at {
		if p.cut.ho != ho || d.row[b].epoch > p.cut.epoch {
			continue
		}
		d.bits &^= 1 << b
		d.row[b], d.shut[b] = row{p.cut.epoch, 2}, shut{}
		d.append(newItem(closed, b, p.cut.epoch, ho))
	}
	if d.marker(ho) < 0 { // it has every bucket back at a higher epoch
		d.append(newItem(closed, 0, 0, ho))
	}
}

// settle takes a failover's cuts out of the document.
func (s *step) settle(ho uint8) {
	m, doc := s.m, s.w.doc
	type args struct {
		doc uint16
		ho  uint8
	}
	next := m.settle.get(args{doc, ho}, func() uint16 {
		o, err := m.document(doc).Settle(m.name(ho), true)
		if err != nil {
			return 0
		}
		return m.docOf(o)
	})
	if next != 0 {
		s.setDoc(next)
	}
}

// underWay is a request that an agent is about to send, or has just sent: what may arrive behind its death.
func (m *Model) underWay(w *world, at int) request {
	s := step{m: m, w: *w}
	a := &s.w.ag[at]
	lost := func(f func()) request {
		s.w.late = [lateMax]request{}
		f()
		return s.w.late[0]
	}
	switch {
	case m.keeperDue(w, at) && m.lateable(w, at):
		return lost(func() { s.keeper(at, true) })
	case s.lookDue(at):
		return lost(func() { s.lookAct(at, true) })
	}
	for i := range a.d.job {
		if m.jobDue(w, at, i) {
			if e := m.errand(a.d.job[i].act, a.d.id); isStoreVerb(e.verb) && !a.away {
				return lost(func() { s.job(at, i, true) })
			}
		}
	}
	return request{}
}
