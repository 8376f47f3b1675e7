package model

import (
	"errors"
	"time"

	"github.com/atollhq/atoll/internal/lease"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// This file does for the keeper's cycle what internal/lease does around it: prove, renew, enforce (restrict, extend,
// open), each effect a step of its own. Decisions are those of lease.Cycle, lease.PlanFence, lease.Claims and
// lease.ClockWatch.

// Where a keeper stands between two effects (keeper.step), and within an opening (keeper.open). The fence's token is
// held while a moment is about to be written, and during an opening.
const (
	idle        uint8 = iota
	renewedStep       // the renewal is in the store; its answer has arrived
	momentStep        // the moment is computed, not written
)

const (
	notOpening uint8 = iota
	cutsStep
	rowsStep
	bitsStep
)

func movesOf(o topo.Ownership) lease.Moves { return lease.MovesOf(o) }

// claim is a keeper that has taken its site's record: every cycle begins here.
func (s *step) claim(at int) {
	w, k := &s.w, &s.w.ag[at].k
	now := moment(s.m.clock(w, at))
	l, rev, found := s.m.stored(w, at)
	me := incarnation(at, w.ag[at].inc)
	if !lease.Claims(me, l.Holder, l, found, now) {
		return
	}
	if l.Revoked { // begin: what a revoked site had open is closed, and its writers are ended
		if s.m.cfg.Plant != RestrictSkipped {
			s.restrict(at, 0)
		}
		w.db[at].tx = [buckets]tx{}
		s.writersGone(at, 1<<buckets-1)
	}
	k.cycle = s.m.cycles.put(lease.BeginCycle(s.m.cfg.timing(), me, l, rev, identity(at)))
	k.watch, k.void = s.m.watches.put(lease.ClockWatch{}), w.db[at].voids
}

type cycleCall struct {
	id       uint32
	verb     string
	now, arg int
	rev      uint8
	l        seat
}

// cycle has the keeper's cycle take an event in.
func (s *step) cycle(at int, verb string, call cycleCall) {
	k := &s.w.ag[at].k
	call.id, call.verb, call.now = k.cycle, verb, s.m.clock(&s.w, at)
	k.cycle = s.m.cycled.get(call, func() uint32 {
		c, now := s.m.cycles.get(call.id), moment(call.now)
		switch call.verb {
		case "proven":
			c = c.Proven(1)
		case "failed":
			c = c.Failed(now)
		case "renewed":
			c = c.Renewed(moment(call.arg), now, store.Revision(call.rev))
		case "refused":
			c = c.Refused()
		case "unanswered":
			c = c.Unanswered(now)
		case "read":
			l, rev, found := s.m.stored(&s.w, at)
			c = c.Read(l, rev, found)
		case "enforced":
			c = c.Enforced(now)
		case "closed":
			c = c.Closed()
		}
		return s.m.cycles.put(c)
	})
}

type cycleTask struct {
	cycle      uint32
	do         string
	until      int
	rev        uint8
	inForce    bool
	continuous bool
	shut       bool
	deadline   int
}

// task is what a keeper's cycle wants at this moment.
func (m *Model) task(w *world, at int) cycleTask {
	type args struct {
		id  uint32
		now int
	}
	now := m.clock(w, at)
	return m.tasks.get(args{w.ag[at].k.cycle, now}, func() cycleTask {
		c := m.cycles.get(w.ag[at].k.cycle)
		next, t := c.Next(moment(now))
		return cycleTask{m.cycles.put(next), t.Do, millis(t.Until), uint8(t.Expect), c.InForce(moment(now)), c.Continuous(moment(now)), c.Shut(), millis(c.Deadline())}
	})
}

// leaseInForce tells whether the keeper would open or close something now.
func (m *Model) leaseInForce(w *world, at int) bool {
	a := &w.ag[at]
	return a.up && a.k.cycle != 0 && m.task(w, at).inForce
}

// keeperDue tells whether the keeper has something to do at this moment.
func (m *Model) keeperDue(w *world, at int) bool {
	a := &w.ag[at]
	k := &a.k
	switch {
	case !a.acts():
		return false
	case k.open == cutsStep:
		return w.db[at].busy == 0 || m.cfg.Plant == OpenBeforeApplierIdle
	case k.open != notOpening || k.step != idle:
		return true
	case k.cycle == 0:
		return w.db[at].runs() && !a.away
	default:
		return m.task(w, at).do != "resting"
	}
}

// maxParts is more than a keeper's turn has steps.
const maxParts = 12

// keeper is the next effect of a keeper; unless the search is Fine, its whole turn. lost has the first request travel
// late, and nobody hear of it.
func (s *step) keeper(at int, lost bool) {
	s.keeperStep(at, lost)
	for !lost && !s.m.cfg.Fine && s.keeperPart(at) {
	}
}

// keeperPart goes on with a turn that has begun, if it can go on at once.
func (s *step) keeperPart(at int) bool {
	k := &s.w.ag[at].k
	if k.step == idle && k.open == notOpening && s.w.ag[at].k.cycle != 0 && s.m.task(&s.w, at).do != "proving" || !s.m.keeperDue(&s.w, at) {
		return false
	}
	s.keeperStep(at, false)
	return true
}

func (s *step) keeperStep(at int, lost bool) {
	k := &s.w.ag[at].k
	switch {
	case k.open != notOpening:
		s.opening(at, lost)
	case k.step == momentStep:
		s.writeMoment(at, lost)
	case k.step == renewedStep:
		s.enforce(at)
	case k.cycle == 0:
		s.claim(at)
	default:
		s.turn(at, lost)
	}
}

// lateable tells whether the keeper's next effect is a request that can be lost on its way.
func (m *Model) lateable(w *world, at int) bool {
	k := &w.ag[at].k
	if k.open != notOpening || k.step == momentStep {
		return true
	}
	return k.step == idle && k.cycle != 0 && !w.ag[at].away && m.task(w, at).do != "lost"
}

// turn proves and renews, or reads the record.
func (s *step) turn(at int, lost bool) {
	w, k := &s.w, &s.w.ag[at].k
	t := s.m.task(w, at)
	k.cycle = t.cycle
	switch t.do {
	case "proving":
		if s.prove(at) {
			s.renew(at, lost)
		}
	case "renewing":
		s.renew(at, lost)
	case "doubting":
		if w.ag[at].away || lost {
			s.cycle(at, "unanswered", cycleCall{})
			return
		}
		s.cycle(at, "read", cycleCall{l: w.seat[at]})
	case "lost":
		s.standDown(at)
	default: // enforcing, and its time is over
		s.cycle(at, "failed", cycleCall{})
	}
}

// standDown is a keeper that is not active any more.
func (s *step) standDown(at int) {
	k := &s.w.ag[at].k
	*k = keeper{doc: k.doc, from: k.from, opened: k.opened}
}

// prove is a durable write of the database, and the look at its clock.
func (s *step) prove(at int) bool {
	w, k, d := &s.w, &s.w.ag[at].k, &s.w.db[at]
	if !d.runs() {
		s.cycle(at, "failed", cycleCall{})
		return false
	}
	clock := s.m.dbClock(w, at)
	d.reach = max(d.reach, uint16(clock))
	jump := s.watch(at, clock)
	if jump >= 0 && int(d.reach) <= clock {
		s.cycle(at, "proven", cycleCall{})
		return true
	}
	shut := s.m.task(w, at).shut
	s.cycle(at, "failed", cycleCall{})
	if jump < 0 || !shut {
		s.distrust(at)
		k.void = d.voids
		s.cycle(at, "closed", cycleCall{})
	}
	if owned := s.m.document(w.doc); !w.ag[at].away && owned.owns[at]+owned.moving[at] == 0 {
		s.forget(at)
		k.void = d.voids
	}
	return false
}

type looked struct {
	id   uint32
	jump int
}

// watch has the clock watch take a reading in.
func (s *step) watch(at, clock int) int {
	type args struct {
		id         uint32
		clock, now int
	}
	k := &s.w.ag[at].k
	a := args{k.watch, clock, s.m.clock(&s.w, at)}
	r := s.m.looked.get(a, func() looked {
		next, jump := s.m.watches.get(a.id).Look(moment(a.clock), moment(a.now), s.m.cfg.timing().Margin/4)
		return looked{s.m.watches.put(next), int(jump / time.Millisecond)}
	})
	k.watch = r.id
	return r.jump
}

// renew writes the record. The deadline counts from before the request.
func (s *step) renew(at int, lost bool) {
	w, k := &s.w, &s.w.ag[at].k
	t := s.m.task(w, at)
	k.cycle = t.cycle
	if w.ag[at].away {
		s.cycle(at, "unanswered", cycleCall{})
		return
	}
	q := request{kind: renewLease, at: uint8(at), by: uint8(at), rev: t.rev, val: uint16(w.ag[at].inc)}
	if lost {
		s.late(q)
		s.cycle(at, "unanswered", cycleCall{})
		return
	}
	a := s.atStore(q)
	if !a.ok {
		s.cycle(at, "refused", cycleCall{})
		return
	}
	k.step, k.start, k.answer, k.rev = renewedStep, uint16(s.m.clock(w, at)), a.doc, a.rev
}

// note keeps the newest ownership.
func (s *step) note(at int, doc uint16) {
	k := &s.w.ag[at].k
	if k.doc == 0 || s.m.document(doc).Version > s.m.document(k.doc).Version {
		if k.doc != 0 {
			k.from = s.m.document(k.doc).moves
		}
		k.doc = doc
	}
}

// enforce is the answer to a renewal, and the fence brought in line with the ownership: restrict, then compute the
// moment. It is written in a step of its own.
func (s *step) enforce(at int) {
	w, k, d := &s.w, &s.w.ag[at].k, &s.w.db[at]
	now := s.m.clock(w, at)
	s.note(at, k.answer)
	start := int(k.start)
	if s.m.cfg.Plant == DeadlineFromAnswer {
		start = now
	}
	s.cycle(at, "renewed", cycleCall{arg: start, rev: k.rev})
	k.step, k.start, k.answer, k.rev = idle, 0, 0, 0
	t := s.m.task(w, at)
	k.cycle = t.cycle
	if t.do != "enforcing" {
		return
	}
	if !d.runs() || now >= t.until {
		s.cycle(at, "failed", cycleCall{})
		return
	}
	p := s.plan(at, t.continuous)
	if (p.surplus || !t.continuous) && s.m.cfg.Plant != RestrictSkipped {
		s.restrict(at, p.keep)
		k.void = d.voids
	}
	lead := t.deadline - now - int(s.m.cfg.timing().Margin/time.Millisecond)
	if lead <= 0 {
		s.cycle(at, "failed", cycleCall{})
		return
	}
	k.step, k.when, k.lead = momentStep, uint16(s.m.dbClock(w, at)+lead), uint16(lead)
}

// writeMoment extends the fence's lease, and goes on to what is to be opened.
func (s *step) writeMoment(at int, lost bool) {
	w, k := &s.w, &s.w.ag[at].k
	q := request{kind: writeMoment, at: uint8(at), by: uint8(at), val: k.when, lead: k.lead}
	k.step, k.when, k.lead = idle, 0, 0
	t := s.m.task(w, at)
	k.cycle = t.cycle
	over := t.do != "enforcing" || s.m.clock(w, at) >= t.until // the statement's own deadline
	if lost {
		s.late(q)
	}
	if lost || over || !s.atDatabase(q).ok {
		s.cycle(at, "failed", cycleCall{})
		return
	}
	s.cycle(at, "enforced", cycleCall{})
	k.watch = s.m.watches.put(s.m.watches.get(k.watch).Extended())
	s.beginOpening(at)
}

// observe takes note of a document and opens at once what it says is open here.
func (s *step) observe(at int, doc uint16) {
	k := &s.w.ag[at].k
	s.note(at, doc)
	if k.open == notOpening && k.step != momentStep && s.m.leaseInForce(&s.w, at) && uint64(k.opened) < s.m.document(k.doc).Version {
		s.beginOpening(at)
	}
}

// beginOpening plans what is to be opened, as one look at the fence has it.
func (s *step) beginOpening(at int) {
	k := &s.w.ag[at].k
	if k.doc == 0 || !s.w.db[at].runs() {
		return
	}
	p := s.plan(at, true)
	k.plan, k.failed = p.open, false
	k.open = rowsStep
	if p.cuts != 0 {
		k.open, k.group = cutsStep, p.cuts
	} else {
		s.nextOrder(at)
	}
}

// nextOrder goes to the next group of buckets that one handover opens; without one, all is open.
func (s *step) nextOrder(at int) {
	k := &s.w.ag[at].k
	k.group = 0
	ho := uint8(0)
	for b, o := range k.plan {
		if o.epoch != 0 && (ho == 0 || o.ho == ho) {
			ho = o.ho
			k.group |= 1 << b
		}
	}
	if k.group != 0 {
		k.open = rowsStep
		return
	}
	if !k.failed {
		k.opened = uint8(s.m.document(k.doc).Version)
	}
	k.open, k.failed = notOpening, false
}

// opening is the next statement of an opening.
func (s *step) opening(at int, lost bool) {
	k := &s.w.ag[at].k
	q := request{at: uint8(at), by: uint8(at), mask: k.group, void: k.void, doc: k.doc}
	for b, o := range k.plan {
		q.ep[b] = o.epoch
		if k.group>>b&1 == 1 {
			q.ho = o.ho
		}
	}
	q.kind = [...]kind{cutsStep: recordCuts, rowsStep: openRows, bitsStep: openBits}[k.open]
	a := answer{}
	if lost {
		s.late(q)
	} else {
		a = s.atDatabase(q)
	}
	if a.text != "" || !a.ok {
		k.failed = true
	}
	switch {
	case k.open == cutsStep && !a.ok: // buckets without a cut do not wait for it
		s.skip(at, k.group)
	case k.open == cutsStep:
		s.nextOrder(at)
	case k.open == rowsStep && a.mask != 0:
		s.skip(at, k.group&^a.mask, bitsStep)
	default:
		s.skip(at, k.group)
	}
}

// skip takes buckets out of the plan, and goes on.
func (s *step) skip(at int, mask uint8, then ...uint8) {
	k := &s.w.ag[at].k
	for b := range k.plan {
		if mask>>b&1 == 1 {
			k.plan[b] = order{}
		}
	}
	if len(then) > 0 {
		k.group &^= mask
		k.open = then[0]
		return
	}
	s.nextOrder(at)
}

type fencePlan struct {
	keep, cuts uint8
	surplus    bool
	open       [buckets]order
}

// plan compares the fence with the keeper's newest ownership.
func (s *step) plan(at int, continuous bool) fencePlan {
	type args struct {
		at         int
		doc, from  uint16
		row        [buckets]row
		bits       uint8
		continuous bool
	}
	k, d := &s.w.ag[at].k, &s.w.db[at]
	a := args{at, k.doc, k.from, d.row, d.bits, continuous}
	return s.m.plans.get(a, func() fencePlan {
		st := postgres.FenceState{Buckets: map[topo.KeyspaceID]int{keyspace: buckets}, Bits: map[topo.KeyspaceID]topo.Spans{keyspace: spansOf(a.bits)},
			Rows: map[topo.KeyspaceID][]postgres.BucketRow{}}
		for b, r := range a.row {
			if r.state != 0 {
				st.Rows[keyspace] = append(st.Rows[keyspace], postgres.BucketRow{Bucket: topo.BucketID(b), Epoch: topo.Epoch(r.epoch), State: [...]string{"", "open", "closed"}[r.state]})
			}
		}
		var from lease.Moves
		if a.from != 0 {
			from = s.m.moveSets.get(uint32(a.from))
		}
		p := lease.PlanFence(siteID(a.at), s.m.document(a.doc).Ownership, from, st, a.continuous)
		out := fencePlan{keep: maskOf(p.Keep[keyspace]), surplus: p.Surplus}
		for _, o := range p.Open {
			for _, sp := range o.Buckets {
				for b := sp.First; b <= sp.Last; b++ {
					out.open[b] = order{uint8(sp.Epoch), s.m.number(o.Handover)}
				}
			}
		}
		for _, c := range p.Cuts {
			for b := c.Range.First; b <= c.Range.Last; b++ {
				out.cuts |= 1 << b
			}
		}
		return out
	})
}

func spansOf(mask uint8) topo.Spans {
	var on []topo.BucketID
	for b := range topo.BucketID(buckets) {
		if mask>>b&1 == 1 {
			on = append(on, b)
		}
	}
	return topo.SpansOf(on...)
}

func maskOf(s topo.Spans) (mask uint8) {
	for _, b := range s.Buckets() {
		mask |= 1 << b
	}
	return mask
}

var errAway = errors.New("no answer")
