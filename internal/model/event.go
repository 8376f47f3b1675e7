package model

import (
	"bytes"
	"slices"

	"github.com/atollhq/atoll/internal/handover"
)

// event is one thing that can happen in a state.
type event struct {
	what what
	at   uint8 // the site
	i    uint8 // bucket, job, handover, request
	part uint8 // steps of the keeper's turn that come before it
	lost bool  // the request travels late, and nobody hears of it
}

type what uint8

const (
	timePasses what = iota
	keeperActs
	keeperHears // of a newer ownership
	lookoutLooks
	lookoutTicks
	lookoutActs
	driverTicks
	driverActs
	driverGivesUp // waiting for writers
	switchBegins
	driverAdopts
	appWrites   // and stays open
	appLooks    // at the lease, for the last time, and stays open
	appCommits  // what passed its last look
	appWorks    // writes, looks and commits
	changeComes // is applied
	applyBegins // and stays open
	applyEnds
	applyBreaks
	requestArrives
	siteReturns // closes what was taken over from it
	siteSettles
	agentFreezes // from here on: faults
	agentCrashes
	storeCut
	databaseCrashes
	clockStops
	agentThaws // from here on: what comes back
	agentStarts
	storeHeals
	databaseStarts
	clockGoes
)

// step is a state being changed.
type step struct {
	m   *Model
	w   world
	bad string // the invariant that it breaks, and how
}

func (s *step) fail(invariant, text string) {
	if s.bad == "" {
		s.bad = invariant + ": " + text
	}
}

// events lists what can happen in a state. Time passes only where no agent has anything to do.
func (m *Model) events(w *world) []event {
	s := step{m: m, w: *w}
	out := make([]event, 0, 32)
	due := false
	add := func(what what, at, i int) { out = append(out, event{what: what, at: uint8(at), i: uint8(i)}) }
	lose := func(what what, at, i int) {
		if m.mayAt(w, LoseRequests, at) {
			out = append(out, event{what: what, at: uint8(at), i: uint8(i), lost: true})
		}
	}
	for at := range w.ag {
		a, d := &w.ag[at], &w.db[at]
		if m.keeperDue(w, at) {
			due = true
			add(keeperActs, at, 0)
			m.keeperFaults(w, at, &out)
		}
		if a.acts() && a.k.doc != 0 && !a.away && w.doc != a.k.doc && a.k.open == notOpening && a.k.step != momentStep {
			add(keeperHears, at, 0)
		}
		if m.looks(w, at) {
			due = true
			add(lookoutLooks, at, 0)
		}
		if a.acts() && a.l.id != 0 {
			if t := m.times(a.l.id).wake; t != 0 && t <= m.clock(w, at) {
				due = true
				add(lookoutTicks, at, 0)
			}
		}
		if s.lookDue(at) {
			due = true
			add(lookoutActs, at, 0)
			lose(lookoutActs, at, 0)
		}
		due = m.driverEvents(w, at, add, lose) || due
		if s.applies(at) {
			add(changeComes, at, 0)
			if m.halting(w, at) {
				add(applyBegins, at, 0)
			}
		}
		if d.busy != 0 && d.runs() {
			add(applyEnds, at, 0)
			add(applyBreaks, at, 0)
		}
		if m.cfg.Returns {
			m.returnEvents(w, at, add)
		}
		m.faultEvents(w, at, add)
	}
	for n := range m.cfg.Switches {
		if m.ready(w, n) {
			add(switchBegins, 0, n)
		}
	}
	for i, q := range w.late {
		if q.kind != none && (q.kind.toStore() || w.db[q.at].runs() && !s.waits(q)) {
			add(requestArrives, 0, i)
		}
	}
	if !due && m.instant(w) <= m.cfg.Grid+m.cfg.Horizon {
		add(timePasses, 0, 0)
	}
	return m.applicationEvents(w, out)
}

