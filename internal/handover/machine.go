// Package handover is the switch of buckets from one site to another, and the failover from a lost site, as pure state
// machines.
//
// The main function is [Next]: (State, Event, now) → (State, Actions). It knows no clock, disk or network; a
// controller does the actions and feeds the results back. [Resume] makes the state of another controller that takes
// a stored [Record] over. A [Lookout] watches one other site and decides on a failover; a failover that stands in the
// store is a record like any other.
//
// It guarantees that a handover ends in DONE or ABORTED as soon as the store and the sites that it needs answer again,
// whichever controller dies at whichever point; that it commits only after the new owner has the old owner's marker
// (I3); and that it raises epochs exactly once (I1), because commit and abort compare the same claim in the store.
//
// It refuses moves that overlap another, and it holds no opinion on time between sites: bounds are measured on the
// clock of the controller that waits.
package handover

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

// Waits that no operator needs to set.
const (
	prepareBound = 10 * time.Second       // PREPARE: to know whether all is ready
	releaseBound = 2 * time.Second        // OPEN: for gateways to have the view of the commit
	openBound    = 5 * time.Second        // COMMITTED: for one try to open at To; then it is asked again
	reopenBound  = 10 * time.Second       // ABORTED: for From to open again
	answerSlack  = 500 * time.Millisecond // above a bound that a site keeps: the way there and back
	retryEvery   = 100 * time.Millisecond // an action that failed
	saveFirst    = 400 * time.Millisecond // after a step: a fast switch saves with its commit
	saveEvery    = time.Second            // proves to other controllers that the driver lives
)

// State is a handover in the hands of one controller. The zero value is not usable: see [Start] and [Resume].
type State struct {
	Record Record
	DryRun bool

	giveUp   time.Time     // PREPARE: failures behind this moment end the try
	deadline time.Time     // of the current wait on this controller's clock; zero: none
	pending  []timed       // actions to do at a later moment of this phase
	waiting  []topo.SiteID // sites that have not settled (MOVING) or released (OPEN)
	closing  bool          // MOVING: gateways have settled or their bound passed, close is under way
	aborting bool          // MOVING, FENCED: the abort is with the store; nothing else counts any more
	claimed  time.Time     // this controller's clock when the claim went out, or a failover was taken; zero: by another one
	fenced   time.Time     // this controller's clock at the close; zero: another one closed
	saved    bool          // the record with its outcome is in the store
}

type timed struct {
	at time.Time
	do Action
}

// Start begins a switch. The record needs ID, Move, Sites, Bounds, Who, Why and Driver.
func Start(r Record, dryRun bool, now time.Time) (State, []Action) {
	r.Format, r.Kind = Format, Switch
	m := machine{State: State{Record: r, DryRun: dryRun}, now: now}
	m.enter(Prepare, nil)
	m.giveUp = now.Add(prepareBound)
	m.do(Action{Do: Check})
	return m.State, m.out
}

// Resume goes on with a record that is in the store under driver's name.
func Resume(r Record, driver string, now time.Time) (State, []Action) {
	r.Driver = driver
	m := machine{State: State{Record: r}, now: now}
	m.later(Action{Do: Save}, saveEvery)
	switch {
	case r.Over():
		m.saved, m.pending = true, nil
	case r.Phase == Moving: // gateways have held for longer than the drain bound: the fence refuses stragglers
		m.close()
	case r.Phase == Fenced:
		m.deadline = now.Add(r.Bounds.Catch())
		m.do(m.awaitMarker())
	case r.Phase == CaughtUp:
		m.do(Action{Do: Commit})
	case r.Phase == Committed:
		m.do(Action{Do: Open, Site: r.Move.To, Version: r.Decided, Bound: openBound})
	case r.Phase == Taken:
		m.do(Action{Do: Open, Site: r.Move.To, Version: r.Decided, Bound: openBound})
	case r.Phase == Opened:
		m.awaitReleases()
	case r.Phase == Aborted:
		m.deadline = now.Add(reopenBound + answerSlack)
		m.do(Action{Do: Reopen, Site: r.Move.From, Version: r.Decided, Bound: reopenBound})
	default:
		panic(fmt.Sprintf("BUG: resume of a record in phase %q, which is never stored", r.Phase))
	}
	return m.State, m.out
}

// Finish goes on with a failover that this controller has just taken.
func Finish(r Record, now time.Time) (State, []Action) {
	s, todo := Resume(r, r.Driver, now)
	s.claimed = now
	return s, todo
}

// Over tells whether the controller may forget the handover: its outcome is known and, unless it was a dry run, saved.
func (s State) Over() bool { return s.Record.Over() && (s.saved || s.DryRun) }

