package model

import "github.com/atollhq/atoll/internal/handover"

// This file does for a lookout and a driver what internal/control does around them: looks, requests to the store and to
// databases, and what is heard of them.

// hear has a lookout take something in.
func (s *step) hear(at int, ev seen) {
	l := &s.w.ag[at].l
	if l.id == 0 {
		return
	}
	r := s.m.observe(at, l.id, ev, s.m.clock(&s.w, at))
	l.id, l.stage = r.id, r.stage
	if r.act != 0 {
		l.act, l.sub, l.seen = r.act, 0, l.rev
	}
	l.want = l.want || r.look
	if r.begun {
		s.w.begun[at]++
	}
}

// fresh is the id of the next failover to site at; 0: the run has no room for another.
func (m *Model) fresh(w *world, at int) uint8 {
	n := len(m.cfg.Switches) + 1 + 2*int(w.begun[at]) + at
	if n > recMax {
		return 0
	}
	return uint8(n)
}

// sighting is what a look would see now.
func (m *Model) sighting(w *world, at int) seen {
	l := w.seat[other(at)]
	if m.cfg.Plant == TakeoverUnconditional && w.ag[at].l.rev != 0 { // as if the watch were frozen
		l.rev, l.by = w.ag[at].l.rev, 0
	}
	l.seq, l.holder = 0, 0
	return seen{what: "sight", lease: l, doc: w.doc, own: m.leaseInForce(w, at), db: w.db[at].runs(), halt: w.db[at].halt, next: m.fresh(w, at)}
}

// looks tells whether a look would show something that the last one did not.
func (m *Model) looks(w *world, at int) bool {
	a := &w.ag[at]
	if !a.acts() || a.away || a.l.id == 0 || m.fresh(w, at) == 0 {
		return false
	}
	if a.l.want {
		return true
	}
	unresolved := w.db[at].halt != 0 && (stages[a.l.stage] == handover.Watching || stages[a.l.stage] == handover.Expired)
	return int(w.now)%m.cfg.Grid == 0 && (unresolved || m.sights.put(m.sighting(w, at)) != a.l.sight)
}

func (s *step) look(at int) {
	l, ev := &s.w.ag[at].l, s.m.sighting(&s.w, at)
	l.want, l.sight, l.rev = false, s.m.sights.put(ev), ev.lease.rev
	s.hear(at, ev)
}

// lookDue tells whether a lookout's request can be carried out or has failed by now.
func (s *step) lookDue(at int) bool {
	a := &s.w.ag[at]
	if !a.acts() || a.l.act == 0 {
		return false
	}
	return !s.waits(request{kind: halt, at: uint8(at)}) || verbs[a.l.act] != handover.Halt
}

// lookAct is the next effect of what a lookout asked for.
func (s *step) lookAct(at int, lost bool) {
	w, a, l := &s.w, &s.w.ag[at], &s.w.ag[at].l
	verb := verbs[l.act]
	rec, ho := s.m.recordOf(l.id)
	q := request{by: uint8(at), at: uint8(at), ho: ho, id: l.id}
	switch verb {
	case handover.Halt:
		q.kind = halt
	case handover.Unhalt:
		q.kind = unhalt
	case handover.GiveUp:
		q.kind, q.id = giveUp, rec
	case handover.Take:
		if l.sub == 0 && l.rev != l.seen && s.m.cfg.Plant != TakeoverUnconditional { // a later look has seen another lease
			l.act, l.seen = 0, 0
			s.hear(at, seen{what: "conflict", verb: indexOf(verbs, handover.Take)})
			return
		}
		if l.sub == 0 && !a.away && !lost {
			l.sub, l.doc = 1, w.doc
			return
		}
		if l.sub == 1 {
			q.kind, q.at, q.doc, q.rev = take, uint8(other(at)), l.doc, l.seen
		}
	}
	act := l.act
	l.act, l.sub, l.doc, l.seen = 0, 0, 0, 0
	failed := seen{what: "failed", verb: act}
	switch {
	case a.away && (q.kind == none || q.kind.toStore()), verb == handover.Halt && !s.m.leaseInForce(w, at), lost && q.kind == none:
		s.hear(at, failed)
	case lost:
		s.late(q)
		s.hear(at, failed)
	case verb == handover.Reread && w.rec[ho-1] == 0:
		s.hear(at, seen{what: "gone"})
	case verb == handover.Reread:
		s.hear(at, seen{what: "record", rec: w.rec[ho-1]})
	default:
		s.hear(at, s.heardOf(q, act))
	}
}