func (m *Model) driverEvents(w *world, at int, add, lose func(what, int, int)) (due bool) {
	a := &w.ag[at]
	if a.acts() && a.d.id != 0 {
		if t := m.stateWake(a.d.id); t != 0 && t <= m.clock(w, at) {
			due = true
			add(driverTicks, at, 0)
		}
		for i, j := range a.d.job {
			if j.act == 0 {
				break
			}
			e := m.errand(j.act, a.d.id)
			if m.jobDue(w, at, i) {
				due = true
				add(driverActs, at, i)
				if isStoreVerb(e.verb) && !a.away || e.verb == handover.Close {
					lose(driverActs, at, i)
				}
			} else if e.verb == handover.Close && j.stage == 1 && j.left != 0 && w.ag[e.site].acts() && w.db[e.site].runs() {
				add(driverGivesUp, at, i)
			}
		}
	}
	for n := range m.cfg.Switches {
		if ok, cost := m.adoptable(w, at, n); ok && int(w.spent+cost) <= m.cfg.Faults {
			add(driverAdopts, at, n)
		}
	}
	return due
}

// applicationEvents are what applications can do, beside what agents and time can (others). A transaction that stays open
// makes a difference only where it stood before, and the fence or the lease no longer lets it pass behind: so it is begun,
// or has its last look, right before what ends that. Everywhere else it is done at once.
func (m *Model) applicationEvents(w *world, others []event) []event {
	out := others
	for at := range w.db {
		if !w.db[at].runs() {
			continue
		}
		for _, b := range m.cfg.To {
			e := event{at: uint8(at), i: uint8(b)}
			add := func(what what) { e.what = what; out = append(out, e) }
			t := w.db[at].tx[b]
			may := t.stage == 0 && int(w.writes) < m.cfg.Writes && m.accepts(w, at, b)
			if t.stage == 2 {
				add(appCommits)
				continue
			}
			if may || t.stage == 1 {
				add(appWorks)
			}
			if may && m.ends(w, others, func(next *world) bool { return !m.accepts(next, at, b) || next.db[at].row[b] != w.db[at].row[b] }) {
				add(appWrites)
			}
			if (may || t.stage == 1) && m.inForce(w, at) && m.ends(w, others, func(next *world) bool { return !m.inForce(next, at) }) {
				add(appLooks)
			}
		}
	}
	return out
}

// ends tells whether any of the events of agents, of requests that are late, or of time makes something true.
func (m *Model) ends(w *world, events []event, what func(*world) bool) bool {
	for _, e := range events {
		switch e.what {
		case timePasses, keeperActs, keeperHears, driverActs, requestArrives, driverGivesUp:
			if next, _ := m.apply(w, e); what(&next) {
				return true
			}
		}
	}
	return false
}

// halting tells whether somebody wants the applier at a site to stop.
func (m *Model) halting(w *world, at int) bool {
	for _, q := range w.late {
		if q.kind == halt && int(q.at) == at {
			return true
		}
	}
	a := &w.ag[at]
	return verbs[a.l.act] == handover.Halt || a.k.open == cutsStep
}

func (m *Model) may(w *world, f Fault) bool { return m.cfg.May&f != 0 && int(w.spent) < m.cfg.Faults }

func (m *Model) mayAt(w *world, f Fault, at int) bool {
	return m.may(w, f) && (m.cfg.Here == nil || slices.Contains(m.cfg.Here, at))
}

