package handover

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/atollhq/atoll/topo"
)

const (
	testD = 3 * time.Second
	testW = time.Second
)

// plain is a small honest model of what a lookout acts on: a store with compare-and-set, the lost site's keeper with
// its renewals in flight, the taker's database with its halt and its cuts, and requests that are lost or late.
type plain struct {
	t   *rapid.T
	now time.Time

	rev       int64
	owners    topo.Ownership
	ownersRev int64
	records   map[topo.HandoverID]Record
	lease     LeaseSeen

	// The lost site. Its clock is slow by the whole rate error: its fence is open until the start of its last renewal that
	// landed plus 1.01 D, and what it checked before commits up to W later.
	alive     bool
	openUntil time.Time
	flight    []renewal

	halted   topo.HandoverID // in the taker's database
	position uint64
	cuts     map[topo.HandoverID]bool

	look *Lookout // of the taker's agent; nil: it is dead
	todo []Action
	late []lateAction // of dead agents, or given up waiting for
	ids  int

	landed   []topo.HandoverID
	unhalted map[topo.HandoverID]bool // by now: takeovers of these must not land any more
}

type renewal struct {
	start  time.Time
	expect int64
}

type lateAction struct {
	look      Lookout
	a         Action
	ownersRev int64
	next      topo.Ownership
	taken     []topo.Taken
	err       error
}

func newPlain(t *rapid.T) *plain {
	p := &plain{t: t, now: noon, rev: 10, records: map[topo.HandoverID]Record{}, cuts: map[topo.HandoverID]bool{}, unhalted: map[topo.HandoverID]bool{},
		alive: true, position: 100}
	p.owners = topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 32, Hash: topo.HashMD5, Ranges: []topo.Range{
		{First: 0, Last: 23, Owner: "a", Epoch: 7, State: topo.Open}, {First: 24, Last: 31, Owner: "b", Epoch: 1, State: topo.Open}}}})
	p.lease = LeaseSeen{Exists: true, Revision: 10, Duration: testD}
	p.openUntil = p.now.Add(testD + testD/rateError)
	p.start()
	return p
}

func (p *plain) start() {
	l := NewLookout(testPolicy(ModeAutomatic), p.now)
	p.look, p.todo = &l, nil
}

func (p *plain) next() int64 { p.rev++; return p.rev }

// renew is a renewal that lands, if it may. Its start is when it was sent.
func (p *plain) renew(r renewal) {
	if p.lease.Revision != r.expect || p.lease.Revoked {
		return
	}
	p.lease.Revision = p.next()
	if until := r.start.Add(testD + testD/rateError); until.After(p.openUntil) {
		p.openUntil = until
	}
}

// comeBack is a new keeper of the lost site that takes the record, revoked or not.
func (p *plain) comeBack() {
	p.alive = true
	p.lease = LeaseSeen{Exists: true, Revision: p.next(), Duration: testD}
	p.openUntil = p.now.Add(testD + testD/rateError)
}

func (p *plain) sight() Sight {
	p.ids++
	owns, moving := 0, 0
	for _, r := range p.owners.Keyspaces["users"].Ranges {
		if n := int(r.Last-r.First) + 1; r.Owner == "a" && r.State == topo.Open {
			owns += n
		} else if r.Owner == "a" {
			moving += n
		}
	}
	return Sight{At: p.now, ID: topo.HandoverID(fmt.Sprintf("h%d", p.ids)), Lease: p.lease, Facts: Facts{Began: p.now, Owns: owns, Moving: moving,
		OwnLease: true, Known: true, Halted: p.halted, History: true, Loss: time.Second, Unsettled: p.owners.Unsettled("b")}}
}

// sent is what goes out with an action: a transaction is made of what was read before.
func (p *plain) sent(a Action) lateAction {
	s := lateAction{look: *p.look, a: a, ownersRev: p.ownersRev}
	if a.Do == Take {
		s.next, s.taken, s.err = p.owners.TakeOver("a", "b", p.look.Record.ID, p.look.Record.Failover.Position)
	}
	return s
}

// do is the effect of an action and its honest answer.
func (p *plain) do(s lateAction) Event {
	id := s.look.Record.ID
	switch s.a.Do {
	case Halt:
		if p.halted != "" && p.halted != id {
			return Failed{Do: Halt, Text: "halted by " + string(p.halted)}
		}
		p.halted = id
		return Halted{Position: p.position}
	case Unhalt:
		if p.halted == id {
			p.halted = ""
		}
		p.unhalted[id] = true
		return Unhalted{}
	case Reread:
		r, ok := p.records[id]
		return Observed{ok, r}
	case GiveUp:
		if _, ok := p.records[id]; ok {
			return Conflict{GiveUp}
		}
		p.put(s.look.Record)
		return GivenUp{}
	case Take:
		return p.take(s)
	}
	panic("unknown action " + s.a.Do)
}