// heardOf carries a lookout's request out, and says what it hears.
func (s *step) heardOf(q request, act uint8) seen {
	a := s.ask(q)
	switch {
	case a.text == "conflict" || a.text == "refused":
		return seen{what: a.text, verb: act}
	case !a.ok:
		return seen{what: "failed", verb: act}
	}
	return map[kind]seen{halt: {what: "halted", pos: a.pos}, unhalt: {what: "unhalted"}, giveUp: {what: "given-up"}, take: {what: "stands", doc: a.doc}}[q.kind]
}

// ask carries a request out.
func (s *step) ask(q request) answer {
	if q.kind.toStore() {
		return s.atStore(q)
	}
	return s.atDatabase(q)
}

// late has a request travel on, with nobody waiting for it.
func (s *step) late(q request) {
	for i := range s.w.late {
		if s.w.late[i].kind == none {
			s.w.late[i] = q
			return
		}
	}
	panic("BUG: more requests are late than faults allow")
}

// tell has a driver take something in.
func (s *step) tell(at int, ev heardByDriver) {
	s.follow(at, s.m.next(s.w.ag[at].d.id, ev, s.m.clock(&s.w, at)))
}

// follow queues what a driver wants done. Gateways are not in this model: they settle and release at once.
func (s *step) follow(at int, r driven) {
	d := &s.w.ag[at].d
	d.id = r.id
	for _, act := range r.todo {
		if act == 0 {
			break
		}
		switch e := s.m.errand(act, d.id); e.verb {
		case handover.Settle:
			s.tell(at, heardByDriver{what: "settled", site: e.site})
		case handover.AwaitRelease:
			s.tell(at, heardByDriver{what: "released", site: e.site})
		default:
			s.queue(at, act, e)
		}
		if s.w.ag[at].d.id == 0 {
			return
		}
	}
	if r.over && d.id == r.id {
		*d = driver{}
	}
}

func (s *step) queue(at int, act uint32, e errand) {
	d := &s.w.ag[at].d
	for i := range d.job {
		switch {
		case d.job[i].act == 0:
			d.job[i] = job{act: act}
			return
		case e.verb == handover.Save && s.m.errand(d.job[i].act, d.id).verb == handover.Save:
			s.tell(at, heardByDriver{what: "failed", verb: e.n}) // a save is under way
			return
		case e.verb == handover.AwaitMarker && s.m.errand(d.job[i].act, d.id).verb == handover.AwaitMarker:
			return
		}
	}
	panic("BUG: a driver has more at work than the model has room for")
}

func isStoreVerb(v handover.Verb) bool {
	switch v {
	case handover.Check, handover.Claim, handover.Commit, handover.Abort, handover.Reread, handover.Save:
		return true
	}
	return false
}

// jobDue tells whether a driver's action can go on. Store actions go one after the other.
func (m *Model) jobDue(w *world, at, i int) bool {
	a := &w.ag[at]
	j := a.d.job[i]
	if !a.acts() || j.act == 0 {
		return false
	}
	e := m.errand(j.act, a.d.id)
	if isStoreVerb(e.verb) {
		for _, before := range a.d.job[:i] {
			if isStoreVerb(m.errand(before.act, a.d.id).verb) {
				return false
			}
		}
		return true
	}
	there := &w.ag[e.site]
	switch {
	case !there.acts():
		return false
	case e.verb == handover.Close:
		return j.stage == 0 || j.left == 0
	case e.verb == handover.AwaitMarker:
		at := w.db[other(e.site)].marker(e.ho)
		return m.cfg.Plant == MarkerSkipped || at >= 0 && int(w.db[e.site].done) > at && w.db[e.site].runs()
	default: // Open, Reopen
		return j.stage == 0 || uint64(there.k.opened) >= e.version
	}
}

// remove takes a job out of the queue.
func (d *driver) remove(i int) {
	copy(d.job[i:], d.job[i+1:])
	d.job[jobMax-1] = job{}
}

