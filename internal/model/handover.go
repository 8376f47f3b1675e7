package model

import (
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/topo"
)

// This file alone speaks with package handover: what a lookout and a driver make of an event comes from handover.Observe
// and handover.Next, and from nowhere else.

// seen is a look, and what else a lookout hears, as plain numbers.
type seen struct {
	what  string // sight, tick, or the answer to what was asked: halted, unhalted, stands, conflict, refused, failed, gone, record, given-up
	lease seat
	doc   uint16
	own   bool // the taker's lease is in force
	db    bool // its database answers
	halt  uint8
	next  uint8 // the id of a failover that begins because of this look
	pos   uint8
	rec   uint32
	verb  uint8
}

type watched struct {
	id    uint32
	stage uint8
	act   uint8 // what it asks for; 0: nothing
	look  bool
	begun bool // a failover of the id that it was given
}

// acts of a lookout, by number.
var verbs = []handover.Verb{"", handover.Halt, handover.Unhalt, handover.Take, handover.Reread, handover.GiveUp}

var stages = []handover.Stage{handover.Watching, handover.Expired, handover.Halting, handover.Waiting, handover.Taking, handover.Unsure,
	handover.GivingUp, handover.Unhalting, handover.TakenOver}

func indexOf[T comparable](list []T, x T) uint8 {
	for i, y := range list {
		if x == y {
			return uint8(i)
		}
	}
	panic("BUG: the model does not know of this")
}

func (m *Model) newLookout(s int, inc uint8, now int) uint32 {
	if !m.cfg.Watches[s] {
		return 0
	}
	w := m.cfg.W
	if m.cfg.Plant == GapIgnored {
		w = 0
	}
	return m.lookouts.put(handover.NewLookout(handover.Policy{Lost: siteID(other(s)), Taker: siteID(s), Driver: incarnation(s, inc), Mode: handover.ModeAutomatic,
		W: w, PerHour: 1000}, moment(now)))
}

// observe is one step of a lookout.
func (m *Model) observe(s int, id uint32, ev seen, now int) watched {
	type args struct {
		s, now int
		id     uint32
		ev     seen
	}
	return m.observed.get(args{s, now, id, ev}, func() watched {
		l := m.lookouts.get(id)
		next, todo := handover.Observe(l, m.heard(l, s, ev, now), moment(now))
		out := watched{id: m.lookouts.put(next), stage: indexOf(stages, next.Stage), begun: next.UnderWay() && !l.UnderWay() && ev.next != 0 && next.Record.ID == m.name(ev.next)}
		for _, a := range todo {
			switch a.Do {
			case handover.Look:
				out.look = true
			case handover.Say, handover.Audit, handover.Drive: // people, and the record's end: nothing that could be unsafe
			default:
				out.act = indexOf(verbs, a.Do)
			}
		}
		return out
	})
}

// heard is the event that plain numbers stand for.
func (m *Model) heard(l handover.Lookout, s int, ev seen, now int) handover.Event {
	verb := verbs[ev.verb]
	switch ev.what {
	case "sight":
		return m.sight(s, ev, now)
	case "tick":
		return handover.Tick{}
	case "halted":
		return handover.Halted{Position: uint64(ev.pos)}
	case "unhalted":
		return handover.Unhalted{}
	case "stands":
		return m.stands(ev.doc, l.Record.ID)
	case "conflict":
		return handover.Conflict{Do: verb}
	case "refused":
		return handover.Refused{Problems: []handover.Problem{{Check: "ownership", Text: "nothing to take"}}}
	case "gone":
		return handover.Observed{}
	case "record":
		return handover.Observed{Exists: true, Record: m.records.get(ev.rec)}
	case "given-up":
		return handover.GivenUp{}
	}
	return handover.Failed{Do: verb, Text: errAway.Error()}
}

func (m *Model) sight(s int, ev seen, now int) handover.Event {
	lost, d := other(s), m.document(ev.doc)
	facts := handover.Facts{Began: moment(now), Owns: d.owns[lost], Moving: d.moving[lost], OwnLease: ev.own, Known: true,
		Halted: m.name(ev.halt), Unsettled: m.name(d.unsettled[s]), History: true}
	if !ev.db {
		facts.Problem = "the database is away"
	}
	duration := m.cfg.lease().Duration
	if m.cfg.Plant == RateIgnored { // as if the observer did not wait the rate error out
		duration = duration * 100 / 101
	}
	return handover.Sight{At: moment(now), ID: m.name(ev.next), Facts: facts, Lease: handover.LeaseSeen{Exists: ev.lease.rev != 0, Revision: int64(ev.lease.rev),
		Duration: duration, Revoked: ev.lease.by != 0, RevokedBy: m.name(ev.lease.by)}}
}