func (p *plain) take(s lateAction) Event {
	id := s.look.Record.ID
	if s.err != nil {
		return Refused{[]Problem{{Check: "ownership", Text: s.err.Error()}}}
	}
	if _, exists := p.records[id]; exists || s.ownersRev != p.ownersRev || p.lease.Revision != s.look.timed {
		return Conflict{Take}
	}
	stands := TakeStands{s.next.Version, s.taken}
	after, _ := Observe(s.look, stands, p.now)
	wasRevoked := p.lease.Revoked
	p.owners, p.ownersRev = s.next, p.next()
	p.lease.Revision, p.lease.Revoked, p.lease.RevokedBy = p.ownersRev, true, id
	p.put(after.Record)
	p.landed = append(p.landed, id)
	switch {
	case !wasRevoked && p.now.Before(p.openUntil.Add(testW)):
		p.t.Fatalf("%s landed %s before the last write of the lost site", id, p.openUntil.Add(testW).Sub(p.now))
	case p.halted != id:
		p.t.Fatalf("%s landed while the database is halted by %q", id, p.halted)
	case p.position != after.Record.Failover.Position:
		p.t.Fatalf("%s has its cut at %d, and the database stands at %d", id, after.Record.Failover.Position, p.position)
	case p.unhalted[id]:
		p.t.Fatalf("%s landed after it was given up", id)
	}
	return stands
}

func (p *plain) put(r Record) {
	decoded, err := DecodeRecord(r.Encode())
	if err != nil {
		p.t.Fatalf("record that is not readable: %v", err)
	}
	p.next()
	p.records[r.ID] = decoded
}

// keeper of the taker: records the cuts of what it owns, which ends the halt, and opens; then the record is driven.
func (p *plain) keeper() {
	for _, c := range p.owners.Cuts() {
		id := c.Cut.Handover
		if c.Range.Owner != "b" || p.cuts[id] {
			continue
		}
		if p.halted != id {
			p.t.Fatalf("cuts of %s are recorded while the database is halted by %q", id, p.halted)
		}
		p.cuts[id], p.halted = true, ""
		r := p.records[id]
		r.Phase, r.Outcome = Done, OutcomeDone
		r.Steps = append(slices.Clone(r.Steps), Step{Phase: Done})
		p.put(r)
	}
}

func (p *plain) feed(ev Event) {
	l, todo := Observe(*p.look, ev, p.now)
	p.look = &l
	for _, a := range todo {
		switch a.Do {
		case Say, Audit, Look, Drive:
		default:
			p.todo = append(p.todo, a)
		}
	}
	if len(p.todo) > 1 {
		p.t.Fatalf("two actions at once: %v", p.todo)
	}
}

func (p *plain) kill() {
	for _, a := range p.todo {
		p.late = append(p.late, p.sent(a))
	}
	p.look, p.todo = nil, nil
}

func (p *plain) act(fate int) {
	if p.look == nil || len(p.todo) == 0 {
		return
	}
	a := p.todo[0]
	p.todo = nil
	s := p.sent(a)
	switch {
	case fate <= 5:
		p.feed(p.do(s))
	case fate == 6: // done, and nobody hears it
		p.do(s)
		p.feed(Failed{Do: a.Do, Text: "no answer"})
	case fate == 7: // may be done later
		p.late = append(p.late, s)
		p.feed(Failed{Do: a.Do, Text: "no answer"})
	default:
		p.feed(Failed{Do: a.Do, Text: "no answer"})
	}
}