func (m *Model) faultEvents(w *world, at int, add func(what, int, int)) {
	a, d := &w.ag[at], &w.db[at]
	fault := func(f Fault, can bool, what what, i int) {
		if can && m.mayAt(w, f, at) {
			add(what, at, i)
		}
	}
	fault(FreezeAgents, a.acts(), agentFreezes, 0)
	fault(CrashAgents, a.up, agentCrashes, 0)
	fault(CrashAgents, a.acts() && m.underWay(w, at).kind != none, agentCrashes, 1)
	fault(CutStore, a.acts() && !a.away, storeCut, 0)
	fault(CrashDatabase, d.runs(), databaseCrashes, 0)
	fault(StopClock, d.runs() && !a.up, clockStops, 0)
	fault(StopAnyClock, d.runs(), clockStops, 0)
	if !w.fresh { // what comes back does so right behind the passing of time: later makes no difference
		return
	}
	switch {
	case !a.up:
		add(agentStarts, at, 0)
	case a.frozen:
		add(agentThaws, at, 0)
	case a.away:
		add(storeHeals, at, 0)
	}
	if !d.up {
		add(databaseStarts, at, 0)
	}
	if d.stood != 0 {
		add(clockGoes, at, 0)
	}
}

// down tells whether anything could come back.
func (w *world) down() bool {
	for s := range w.ag {
		if a, d := &w.ag[s], &w.db[s]; !a.up || a.frozen || a.away || !d.up || d.stood != 0 {
			return true
		}
	}
	return false
}

// keeperFaults are what can go wrong in a keeper's turn: a request that is lost, or the agent or its database ending in
// the middle. Where the turn goes step by step, the faults between are those of any state.
func (m *Model) keeperFaults(w *world, at int, out *[]event) {
	s := step{m: m, w: *w}
	for part := range maxParts {
		if part > 0 {
			if m.cfg.Fine || !s.keeperPart(at) {
				return
			}
			for _, f := range []struct {
				may  Fault
				what what
			}{{FreezeAgents, agentFreezes}, {CrashAgents, agentCrashes}, {CrashDatabase, databaseCrashes}} {
				if m.mayAt(w, f.may, at) {
					*out = append(*out, event{what: f.what, at: uint8(at), part: uint8(part)})
				}
			}
		}
		if !m.lateable(&s.w, at) {
			continue
		}
		if m.mayAt(w, LoseRequests, at) {
			*out = append(*out, event{what: keeperActs, at: uint8(at), lost: true, part: uint8(part)})
		}
		if part > 0 && m.mayAt(w, CrashAgents, at) {
			*out = append(*out, event{what: agentCrashes, at: uint8(at), i: 1, part: uint8(part)})
		}
	}
}

// apply is what an event does to a state. A panic that says BUG is a state machine that met what it cannot.
func (m *Model) apply(w *world, e event) (next world, bad string) {
	s := step{m: m, w: *w}
	defer func() {
		if r := recover(); r != nil {
			next, bad = s.w, "panic: "+text(r)
		}
	}()
	if e.lost || e.what >= agentFreezes && e.what < agentThaws {
		s.w.spent++
	}
	for range e.part {
		s.keeperStep(int(e.at), false)
	}
	s.do(e)
	s.forgetLate()
	s.w.fresh = s.w.fresh && e.what >= agentThaws || e.what == timePasses
	s.w.fresh = s.w.fresh && s.w.down()
	return s.w, s.bad
}

// forgetLate drops requests that can change nothing any more, whenever they arrive: what they compare has gone on for good.
func (s *step) forgetLate() {
	w := &s.w
	for i, q := range w.late {
		var over bool
		switch q.kind {
		case renewLease:
			over = w.seat[q.at].rev != q.rev
		case take:
			over = (w.doc != q.doc || w.seat[q.at].rev != q.rev || w.rec[q.ho-1] != 0) && s.m.cfg.Plant != TakeoverUnconditional
		case giveUp:
			over = w.rec[q.ho-1] != 0
		case decide:
			over = w.recRev[q.ho-1] != q.rev || w.doc != q.doc
		case save:
			over = w.recRev[q.ho-1] != q.rev
		case openRows, openBits:
			over = w.db[q.at].voids != q.void
		}
		if over {
			w.late[i] = request{}
		}
	}
	slices.SortFunc(w.late[:], func(a, b request) int { return bytes.Compare(a.bytes(), b.bytes()) }) // their order says nothing
}

