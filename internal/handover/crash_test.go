package handover

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// world is a small honest model of what controllers act on: a store with compare-and-set, two fences whose steps are
// monotonic in the epoch, a change stream from a to b, and messages that are lost, late or done without an answer.
type world struct {
	t   *rapid.T
	now time.Time

	owners  topo.Ownership // in the store
	stored  Record         // in the store; Phase "" is none
	storeAt int            // revision of stored

	fence  map[topo.SiteID]*fence
	stream []change.Marker // a's markers on the way to b
	at     []change.Marker // a's markers at b

	ctl  []*controller
	lost []lostAction // requests of dead controllers that may still be done
}

type fence struct {
	epoch topo.Epoch
	open  bool
}

type controller struct {
	name  string
	state State
	rev   int // of the record, as this controller knows it
	todo  []Action
}

type lostAction struct {
	of *controller
	a  Action
}

func newWorld(t *rapid.T) *world {
	w := &world{t: t, now: noon, fence: map[topo.SiteID]*fence{"a": {7, true}, "b": {}}}
	w.owners = topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 32, Hash: topo.HashMD5, Ranges: []topo.Range{
		{First: 0, Last: 24, Owner: "a", Epoch: 7, State: topo.Open}, {First: 25, Last: 31, Owner: "a", Epoch: 1, State: topo.Open}}}})
	c := &controller{name: "a/1"}
	c.state, c.todo = Start(testRecord(c.name), false, w.now)
	w.ctl = []*controller{c}
	return w
}

// do is the effect of an action on the world and its honest answer. alive is false for a request that is done after
// its controller died; nobody hears the answer.
func (w *world) do(c *controller, a Action) Event {
	mv := c.state.Record.Move
	switch a.Do {
	case Check:
		m, problems := Plan(w.owners, mv)
		if len(problems) > 0 {
			return Refused{problems}
		}
		return Ready{Move: m}
	case Claim:
		next, err := w.owners.StartMove(mv.Keyspace, mv.Buckets, c.state.Record.ID, mv.To)
		return w.decide(c, a, next, err, Claimed{next.Version})
	case Commit:
		next, err := w.owners.CommitMove(mv.Keyspace, mv.Buckets, c.state.Record.ID)
		return w.decide(c, a, next, err, CommitStands{next.Version})
	case Abort:
		next, err := w.owners.AbortMove(mv.Keyspace, mv.Buckets, c.state.Record.ID)
		return w.decide(c, a, next, err, AbortStands{next.Version})
	case Reread:
		if w.stored.Phase != "" && w.stored.Driver != c.name {
			return nil // another controller has it: the driver stops
		}
		c.rev = w.storeAt
		return Observed{w.stored.Phase != "", w.stored}
	case Save:
		if c.rev != w.storeAt {
			if w.stored.Driver != c.name || c.state.Record.Outcome == OutcomeRefused {
				return nil // another controller has it, or a claim that was given up has landed
			}
			if c.state.Record.Follows(w.stored) {
				c.rev = w.storeAt // an earlier save whose answer was lost
			}
			return Failed{Do: Save, Text: "conflict"}
		}
		w.put(c, c.state.Record)
		return Saved{c.state.Record.Outcome}
	case Settle:
		return Settled{Site: a.Site}
	case AwaitRelease:
		return Released{Site: a.Site}
	case Close:
		return w.close(c)
	case AwaitMarker:
		for _, mk := range w.at {
			if mk.Handover == c.state.Record.ID {
				return MarkerArrived{mk}
			}
		}
		return Failed{a.Do, a.Site, "not there yet"}
	case Open, Reopen:
		w.observe(a.Site)
		return Reached{a.Site, w.owners.Version}
	}
	panic("unknown action " + a.Do)
}

func (w *world) close(c *controller) Event {
	f, epoch := w.fence["a"], c.state.Record.Move.Epochs[0].Epoch
	if f.epoch != epoch {
		return Failed{Close, "a", "stale: fence is at another epoch"}
	}
	mk := testMarker()
	written := slices.ContainsFunc(w.stream, func(m change.Marker) bool { return m.Handover == mk.Handover }) ||
		slices.ContainsFunc(w.at, func(m change.Marker) bool { return m.Handover == mk.Handover })
	if !written && rapid.IntRange(0, 9).Draw(w.t, "writers") == 0 {
		return WritersRemain{"pid 1"}
	}
	f.open = false
	if !written {
		w.stream = append(w.stream, mk)
	}
	return Closed{mk}
}