// Wake is when the next Tick is due; zero: none.
func (s State) Wake() time.Time {
	at := s.deadline
	for _, p := range s.pending {
		if at.IsZero() || p.at.Before(at) {
			at = p.at
		}
	}
	return at
}

// Next is the machine. It panics on an event that no action of this phase or an earlier one can have yielded.
func Next(s State, ev Event, now time.Time) (State, []Action) {
	m := machine{State: s.clone(), now: now}
	m.on(ev)
	if _, ok := ev.(Tick); ok { // behind the table: a phase that ends here takes its retries along
		m.due()
	}
	return m.State, m.out
}

func (m *machine) on(ev Event) {
	switch {
	case m.aborting:
		m.onAborting(ev)
	case m.Record.Phase == Prepare:
		m.onPrepare(ev)
	case m.Record.Phase == Moving:
		m.onMoving(ev)
	case m.Record.Phase == Fenced:
		m.onFenced(ev)
	case m.Record.Phase == CaughtUp:
		m.onCaughtUp(ev)
	case m.Record.Phase == Committed:
		m.onCommitted(ev)
	case m.Record.Phase == Taken:
		m.onTaken(ev)
	case m.Record.Phase == Opened:
		m.onOpened(ev)
	case m.Record.Phase == Done, m.Record.Phase == Aborted:
		m.onEnd(ev)
	default:
		panic(fmt.Sprintf("BUG: handover %s in unknown phase %q", m.Record.ID, m.Record.Phase))
	}
}

func (s State) clone() State {
	s.pending, s.waiting = slices.Clone(s.pending), slices.Clone(s.waiting)
	s.Record.Reasons = slices.Clone(s.Record.Reasons)
	s.Record.Steps = slices.Clone(s.Record.Steps)
	if n := len(s.Record.Steps); n > 0 { // facts are only ever added to the last step
		s.Record.Steps[n-1].Facts = maps.Clone(s.Record.Steps[n-1].Facts)
	}
	return s
}

// machine is a State being changed, and the actions that the change asks for.
type machine struct {
	State
	now time.Time
	out []Action
}

func (m *machine) do(a ...Action) { m.out = append(m.out, a...) }

func (m *machine) later(a Action, wait time.Duration) {
	m.pending = append(m.pending, timed{m.now.Add(wait), a})
}

// keepSave forgets what was put off, but for the save.
func (m *machine) keepSave() {
	m.pending = slices.DeleteFunc(m.pending, func(p timed) bool { return p.do.Do != Save })
}

// due does what was put off until now.
func (m *machine) due() {
	pending := m.pending
	m.pending = nil
	for _, p := range pending {
		if p.at.After(m.now) {
			m.pending = append(m.pending, p)
			continue
		}
		m.do(p.do)
		if p.do.Do == Save && !m.Record.Over() {
			m.later(p.do, saveEvery)
		}
	}
}

func (m *machine) passed() bool { return !m.deadline.IsZero() && !m.now.Before(m.deadline) }

func (m *machine) tried() bool { return !m.now.Before(m.giveUp) }

// enter begins a phase: whatever was put off in the one before is forgotten.
func (m *machine) enter(p Phase, facts map[string]string) {
	m.Record.Phase = p
	m.Record.Steps = append(m.Record.Steps, Step{Phase: p, At: m.now.Round(0), Driver: m.Record.Driver, Facts: facts})
	m.deadline, m.pending, m.waiting, m.closing, m.aborting = time.Time{}, nil, nil, false, false
	if p != Prepare {
		m.later(Action{Do: Save}, saveFirst)
	}
}

// note adds a fact to the current step.
func (m *machine) note(key, value string) {
	if value == "" {
		return
	}
	step := &m.Record.Steps[len(m.Record.Steps)-1]
	if step.Facts == nil {
		step.Facts = map[string]string{}
	}
	step.Facts[key] = value
}

func (m *machine) arrived(site topo.SiteID) (all bool) {
	m.waiting = slices.DeleteFunc(m.waiting, func(s topo.SiteID) bool { return s == site })
	return len(m.waiting) == 0
}

func (m *machine) awaitMarker() Action {
	return Action{Do: AwaitMarker, Site: m.Record.Move.To, Bound: m.Record.Bounds.Catch()}
}

