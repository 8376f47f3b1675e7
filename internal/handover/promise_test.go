package handover

import (
	"strings"
	"testing"
	"time"
)

// A promise puts a takeover off like a renewal would: nothing is begun before it is over, by nobody.
func TestPromise(t *testing.T) {
	t.Parallel()
	const d = 3 * time.Second
	lost := func() Lookout { // its lease has run out, as far as the store says
		l := NewLookout(testPolicy(ModeAutomatic), noon)
		s := testSight()
		s.Lease.Holder = "a/1"
		l, _ = Observe(l, s, noon)
		return l
	}
	late := noon.Add(time.Hour)
	l, pledge := lost().Promise(Plea{Holder: "a/1", For: time.Minute}, late)
	if pledge.Refused != "" || pledge.For != d {
		t.Fatalf("%+v", pledge)
	}
	end := late.Add(d + d/100)
	if !l.Expiry().Equal(end) || l.RunOut(end.Add(-1)) || !l.RunOut(end) || !l.TakeAt().Equal(end.Add(l.Policy.W)) {
		t.Errorf("expiry %v, take at %v; promised until %v", l.Expiry(), l.TakeAt(), end)
	}
	for _, ask := range []Ask{{}, {Manual: true, Override: Overridable()}} {
		against := Unmet(l.Conditions(ask, end.Add(-1)))
		if len(against) != 1 || against[0].Rule != RuleLease || !strings.Contains(against[0].Text, "has promised not to take over") {
			t.Errorf("against it: %+v", against)
		}
	}
	if w := l.Wake(); w.IsZero() || w.After(end) {
		t.Errorf("wakes at %v", w)
	}
	shorter, _ := l.Promise(Plea{Holder: "a/1", For: time.Millisecond}, late)
	if !shorter.Expiry().Equal(end) {
		t.Error("a later, shorter promise took back an earlier one")
	}

	begun, _ := Observe(lost(), Tick{}, late)
	for stage := Stage(""); begun.Stage != stage; { // until nothing more happens without an answer
		stage = begun.Stage
		begun, _ = Observe(begun, Tick{}, late)
	}
	if begun.Stage != Halting {
		t.Fatalf("stage %s", begun.Stage)
	}
	revoked := lost()
	revoked.Lease.Revoked, revoked.Lease.RevokedBy = true, "f1"
	for what, c := range map[string]struct {
		l    Lookout
		plea Plea
	}{
		"while it takes over":     {begun, Plea{"a/1", d}},
		"before the first look":   {NewLookout(testPolicy(ModeAutomatic), noon), Plea{"a/1", d}},
		"to one that was revoked": {revoked, Plea{"a/1", d}},
		"to another agent":        {lost(), Plea{"a/2", d}},
		"for nobody":              {lost(), Plea{"", d}},
		"for no time":             {lost(), Plea{"a/1", 0}},
	} {
		after, pledge := c.l.Promise(c.plea, late)
		if pledge.Refused == "" || after.Expiry() != c.l.Expiry() {
			t.Errorf("promised %s: %+v", what, pledge)
		}
	}
}

// A site that goes on without the store and without promises is not taken over before somebody has made sure.
func TestKeptSites(t *testing.T) {
	t.Parallel()
	l := NewLookout(testPolicy(ModeAutomatic), noon)
	s := testSight()
	s.Lease.Keeps = true
	l, _ = Observe(l, s, noon)
	late := noon.Add(time.Hour)
	for _, c := range []struct {
		ask Ask
		met bool
	}{{Ask{}, false}, {Ask{Manual: true}, false}, {Ask{Manual: true, Override: []string{RuleKept}}, true}} {
		if against := Unmet(l.Conditions(c.ask, late)); (len(against) == 0) != c.met {
			t.Errorf("%+v: %+v", c.ask, against)
		}
	}
	s.Lease.Keeps, s.Lease.Asks = false, "c,d"
	l, _ = Observe(NewLookout(testPolicy(ModeAutomatic), noon), s, noon)
	if against := Unmet(l.Conditions(Ask{Manual: true, Override: Overridable()}, late)); len(against) != 1 || against[0].Rule != RuleStanding {
		t.Errorf("one that is not asked: %+v", against)
	}
}