// observe is what a keeper does with the document: it opens what is open and its own, and never goes back.
func (w *world) observe(site topo.SiteID) {
	r, _ := w.owners.At("users", 0)
	f := w.fence[site]
	if r.Owner == site && r.State == topo.Open && r.Epoch > f.epoch {
		f.epoch, f.open = r.Epoch, true
		if site == "b" && len(w.at) == 0 {
			w.t.Fatalf("b opened without a's marker")
		}
	}
}

// decide is one store transaction: compares record and ownership, writes both.
func (w *world) decide(c *controller, a Action, next topo.Ownership, err error, ok Event) Event {
	if err != nil || c.rev != w.storeAt {
		return Conflict{a.Do}
	}
	after, _ := Next(c.state, ok, w.now)
	w.owners = next
	w.put(c, after.Record)
	return ok
}

func (w *world) put(c *controller, r Record) {
	decoded, err := DecodeRecord(r.Encode())
	if err != nil {
		w.t.Fatalf("record that is not readable: %v", err)
	}
	w.stored = decoded
	w.storeAt++
	c.rev = w.storeAt
}

// feed gives a controller an event and queues what it wants done. nil deposes it.
func (w *world) feed(c *controller, ev Event) {
	if ev == nil {
		w.kill(c)
		return
	}
	var todo []Action
	c.state, todo = Next(c.state, ev, w.now)
	c.todo = append(c.todo, todo...)
	if c.state.Over() {
		w.kill(c)
	}
}

func (w *world) kill(c *controller) {
	for _, a := range c.todo {
		sent := *c // a late request carries what its controller knew
		w.lost = append(w.lost, lostAction{&sent, a})
	}
	c.todo = nil
	w.ctl = slices.DeleteFunc(w.ctl, func(o *controller) bool { return o == c })
}

// takeOver is another controller's compare-and-set of the record, and its resumption.
func (w *world) takeOver() {
	if w.stored.Phase == "" || w.stored.Over() {
		return
	}
	c := &controller{name: fmt.Sprintf("b/%d", w.storeAt), rev: w.storeAt}
	r := w.stored
	r.Driver = c.name
	w.put(c, r)
	c.state, c.todo = Resume(w.stored, c.name, w.now)
	w.ctl = append(w.ctl, c)
}

// answer is what becomes of one action: done and answered, done without an answer, or not done.
func (w *world) answer(c *controller, a Action, fate int) {
	failed := Failed{a.Do, a.Site, "no answer"}
	switch {
	case fate <= 6:
		w.feed(c, w.do(c, a))
	case fate == 7 && (a.Do == Claim || a.Do == Commit || a.Do == Abort || a.Do == Close || a.Do == Open || a.Do == Save):
		rev := c.rev
		w.do(c, a)
		c.rev = rev
		w.feed(c, failed)
	default:
		w.feed(c, failed)
	}
}

func (w *world) checkAlways() {
	a, b := w.fence["a"], w.fence["b"]
	if a.open && b.open {
		w.t.Fatalf("two owners: a open at epoch %d, b at %d", a.epoch, b.epoch)
	}
	if err := w.owners.Validate(); err != nil {
		w.t.Fatal(err)
	}
	if r, _ := w.owners.At("users", 0); r.Epoch > 8 {
		w.t.Fatalf("epoch was raised twice: %d", r.Epoch)
	}
}

// TestCrashAnywhere: whatever is lost, late or dies, the handover ends in DONE or ABORTED once things answer again,
// the epoch was raised exactly once, and at no time were both fences open (I1, I3, I6).
func TestCrashAnywhere(t *testing.T) {
	t.Parallel()
	ends := map[Phase]int{}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t)
		for range rapid.IntRange(0, 60).Draw(t, "steps") {
			w.step()
			w.checkAlways()
		}
		w.calm()
		switch w.stored.Phase {
		case "": // died before anything was claimed
			if r, _ := w.owners.At("users", 0); r.State != topo.Open || r.Epoch != 7 {
				t.Fatalf("no record, but %+v", r)
			}
		case Done, Aborted:
			w.checkEnd()
		default:
			t.Fatalf("ended in %s", w.stored.Phase)
		}
		ends[w.stored.Phase]++
	})
	t.Logf("ends: %v", ends)
	if ends[Done] == 0 || ends[Aborted] == 0 || ends[""] == 0 {
		t.Errorf("ends %v: a whole kind of run is missing", ends)
	}
}