// job is the next effect of a driver's action.
func (s *step) job(at, i int, lost bool) {
	d := &s.w.ag[at].d
	e := s.m.errand(d.job[i].act, d.id)
	failed := heardByDriver{what: "failed", verb: e.n, site: e.site}
	switch {
	case isStoreVerb(e.verb):
		d.remove(i)
		if s.w.ag[at].away {
			s.tell(at, failed)
			return
		}
		s.storeJob(at, e, lost)
	case e.verb == handover.Close:
		s.closeJob(at, i, e, lost)
	case e.verb == handover.AwaitMarker:
		d.remove(i)
		s.tell(at, heardByDriver{what: "marker"})
	case d.job[i].stage == 0:
		d.job[i].stage = 1
		doc := d.doc
		if s.m.document(doc).Version < e.version {
			doc = s.w.doc
		}
		s.observe(e.site, doc)
	default:
		d.remove(i)
		s.tell(at, heardByDriver{what: "reached", site: e.site, doc: s.w.ag[e.site].k.doc})
	}
}

// closeJob is one statement of a closing at the old owner.
func (s *step) closeJob(at, i int, e errand, lost bool) {
	d := &s.w.ag[at].d
	stage := d.job[i].stage
	q := request{kind: beginClose, at: uint8(e.site), by: uint8(at), ho: e.ho, mask: e.mask, ep: e.ep}
	if stage == 1 {
		q.kind, q.void = finishClose, d.job[i].began
	}
	a := answer{}
	switch {
	case lost:
		s.late(q)
	case stage == 1 || s.m.leaseInForce(&s.w, e.site):
		a = s.ask(q)
	}
	if a.text == "closing" {
		d.job[i].stage, d.job[i].left, d.job[i].began = 1, a.mask, a.void
		return
	}
	d.remove(i)
	if a.ok {
		s.tell(at, heardByDriver{what: "closed"})
		return
	}
	s.tell(at, heardByDriver{what: "failed", verb: e.n, site: e.site})
}

// reopen is a closing that waits for writers no longer.
func (s *step) reopen(at, i int) {
	d := &s.w.ag[at].d
	e := s.m.errand(d.job[i].act, d.id)
	d.remove(i)
	s.ask(request{kind: abandonClose, at: uint8(e.site), by: uint8(at), ho: e.ho})
	s.tell(at, heardByDriver{what: "writers"})
}

// writersGone tells closings whose transactions have ended.
func (s *step) writersGone(at int, mask uint8) {
	for c := range s.w.ag {
		d := &s.w.ag[c].d
		for i := range d.job {
			if d.job[i].left != 0 && s.m.errand(d.job[i].act, d.id).site == at {
				d.job[i].left &^= mask
			}
		}
	}
}

// storeJob is a store action of a driver, with the ledger's bookkeeping.
func (s *step) storeJob(at int, e errand, lost bool) {
	w, d, now := &s.w, &s.w.ag[at].d, s.m.clock(&s.w, at)
	failed := heardByDriver{what: "failed", verb: e.n}
	q := request{kind: decide, by: uint8(at), ho: e.ho, doc: d.doc, rev: d.rev, verb: e.n}
	switch e.verb {
	case handover.Check:
		if lost {
			s.tell(at, failed)
			return
		}
		d.doc = w.doc
		s.tell(at, heardByDriver{what: "check", doc: d.doc})
		return
	case handover.Reread:
		s.reread(at, e, lost)
		return
	case handover.Save:
		if d.rev != 0 && !s.m.replaces(d.id, d.written) {
			s.tell(at, failed)
			return
		}
		q.kind, q.id, q.doc = save, s.m.recordOfState(d.id), 0
	default:
		q.val, q.id = s.m.decision(d.id, e.verb, d.doc, now)
		if q.val == 0 { // the document as it is known does not allow it: it may be old
			s.tell(at, heardByDriver{what: "conflict", verb: e.n})
			return
		}
	}
	if lost {
		s.late(q)
		s.tell(at, failed)
		return
	}
	a := s.atStore(q)
	switch {
	case a.ok && q.kind == save:
		d.rev, d.written = a.rev, q.id
		s.tell(at, heardByDriver{what: "saved", rec: q.id})
	case a.ok:
		d.rev, d.written, d.doc = a.rev, q.id, q.val
		s.tell(at, heardByDriver{what: map[handover.Verb]string{handover.Claim: "claimed", handover.Commit: "committed", handover.Abort: "aborted"}[e.verb], doc: q.val})
	case q.kind == save:
		s.saveRefused(at, e)
	default:
		s.tell(at, heardByDriver{what: "conflict", verb: e.n})
	}
}