// close leaves the wait for gateways. The wait for the marker starts at once: it costs nothing, saves a round trip,
// and proves the close even where the answer of From is lost.
func (m *machine) close() {
	fence := m.Record.Bounds.Fence()
	m.closing, m.waiting = true, nil
	if step, ok := m.Record.Entered(Moving); ok && !m.claimed.IsZero() {
		m.note(FactClosing, m.now.Sub(step.At).Round(time.Microsecond).String())
	}
	m.keepSave()
	m.deadline = m.now.Add(fence + answerSlack)
	m.do(Action{Do: Close, Site: m.Record.Move.From, Bound: fence}, m.awaitMarker())
}

func (m *machine) caughtUp() {
	m.enter(CaughtUp, nil)
	m.do(Action{Do: Commit})
}

func (m *machine) awaitReleases() {
	m.deadline = m.now.Add(releaseBound + answerSlack)
	m.waiting = slices.Clone(m.Record.Sites)
	for _, site := range m.Record.Sites {
		m.do(Action{Do: AwaitRelease, Site: site, Version: m.Record.Decided, Bound: releaseBound})
	}
}

// abort asks the store to leave the buckets where they are, one epoch higher. Whether it or a commit of another
// controller wins, the store decides.
func (m *machine) abort(reason string) {
	m.aborting, m.deadline, m.closing, m.waiting = true, time.Time{}, false, nil
	m.keepSave()
	m.Record.Reasons = append(m.Record.Reasons, reason)
	m.do(Action{Do: Abort})
}

func (m *machine) refuse(reasons ...string) {
	m.enter(Aborted, nil)
	m.pending = nil
	m.Record.Outcome, m.Record.Reasons = OutcomeRefused, reasons
	if !m.DryRun {
		m.do(Action{Do: Save})
	}
}

// decided goes on from a commit or an abort that the store is known to have.
func (m *machine) decided(p Phase, version uint64) {
	m.Record.Decided = version
	m.enter(p, nil)
	if p == Committed {
		m.Record.Reasons = nil // an abort that was wanted and came too late
		m.do(Action{Do: Open, Site: m.Record.Move.To, Version: version, Bound: openBound})
		return
	}
	m.deadline = m.now.Add(reopenBound + answerSlack)
	m.do(Action{Do: Reopen, Site: m.Record.Move.From, Version: version, Bound: reopenBound})
}

// observed acts on what the store says after a refusal or a silence; undecided is what to do where it has neither a
// commit nor an abort.
func (m *machine) observed(r Record, undecided Action) {
	switch r.Phase {
	case Committed, Opened, Done:
		m.decided(Committed, r.Decided)
	case Aborted:
		m.decided(Aborted, r.Decided)
	default:
		m.do(undecided)
	}
}

// finish sets the outcome; the record is the report.
func (m *machine) finish(p Phase, o Outcome) {
	if m.Record.Phase != p {
		m.enter(p, nil)
	}
	m.deadline, m.pending = time.Time{}, nil
	m.Record.Outcome = o
	m.do(Action{Do: Save})
}

// pause measures from the claim and from the close to now.
func (m *machine) pause() *Pause {
	p := &Pause{}
	since := func(own time.Time, phase Phase) int64 {
		if !own.IsZero() {
			return m.now.Sub(own).Microseconds()
		}
		p.Approximate = true
		step, _ := m.Record.Entered(phase)
		return max(0, m.now.Sub(step.At).Microseconds())
	}
	p.HoldUS, p.ClosedUS = since(m.claimed, Moving), since(m.fenced, Fenced)
	return p
}

// opened adds the time of the open fence to what a failover reports. Across a change of drivers it is the difference
// of two wall clocks.
func (m *machine) opened() *Failover {
	f := *m.Record.Failover
	taken := m.claimed
	if taken.IsZero() {
		step, _ := m.Record.Entered(Taken)
		taken = step.At
	}
	f.OpenUS = f.WaitedUS + max(0, m.now.Sub(taken).Microseconds())
	return &f
}

// wrongMarker says what is wrong with a marker, "" if nothing.
func (m *machine) wrongMarker(mk change.Marker) string {
	mv := m.Record.Move
	if mk.Kind != change.MarkerClosed || mk.Site != mv.From || mk.Handover != m.Record.ID || mk.Keyspace != mv.Keyspace {
		return fmt.Sprintf("marker %s of site %s for handover %s, keyspace %s is not this handover's", mk.Kind, mk.Site, mk.Handover, mk.Keyspace)
	}
	if !slices.Equal(mk.Buckets, mv.Epochs) {
		return fmt.Sprintf("marker names buckets and epochs %v, claimed were %v", mk.Buckets, mv.Epochs)
	}
	return ""
}

// skipMarker tells whether this build has the planted bug that commits without the marker.
func skipMarker() bool { return plant.MarkerSkipped }