func (w *world) step() {
	w.now = w.now.Add(time.Duration(rapid.IntRange(0, 400).Draw(w.t, "ms")) * time.Millisecond)
	switch rapid.IntRange(0, 19).Draw(w.t, "what") {
	case 0: // a controller dies; what it sent may still arrive
		if len(w.ctl) > 0 {
			w.kill(w.ctl[rapid.IntRange(0, len(w.ctl)-1).Draw(w.t, "who")])
		}
	case 1: // another takes over, whether or not the old one is dead
		w.takeOver()
	case 2: // a late request is done
		if len(w.lost) > 0 {
			i := rapid.IntRange(0, len(w.lost)-1).Draw(w.t, "late")
			l := w.lost[i]
			w.lost = slices.Delete(w.lost, i, i+1)
			w.do(l.of, l.a)
		}
	case 3, 4, 5:
		w.at, w.stream = append(w.at, w.stream...), nil
	case 6: // an unrelated handover changes the document
		if next, err := w.owners.StartMove("users", topo.Spans{{First: 30, Last: 30}}, "other", "b"); err == nil {
			w.owners = next
		}
	case 7: // keepers see the document by themselves
		w.observe("a")
		w.observe("b")
	case 8:
		w.now = w.now.Add(time.Duration(rapid.IntRange(0, 12).Draw(w.t, "s")) * time.Second)
	default:
		if len(w.ctl) == 0 {
			return
		}
		c := w.ctl[rapid.IntRange(0, len(w.ctl)-1).Draw(w.t, "who")]
		if wake := c.state.Wake(); !wake.IsZero() && !wake.After(w.now) {
			w.feed(c, Tick{})
			return
		}
		if len(c.todo) > 0 {
			i := rapid.IntRange(0, len(c.todo)-1).Draw(w.t, "action")
			a := c.todo[i]
			c.todo = slices.Delete(c.todo, i, i+1)
			w.answer(c, a, rapid.IntRange(0, 9).Draw(w.t, "fate"))
		}
	}
}

// calm lets everything answer, with one controller, until the handover is over.
func (w *world) calm() {
	for range 1000 {
		w.at, w.stream = append(w.at, w.stream...), nil
		w.now = w.now.Add(50 * time.Millisecond)
		w.checkAlways()
		if w.stored.Over() || w.stored.Phase == "" && len(w.ctl) == 0 {
			return
		}
		if len(w.ctl) == 0 {
			w.takeOver()
		}
		for _, c := range slices.Clone(w.ctl) {
			w.feed(c, Tick{})
			for len(c.todo) > 0 {
				a := c.todo[0]
				c.todo = c.todo[1:]
				w.answer(c, a, 0)
			}
		}
	}
	w.t.Fatalf("not over after 50 s of calm: stored %s, controllers %d", w.stored.Phase, len(w.ctl))
}

func (w *world) checkEnd() {
	r, _ := w.owners.At("users", 0)
	want := topo.Range{First: 0, Last: 24, Owner: "a", Epoch: 8, State: topo.Open}
	switch {
	case w.stored.Outcome == OutcomeRefused:
		want.Epoch = 7
	case w.stored.Phase == Done:
		want.Owner = "b"
	}
	if r.Owner != want.Owner || r.Epoch != want.Epoch || r.State != want.State {
		w.t.Fatalf("record ended in %s (%s), but the store says %+v", w.stored.Phase, w.stored.Outcome, r)
	}
	w.observe("a")
	w.observe("b")
	w.checkAlways()
	for site, f := range w.fence {
		if f.open != (site == r.Owner) {
			w.t.Fatalf("%s is the owner, but the fence at %s is open=%v", r.Owner, site, f.open)
		}
	}
}