// saveRefused looks why the store refused a record.
func (s *step) saveRefused(at int, e errand) {
	w, d := &s.w, &s.w.ag[at].d
	stored := w.rec[e.ho-1]
	switch {
	case s.deposed(at, stored), stored != 0 && s.m.refusedState(d.id) && !s.m.about(stored).refused:
		*d = driver{}
		return
	case stored != 0 && s.m.replaces(d.id, stored):
		d.rev, d.written = w.recRev[e.ho-1], stored
	}
	s.tell(at, heardByDriver{what: "failed", verb: e.n})
}

func (s *step) deposed(at int, stored uint32) bool {
	return stored != 0 && s.m.about(stored).driver != incarnation(at, s.w.ag[at].inc)
}

// reread reads record and ownership again.
func (s *step) reread(at int, e errand, lost bool) {
	w, d := &s.w, &s.w.ag[at].d
	stored := w.rec[e.ho-1]
	switch {
	case lost || stored == 0 && d.rev != 0:
		s.tell(at, heardByDriver{what: "failed", verb: e.n})
	case s.deposed(at, stored):
		*d = driver{}
	case stored == 0:
		d.doc = w.doc
		s.tell(at, heardByDriver{what: "gone"})
	default:
		d.doc, d.rev, d.written = w.doc, w.recRev[e.ho-1], stored
		s.tell(at, heardByDriver{what: "observed", rec: stored})
	}
}

// start begins a switch.
func (s *step) start(n int) {
	sw, w := s.m.cfg.Switches[n], &s.w
	d := &w.ag[sw.Driver].d
	w.started |= 1 << n
	*d = driver{doc: w.doc, ho: uint8(n + 1)}
	s.follow(sw.Driver, s.m.startSwitch(n, incarnation(sw.Driver, w.ag[sw.Driver].inc), w.doc, s.m.clock(w, sw.Driver)))
}

// ready tells whether a switch would be tried: both leases in force, the fence at the source as the store says.
func (m *Model) ready(w *world, n int) bool {
	sw := m.cfg.Switches[n]
	p := m.document(w.doc).at[sw.Bucket]
	from, a := &w.db[p.owner], &w.ag[sw.Driver]
	return w.started>>n&1 == 0 && int(w.now) == m.cfg.Grid+sw.At && a.acts() && !a.away && a.d.id == 0 && p.owner != sw.To && p.moving == 0 && m.document(w.doc).unsettled[sw.To] == 0 &&
		m.leaseInForce(w, 0) && m.leaseInForce(w, 1) && from.runs() && w.db[sw.To].runs() &&
		from.bits>>sw.Bucket&1 == 1 && from.row[sw.Bucket] == (row{uint8(p.epoch), 1})
}

// adoptable tells whether a controller can take a switch's record over, and at which cost.
func (m *Model) adoptable(w *world, at int, n int) (ok bool, cost uint8) {
	a, rec := &w.ag[at], w.rec[n]
	if rec == 0 || !a.acts() || a.away || a.d.id != 0 {
		return false, 0
	}
	r := m.about(rec)
	if r.over || !r.sw || r.driver == incarnation(at, a.inc) {
		return false, 0
	}
	if o := &w.ag[other(at)]; o.up && r.driver == incarnation(other(at), o.inc) && o.d.id != 0 {
		return true, 1 // its driver lives: a mistake
	}
	return true, 0
}

// adopt puts a controller's name into a record, and goes on from there.
func (s *step) adopt(at int, n int) {
	w := &s.w
	rec, r := s.m.resume(w.rec[n], incarnation(at, w.ag[at].inc), s.m.clock(w, at))
	s.setRecord(uint8(n+1), rec)
	w.ag[at].d = driver{doc: w.doc, ho: uint8(n + 1), rev: w.recRev[n], written: rec}
	s.follow(at, r)
}
