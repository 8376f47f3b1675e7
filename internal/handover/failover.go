package handover

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

// rateError is the share of a lease that an observer waits beyond its end: how much faster its clock may run than the
// holder's (I4).
const rateError = 100 // one part in

// haltBound is how long one try at halting may wait for the apply transaction under way.
const haltBound = 5 * time.Second

// turnWait is how long a site leaves a takeover to each of those that come before it.
const turnWait = 2 * time.Second

// foreignPatience is how long a halt that another site asked for may stand, besides twice W, before this one looks what
// became of it: that site may have died meanwhile.
const foreignPatience = 10 * time.Second

// resolveAfter is how long the halt of a failover that stands may stay: the taker's keeper ends it when it records the
// cuts. One that is still there then is looked into.
const resolveAfter = 5 * time.Second

// Stage is where the observer of one site stands.
//
//	watching ─▶ expired ─▶ halting ─▶ waiting ─▶ taking ─▶ taken
//	    ▲          │          │          │    ◀──┐ │  ▲
//	    │◀─────────┘          │          │       unsure
//	    └──────── unhalting ◀─┴──────────┴ giving-up
type Stage string

const (
	// Watching: the site's lease is in force on this observer's clock, or the site owns nothing that could be taken. Left
	// to Expired when the lease runs out; to Unsure when the database has a halt that nobody here knows of.
	Watching Stage = "watching"
	// Expired: the lease has run out, and nothing is done yet: a veto or a rule speaks against it, the mode says so, or
	// half of W has still to pass. Left to Watching when the site renews; to Halting when all conditions hold, or an
	// operator orders it.
	Expired Stage = "expired"
	// Halting: this site's database is asked to apply nothing more of the lost site. Left to Waiting with the durable
	// position, which is the cut; to Unhalting when something speaks against the takeover by then.
	Halting Stage = "halting"
	// Waiting: halted; until the lease has been out for W, and until a look after each refusal of the store. Left to
	// Taking; when the site renews or a condition ends, to Unhalting, or to GivingUp if a Take was ever sent.
	Waiting Stage = "waiting"
	// Taking: the transaction is with the store. Left to TakenOver, or to Unsure when it conflicts or is not answered.
	Taking Stage = "taking"
	// Unsure: only the record says whether the takeover stands. Left to TakenOver if it does; to Unhalting if the record
	// is a refusal; else back to Waiting, or to GivingUp. Without the store it stays: nothing is assumed.
	Unsure Stage = "unsure"
	// GivingUp: the record is created as refused, so that no Take of this id can land. Left to Unhalting; to Unsure if
	// there is a record after all.
	GivingUp Stage = "giving-up"
	// Unhalting: the lost site's changes are to be applied again. Left to Watching; an error is tried again for ever.
	Unhalting Stage = "unhalting"
	// TakenOver: the store says that this site owns what the other had open; the record is driven to its end. Left to
	// Watching with the first look that shows the lease as the takeover left it, or a newer one.
	TakenOver Stage = "taken"
)

// Mode says what happens by itself.
type Mode string

const (
	ModeAutomatic Mode = "automatic" // a lost site is taken over
	ModeObserve   Mode = "observe"   // what would be done is said, and not done
	ModeManual    Mode = "manual"    // operators only
)

// Policy is what a lookout goes by.
type Policy struct {
	Lost, Taker topo.SiteID
	Driver      string // the controller's name
	Mode        Mode
	W           time.Duration // between a fence check and its commit
	QuietTime   time.Duration // 0: the rule is off
	MaxLoss     time.Duration
	VetoBound   time.Duration
	PerHour     int
}

// LeaseSeen is a site's lease as one linearizable read had it.
type LeaseSeen struct {
	Exists    bool
	Revision  int64 // of the store
	Duration  time.Duration
	Revoked   bool
	RevokedBy topo.HandoverID
	Holder    string
	Asks      string // sites whose promises extend it without the store, separated by commas
	Keeps     bool   // the site goes on without the store and without promises
}