func (p *plain) step() {
	p.now = p.now.Add(time.Duration(rapid.IntRange(0, 400).Draw(p.t, "ms")) * time.Millisecond)
	switch rapid.IntRange(0, 24).Draw(p.t, "what") {
	case 0:
		if p.look == nil {
			p.start()
		} else if rapid.Bool().Draw(p.t, "crash") {
			p.kill()
		}
	case 1, 2, 3, 4: // a renewal is sent; it lands at once, later, or never
		if p.alive {
			r := renewal{p.now, p.lease.Revision}
			if rapid.Bool().Draw(p.t, "slow") {
				p.flight = append(p.flight, r)
			} else {
				p.renew(r)
			}
		}
	case 5:
		if len(p.flight) > 0 {
			p.renew(p.flight[0])
			p.flight = p.flight[1:]
		}
	case 6:
		p.alive = false
	case 7:
		if !p.alive && rapid.IntRange(0, 3).Draw(p.t, "back") == 0 {
			p.comeBack()
		}
	case 8: // a late request is done
		if len(p.late) > 0 {
			i := rapid.IntRange(0, len(p.late)-1).Draw(p.t, "late")
			s := p.late[i]
			p.late = slices.Delete(p.late, i, i+1)
			p.do(s)
		}
	case 9: // buckets of the lost site move, or stop moving
		if next, err := p.owners.StartMove("users", topo.Spans{{First: 20, Last: 23}}, "s1", "b"); err == nil {
			p.owners, p.ownersRev = next, p.next()
		} else if next, err := p.owners.AbortMove("users", topo.Spans{{First: 20, Last: 23}}, "s1"); err == nil {
			p.owners, p.ownersRev = next, p.next()
		}
	case 10:
		if p.look != nil {
			p.keeper()
		}
	case 11: // changes come in
		if p.halted == "" {
			p.position += uint64(rapid.IntRange(1, 9).Draw(p.t, "changes"))
		}
	case 12:
		p.now = p.now.Add(time.Duration(rapid.IntRange(0, 4000).Draw(p.t, "long")) * time.Millisecond)
	case 13:
		if p.look != nil {
			p.feed(Unseen{"no answer"})
		}
	case 14, 15, 16, 17:
		if p.look != nil {
			p.feed(p.sight())
		}
	default:
		if p.look == nil {
			return
		}
		if wake := p.look.Wake(); !wake.IsZero() && !wake.After(p.now) {
			p.feed(Tick{})
		}
		p.act(rapid.IntRange(0, 9).Draw(p.t, "fate"))
	}
}

// calm lets everything answer. Late requests are done first: nothing comes after that.
func (p *plain) calm() {
	for _, s := range p.late {
		p.do(s)
	}
	if p.look == nil {
		p.start()
	}
	if next, err := p.owners.AbortMove("users", topo.Spans{{First: 20, Last: 23}}, "s1"); err == nil {
		p.owners, p.ownersRev = next, p.next()
	}
	for range 600 {
		p.now = p.now.Add(100 * time.Millisecond)
		if p.alive {
			p.renew(renewal{p.now, p.lease.Revision})
		}
		p.feed(p.sight())
		if wake := p.look.Wake(); !wake.IsZero() && !wake.After(p.now) {
			p.feed(Tick{})
		}
		for len(p.todo) > 0 {
			p.act(0)
		}
		p.keeper()
	}
}

// TestFailoverCrashAnywhere: whatever is lost, late or dies, no takeover lands while the lost site may still commit, its
// cut is where the taker's database stands, one that was given up never lands, and in the end nothing is left halted
// and a dead site owns nothing (I1, I4).
func TestFailoverCrashAnywhere(t *testing.T) {
	t.Parallel()
	ends := map[string]int{}
	run := func(t *rapid.T) {
		p := newPlain(t)
		for range rapid.IntRange(0, 200).Draw(t, "steps") {
			p.step()
			if err := p.owners.Validate(); err != nil {
				t.Fatal(err)
			}
		}
		p.calm()
		if p.halted != "" {
			t.Fatalf("left halted by %s; stage %s", p.halted, p.look.Stage)
		}
		if owns := p.sight().Facts.Owns; !p.alive && owns > 0 {
			t.Fatalf("the dead site still owns %d buckets; stage %s: %s", owns, p.look.Stage, p.look.Verdict(p.now))
		}
		for id, r := range p.records {
			if !r.Over() {
				t.Fatalf("%s ended in %s", id, r.Phase)
			}
			if r.Outcome == OutcomeRefused {
				ends["given up"]++
			}
		}
		slices.Sort(p.landed)
		if n := len(p.landed); n != len(slices.Compact(p.landed)) {
			t.Fatalf("one landed twice: %v", p.landed)
		}
		r, _ := p.owners.At("users", 0)
		if want := topo.Epoch(7); r.Owner == "a" && r.Epoch != want || r.Owner == "b" && r.Epoch != want+1 {
			t.Fatalf("bucket 0: %+v", r)
		}
		ends[fmt.Sprintf("%d taken", len(p.landed))]++
	}
	for range 10 { // the rare ends are the interesting ones
		rapid.Check(t, run)
	}
	t.Logf("ends: %v", ends)
	for _, kind := range []string{"given up", "0 taken", "1 taken", "2 taken"} {
		if ends[kind] == 0 {
			t.Errorf("ends %v: a whole kind of run is missing", ends)
		}
	}
}