// stands is the answer to a takeover that stands.
func (m *Model) stands(doc uint16, id topo.HandoverID) handover.TakeStands {
	o := m.document(doc).Ownership
	var taken topo.Taken
	for _, c := range o.Cuts() {
		if c.Cut.Handover == id {
			taken.Keyspace = c.Keyspace
			taken.Buckets = append(taken.Buckets, topo.EpochSpan{First: c.Range.First, Last: c.Range.Last, Epoch: c.Range.Cut.Epoch})
		}
	}
	return handover.TakeStands{Version: o.Version, Taken: []topo.Taken{taken}}
}

// landed is the record that a takeover writes.
func (m *Model) landed(id uint32, doc uint16, now int) uint32 {
	l := m.lookouts.get(id)
	after, _ := handover.Observe(l, m.stands(doc, l.Record.ID), moment(now))
	return m.record(after.Record)
}

// record numbers a record, which must be readable.
func (m *Model) record(r handover.Record) uint32 {
	id := m.records.put(r)
	m.readable.get(id, func() bool {
		if _, err := handover.DecodeRecord(r.Encode()); err != nil {
			panic("BUG: a record that is not readable: " + err.Error())
		}
		return true
	})
	return id
}

func (m *Model) positionOf(id uint32) uint8 {
	return uint8(m.lookouts.get(id).Record.Failover.Position)
}

// recordOf is the record that a lookout is about, with its number.
func (m *Model) recordOf(id uint32) (uint32, uint8) {
	r := m.lookouts.get(id).Record
	return m.records.put(r), m.number(r.ID)
}

type lookTimes struct{ wake, take int }

// times are when a lookout wants a Tick (0: not), and when it may take (0: never).
func (m *Model) times(id uint32) lookTimes {
	return m.wakes.get(id, func() lookTimes {
		l := m.lookouts.get(id)
		var t lookTimes
		if at := l.Wake(); !at.IsZero() {
			t.wake = millis(at)
		}
		if l.Lease.Exists && l.Facts.Owns > 0 && l.Stage != handover.TakenOver {
			t.take = millis(l.TakeAt())
		}
		return t
	})
}

// driven is a step of a driver.
type driven struct {
	id   uint32
	todo [8]uint32 // actions
	over bool
}

type heardByDriver struct {
	what string // tick, claimed, committed, aborted, conflict, observed, gone, settled, closed, writers, marker, reached, released, saved, failed
	verb uint8
	site int
	doc  uint16
	rec  uint32
}

var driverVerbs = []handover.Verb{"", handover.Claim, handover.Commit, handover.Abort, handover.Reread, handover.Save, handover.Settle, handover.Close,
	handover.AwaitMarker, handover.Open, handover.Reopen, handover.AwaitRelease, handover.Check}

func (m *Model) drivenBy(s handover.State, todo []handover.Action) driven {
	out := driven{id: m.states.put(s), over: s.Over()}
	for i, a := range todo {
		out.todo[i] = m.actions.put(a)
	}
	return out
}

// startSwitch is a driver that begins: everything is ready.
func (m *Model) startSwitch(n int, driver string, doc uint16, now int) driven {
	sw := m.cfg.Switches[n]
	rec := handover.Record{ID: m.name(uint8(n + 1)), Driver: driver, Who: "model", Sites: []topo.SiteID{"a", "b"},
		Bounds: handover.Bounds{MaxLagMS: 1, DrainMS: 1000, FenceMS: 1000, CatchMS: 2000},
		Move:   handover.Move{Keyspace: keyspace, Buckets: topo.SpansOf(topo.BucketID(sw.Bucket)), To: siteID(sw.To)}}
	st, _ := handover.Start(rec, false, moment(now))
	mv, problems := handover.Plan(m.document(doc).Ownership, rec.Move)
	if len(problems) > 0 {
		return driven{}
	}
	next, todo := handover.Next(st, handover.Ready{Move: mv}, moment(now))
	return m.drivenBy(next, todo)
}

// resume is a driver that goes on with a stored record.
func (m *Model) resume(rec uint32, driver string, now int) (uint32, driven) {
	r := m.records.get(rec)
	r.Driver = driver
	st, todo := handover.Resume(r, driver, moment(now))
	return m.record(r), m.drivenBy(st, todo)
}

// next is one step of a driver.
func (m *Model) next(id uint32, ev heardByDriver, now int) driven {
	type args struct {
		id  uint32
		ev  heardByDriver
		now int
	}
	return m.drove.get(args{id, ev, now}, func() driven {
		st := m.states.get(id)
		return m.drivenBy(handover.Next(st, m.told(st, ev), moment(now)))
	})
}