// Lookout is the watch of one site by another. Make one with [NewLookout]; [Observe] is the machine.
type Lookout struct {
	Policy Policy
	Stage  Stage
	Lease  LeaseSeen
	Seen   time.Time       // when the read that had this revision first returned
	Facts  Facts           // as of the last look
	Looked time.Time       // when that was; zero: never
	Blind  string          // why the last look failed; empty if it did not
	Record Record          // of the failover under way, else of the last one; not stored before TAKEN
	Last   topo.HandoverID // the last that stands, as far as this observer knows

	since    time.Time // of Stage
	at       time.Time // of the last event
	freshID  topo.HandoverID
	retry    *timed    // an action that failed, to be done again; nil: nothing, or it is under way
	timed    int64     // the revision of the lease whose end is acted on
	began    time.Time // Halting
	sent     bool      // a Take of Record.ID was asked for
	found    bool      // Record is of a halt that was found in the database
	stop     string    // why the failover under way should not go on; empty: it should
	needLook bool      // Waiting: the store refused, so that a later look has to come first
	resolve  time.Time // before this, a halt by Last is left to the keeper
	told     string    // what was said last of this incident
	foreign  foreign
	promised time.Time // until when, rate error included, this site has promised not to take over; zero: never
}

// foreign is a halt that another site asked for.
type foreign struct {
	id    topo.HandoverID
	since time.Time // when it was first seen
}

// NewLookout starts from nothing: how long a lease has been silent before does not count.
func NewLookout(p Policy, now time.Time) Lookout {
	return Lookout{Policy: p, Stage: Watching, since: now, at: now}
}

// Expiry is when the lease, or what was promised in its place, has run out on every clock within the rate error; a revoked
// one has.
func (l Lookout) Expiry() time.Time {
	if l.Lease.Revoked { // by a takeover that had waited
		return l.Seen
	}
	end := l.Seen.Add(l.Lease.Duration + l.Lease.Duration/rateError)
	if !plant.PromiseForgotten && l.promised.After(end) {
		return l.promised
	}
	return end
}

// TakeAt is when commits that were checked before the end of the lease are over, too.
func (l Lookout) TakeAt() time.Time {
	if l.Lease.Revoked {
		return l.Seen
	}
	return l.Expiry().Add(l.Policy.W)
}

// haltAt leaves half of W for vetoes and for changes that are still coming in.
func (l Lookout) haltAt() time.Time {
	if l.Lease.Revoked {
		return l.Seen
	}
	return l.Expiry().Add(l.Policy.W / 2)
}

// RunOut tells whether the lease has run out at a moment of this observer's clock.
func (l Lookout) RunOut(now time.Time) bool { return l.Lease.Exists && !now.Before(l.Expiry()) }

// UnderWay tells whether a failover is being tried.
func (l Lookout) UnderWay() bool {
	return l.Stage != Watching && l.Stage != Expired && l.Stage != TakenOver
}

// beginAt is when this site takes over by itself: those that come first have had their turn.
func (l Lookout) beginAt() time.Time {
	return l.haltAt().Add(time.Duration(l.Facts.Turn) * turnWait)
}