func (s *step) do(e event) {
	at, i, w := int(e.at), int(e.i), &s.w
	a, d := &w.ag[at], &w.db[at]
	switch e.what {
	case timePasses:
		s.pass()
	case keeperActs:
		s.keeper(at, e.lost)
	case keeperHears:
		s.observe(at, w.doc)
	case lookoutLooks:
		s.look(at)
	case lookoutTicks:
		s.hear(at, seen{what: "tick"})
	case lookoutActs:
		s.lookAct(at, e.lost)
	case driverTicks:
		s.tell(at, heardByDriver{what: "tick"})
	case driverActs:
		s.job(at, i, e.lost)
	case driverGivesUp:
		s.reopen(at, i)
	case switchBegins:
		s.start(i)
	case driverAdopts:
		_, cost := s.m.adoptable(w, at, i)
		w.spent += cost
		s.adopt(at, i)
	case requestArrives:
		q := w.late[i]
		w.late[i] = request{}
		s.ask(q)
	case appWrites, appLooks, appCommits, appWorks, changeComes, applyBegins, applyEnds, applyBreaks, siteReturns, siteSettles:
		s.data(e)
	case agentFreezes:
		a.frozen = true
	case agentThaws:
		a.frozen = false
	case agentCrashes:
		s.crash(at, i == 1)
	case agentStarts:
		a.up, a.inc = true, a.inc+1
		a.l.id = s.m.newLookout(at, a.inc, s.m.clock(w, at))
	case storeCut:
		a.away = true
	case storeHeals:
		a.away = false
	case databaseCrashes:
		s.writersGone(at, 1<<buckets-1)
		d.up, d.lease, d.tx, d.busy = false, 0, [buckets]tx{}, 0
	case databaseStarts:
		d.up = true
	case clockStops:
		d.stood = w.now
	case clockGoes:
		d.lost, d.stood = d.lost+w.now-d.stood, 0
	}
}

// crash ends an agent; what it has just sent may still arrive.
func (s *step) crash(at int, sent bool) {
	w := &s.w
	if q := s.m.underWay(w, at); sent && q.kind != none {
		s.late(q)
	}
	a := &w.ag[at]
	*a = agent{inc: a.inc}
	d := &w.ag[other(at)].d
	for i := range d.job {
		if d.job[i].act != 0 && d.job[i].stage != 0 && s.m.errand(d.job[i].act, d.id).site == at {
			d.job[i] = job{act: d.job[i].act}
		}
	}
}

// pass moves time to the next moment at which anything can be different.
func (s *step) pass() {
	w := &s.w
	w.now = uint16(s.m.instant(w))
	for at := range w.db {
		for b, t := range w.db[at].tx {
			if t.stage == 2 && t.until < w.now { // W: it would have to have committed
				w.db[at].tx[b] = tx{}
				s.writersGone(at, 1<<b)
			}
		}
	}
}

// instant is the next moment: the grid's, or one that decides something.
func (m *Model) instant(w *world) int {
	now := int(w.now)
	next := now - now%m.cfg.Grid + m.cfg.Grid
	at := func(t int) {
		if t > now && t < next {
			next = t
		}
	}
	for s := range w.ag {
		a, d := &w.ag[s], &w.db[s]
		if a.acts() && a.l.id != 0 {
			at(ceil(m.times(a.l.id).take, m.cfg.Rates[s].Agent))
		}
		if d.runs() && (d.bits != 0 || d.tx != [buckets]tx{}) {
			at(ceil(int(d.lease), m.cfg.Rates[s].Database) + int(d.lost) - 1) // the last millisecond of the lease
		}
		for _, t := range d.tx {
			if t.stage == 2 {
				at(int(t.until))
			}
		}
	}
	return next
}

// ceil is the first true time at which a clock of a rate shows a moment.
func ceil(t, rate int) int { return (t*100 + rate - 1) / rate }