func (m *Model) told(st handover.State, ev heardByDriver) handover.Event {
	verb, site := driverVerbs[ev.verb], siteID(ev.site)
	var version uint64
	if ev.doc != 0 {
		version = m.document(ev.doc).Version
	}
	marker := change.Marker{Kind: change.MarkerClosed, Site: st.Record.Move.From, Handover: st.Record.ID, Keyspace: keyspace, Buckets: st.Record.Move.Epochs}
	switch ev.what {
	case "tick":
		return handover.Tick{}
	case "claimed":
		return handover.Claimed{Version: version}
	case "committed":
		return handover.CommitStands{Version: version}
	case "aborted":
		return handover.AbortStands{Version: version}
	case "conflict":
		return handover.Conflict{Do: verb}
	case "observed":
		return handover.Observed{Exists: true, Record: m.records.get(ev.rec)}
	case "gone":
		return handover.Observed{}
	case "settled":
		return handover.Settled{Site: site}
	case "check":
		mv, problems := handover.Plan(m.document(ev.doc).Ownership, st.Record.Move)
		if len(problems) > 0 {
			return handover.Refused{Problems: problems}
		}
		return handover.Ready{Move: mv}
	case "closed":
		return handover.Closed{Marker: marker}
	case "writers":
		return handover.WritersRemain{Text: "a transaction"}
	case "marker":
		return handover.MarkerArrived{Marker: marker}
	case "reached":
		return handover.Reached{Site: site, Version: version}
	case "released":
		return handover.Released{Site: site}
	case "saved":
		return handover.Saved{Outcome: m.records.get(ev.rec).Outcome}
	}
	return handover.Failed{Do: verb, Site: site, Text: errAway.Error()}
}

// decision is what a claim, a commit or an abort writes: the document (0: not allowed as it is known), and the record of
// the state that success leads to.
func (m *Model) decision(id uint32, verb handover.Verb, doc uint16, now int) (uint16, uint32) {
	st := m.states.get(id)
	next := m.move(doc, verb, m.number(st.Record.ID), st.Record.Move)
	if next == 0 {
		return 0, 0
	}
	what := map[handover.Verb]string{handover.Claim: "claimed", handover.Commit: "committed", handover.Abort: "aborted"}[verb]
	after := m.next(id, heardByDriver{what: what, doc: next}, now)
	return next, m.record(m.states.get(after.id).Record)
}

// aboutRecord is what the model needs to know of a stored record.
type aboutRecord struct {
	driver  string
	over    bool
	refused bool
	sw      bool
}

func (m *Model) about(rec uint32) aboutRecord {
	return m.abouts.get(rec, func() aboutRecord {
		r := m.records.get(rec)
		return aboutRecord{r.Driver, r.Over(), r.Outcome == handover.OutcomeRefused, r.Kind == handover.Switch}
	})
}

// replaces tells whether a driver's record may replace a stored one of the same driver.
func (m *Model) replaces(id, stored uint32) bool {
	return m.states.get(id).Record.Follows(m.records.get(stored))
}

func (m *Model) refusedState(id uint32) bool {
	return m.states.get(id).Record.Outcome == handover.OutcomeRefused
}

func (m *Model) recordOfState(id uint32) uint32 { return m.record(m.states.get(id).Record) }

// stateWake is when a driver wants a Tick; 0: not.
func (m *Model) stateWake(id uint32) int {
	return m.stateWakes.get(id, func() int {
		if at := m.states.get(id).Wake(); !at.IsZero() {
			return max(millis(at), 1)
		}
		return 0
	})
}

// errand is an action as plain numbers: the site that it is for, the epochs that it names.
type errand struct {
	verb    handover.Verb
	n       uint8
	site    int
	version uint64
	ho      uint8
	mask    uint8
	ep      [buckets]uint8
}

func (m *Model) errand(act, state uint32) errand {
	type args struct{ act, state uint32 }
	return m.errands.get(args{act, state}, func() errand {
		a, r := m.actions.get(act), m.states.get(state).Record
		e := errand{verb: a.Do, n: indexOf(driverVerbs, a.Do), version: a.Version, ho: m.number(r.ID)}
		if a.Site != "" {
			e.site = siteOf(a.Site)
		}
		for _, sp := range r.Move.Epochs {
			for b := sp.First; b <= sp.Last; b++ {
				e.mask |= 1 << b
				e.ep[b] = uint8(sp.Epoch)
			}
		}
		return e
	})
}