// Wake is when the next Tick is due; zero: none.
func (l Lookout) Wake() time.Time {
	var at time.Time
	if l.retry != nil {
		at = l.retry.at
	}
	next := func(t time.Time) { // what every event looks at is done with the last one
		if t.After(l.at) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if l.Lease.Exists && l.Facts.Owns > 0 {
		switch l.Stage {
		case Watching, Expired:
			next(l.Expiry())
			next(l.haltAt())
			next(l.beginAt())
			next(l.TakeAt())
		case Waiting:
			next(l.TakeAt())
		}
	}
	return at
}

// Observe is the machine: what a lookout makes of an event, and what it wants done. It panics on an event that no
// action of this stage or an earlier one can have yielded.
func Observe(l Lookout, ev Event, now time.Time) (Lookout, []Action) {
	w := watch{Lookout: l.clone(), now: now}
	w.at = now
	w.on(ev)
	return w.Lookout, w.out
}

func (l Lookout) clone() Lookout {
	l.Record = State{Record: l.Record}.clone().Record
	if f := l.Record.Failover; f != nil {
		c := *f
		l.Record.Failover = &c
	}
	if l.retry != nil {
		r := *l.retry
		l.retry = &r
	}
	return l
}

// watch is a Lookout being changed, and the actions that the change asks for.
type watch struct {
	Lookout
	now time.Time
	out []Action
}

func (w *watch) do(a Action) {
	w.retry = nil
	w.out = append(w.out, a)
}

func (w *watch) again(a Action) { w.retry = &timed{w.now.Add(retryEvery), a} }

func (w *watch) say(format string, args ...any) {
	w.out = append(w.out, Action{Do: Say, Text: fmt.Sprintf(format, args...)})
}

func (w *watch) audit(format string, args ...any) {
	w.out = append(w.out, Action{Do: Audit, Text: fmt.Sprintf(format, args...)})
}

func (w *watch) enter(s Stage) { w.Stage, w.since, w.retry = s, w.now, nil }

// sighted takes a look in. It returns false for one that is older than what is known.
func (w *watch) sighted(e Sight) bool {
	if plant.TakeoverUnconditional && w.Lease.Exists { // as if the watch were frozen
		e.Lease = w.Lease
	}
	if e.Lease.Exists && e.Lease.Revision < w.Lease.Revision {
		return false
	}
	if e.Lease != w.Lease {
		w.Lease, w.Seen = e.Lease, e.At
		if w.Stage == Watching || w.Stage == Expired {
			w.told = ""
		}
	}
	w.Facts, w.Looked, w.Blind, w.freshID = e.Facts, w.now, "", e.ID
	return true
}

// consider is WATCHING and EXPIRED after a look or a wait: whether to begin, and what to say.
func (w *watch) consider() {
	if !w.RunOut(w.now) || w.Facts.Owns == 0 {
		if w.Stage == Expired {
			if w.Facts.Owns == 0 {
				w.say("%s owns nothing any more that could be taken over", w.Policy.Lost)
			} else {
				w.say("%s has renewed its lease: it is not lost", w.Policy.Lost)
			}
			w.enter(Watching)
		}
		return
	}
	if w.Stage == Watching {
		w.enter(Expired)
		w.told = ""
	}
	if w.Blind != "" { // what was seen before may be long past; the next look that succeeds considers again
		w.tell("store", false, "%s; no takeover while the store does not answer: %s", w.leaseText(w.now), w.Blind)
		return
	}
	against := Unmet(w.Conditions(Ask{}, w.now))
	switch {
	case len(against) == 0 && w.now.Before(w.beginAt()):
		w.tell("wait", false, "%s; %s is about to take over", w.leaseText(w.now), w.Policy.Taker)
	case len(against) == 0 && w.freshID == "":
		w.do(Action{Do: Look})
	case len(against) == 0:
		w.begin(Order{ID: w.freshID, Who: "automatic", Why: w.leaseText(w.now)}, true)
	case len(against) == 1 && against[0].Rule == RuleMode:
		if !w.now.Before(w.TakeAt()) {
			w.tell(RuleMode, w.Policy.Mode == ModeObserve, "%s would take over from %s now, %s estimated loss; %s", w.Policy.Taker, w.Policy.Lost,
				lossText(w.loss(w.now)), against[0].Text)
		}
	default:
		rules := make([]string, len(against))
		for i, c := range against {
			rules[i] = c.Rule
		}
		w.tell(strings.Join(rules, ","), false, "%s; no takeover because of %s: %s", w.leaseText(w.now), strings.Join(rules, ", "), against[0].Text)
	}
}

// tell says something once as long as it stays the same.
func (w *watch) tell(key string, audit bool, format string, args ...any) {
	if w.told == key {
		return
	}
	w.told = key
	if audit {
		w.audit(format, args...)
		return
	}
	w.say(format, args...)
}

// begin starts a failover under an id that was never used.
func (w *watch) begin(o Order, automatic bool) {
	loss := w.loss(w.now)
	lossMS := int64(-1)
	if loss >= 0 {
		lossMS = loss.Milliseconds()
	}
	w.Record = Record{Format: Format, Kind: KindFailover, ID: o.ID, Driver: w.Policy.Driver, Who: o.Who, Why: o.Why, Phase: Prepare,
		Move: Move{From: w.Policy.Lost, To: w.Policy.Taker}, Sites: []topo.SiteID{w.Policy.Taker},
		Failover: &Failover{Automatic: automatic, Override: slices.Clone(o.Override), LossMS: lossMS, ExpiredUS: w.Expiry().Sub(w.Seen).Microseconds()}}
	if w.Lease.Revoked {
		w.Record.Failover.Incident = w.Lease.RevokedBy
	}
	w.timed, w.began, w.freshID = w.Lease.Revision, w.now, ""
	w.sent, w.found, w.stop, w.needLook, w.told = false, false, "", false, ""
	text := fmt.Sprintf("failover %s: %s takes over from %s: %s, %s estimated loss", o.ID, w.Policy.Taker, w.Policy.Lost, w.leaseText(w.now), lossText(loss))
	if len(o.Override) > 0 {
		text += "; set aside: " + strings.Join(o.Override, ", ")
	}
	if !automatic {
		text += " (by " + o.Who
		if o.Why != "" {
			text += ": " + o.Why
		}
		text += ")"
	}
	w.audit("%s", text)
	w.enter(Halting)
	w.do(Action{Do: Halt, Bound: haltBound})
}

// weigh looks whether the failover under way should go on; once it should not, it ends.
func (w *watch) weigh() {
	if w.stop != "" || w.found {
		return
	}
	if w.Lease.Revision != w.timed {
		w.stop = fmt.Sprintf("%s renewed its lease", w.Policy.Lost)
		return
	}
	f := w.Record.Failover
	if against := Unmet(w.Conditions(Ask{Manual: !f.Automatic, Override: f.Override}, w.now)); len(against) > 0 {
		w.stop = against[0].Rule + ": " + against[0].Text
	}
}

// ripe sends the takeover when its time has come.
func (w *watch) ripe() {
	if w.needLook || w.now.Before(w.TakeAt()) {
		return
	}
	w.enter(Taking)
	w.sent = true
	w.do(Action{Do: Take})
}

// end leaves a failover that is halted and not with the store.
func (w *watch) end() {
	if !w.sent && !w.found {
		w.audit("failover %s: not carried out: %s", w.Record.ID, w.stop)
		w.unhalt()
		return
	}
	w.enter(GivingUp)
	w.Record.Phase, w.Record.Outcome, w.Record.Reasons = Aborted, OutcomeRefused, []string{w.stop}
	w.Record.Steps = []Step{{Phase: Aborted, At: w.now.Round(0), Driver: w.Record.Driver}}
	w.do(Action{Do: GiveUp})
}

func (w *watch) unhalt() {
	w.enter(Unhalting)
	w.do(Action{Do: Unhalt})
}

func (w *watch) unsure() {
	w.enter(Unsure)
	w.do(Action{Do: Reread})
}

// landed makes the record that the takeover writes.
func (w *watch) landed(e TakeStands) {
	f := w.Record.Failover
	f.Taken, f.WaitedUS = e.Taken, w.now.Sub(w.Seen).Microseconds()
	w.Record.Phase, w.Record.Decided = Taken, e.Version
	w.Record.Steps = append(w.Record.Steps, Step{Phase: Taken, At: w.now.Round(0), Driver: w.Record.Driver, Facts: map[string]string{
		"lease":  fmt.Sprintf("revision %d, last renewal seen %s before", w.timed, brief(w.now.Sub(w.Seen))),
		"halted": brief(w.now.Sub(w.began)) + " before",
		"cut":    fmt.Sprint(f.Position),
	}})
	w.stands()
}

// stands: the store has the takeover.
func (w *watch) stands() {
	w.Last, w.resolve = w.Record.ID, w.now.Add(resolveAfter)
	w.enter(TakenOver)
	w.do(Action{Do: Drive})
	w.do(Action{Do: Look})
}

// resolves looks into a halt that stands in the database and that nobody here knows of: an earlier run of this site's
// agent died with it, or a request to halt was carried out long after it was given up.
func (w *watch) resolves(began time.Time) bool {
	id := w.Facts.Halted
	if id == "" || !w.Facts.OwnLease || began.Before(w.since) || id == w.Last && w.now.Before(w.resolve) {
		return false
	}
	if by := w.Facts.HaltedFor; by != "" && by != w.Policy.Taker {
		if w.foreign.id != id {
			w.foreign = foreign{id, w.now}
		}
		if w.now.Sub(w.foreign.since) < foreignPatience+2*w.Policy.W {
			return false
		}
	}
	w.Record = Record{Format: Format, Kind: KindFailover, ID: id, Driver: w.Policy.Driver, Who: w.Policy.Driver,
		Why: "found halted in the database", Phase: Prepare, Move: Move{From: w.Policy.Lost, To: w.Policy.Taker},
		Sites: []topo.SiteID{w.Policy.Taker}, Failover: &Failover{LossMS: -1}}
	w.found, w.sent, w.stop = true, false, "an earlier run of this site's agent ended before it took over"
	w.say("the database applies nothing of %s because of failover %s, which nobody carries on: looking what became of it", w.Policy.Lost, id)
	w.unsure()
	return true
}
