package balance

import (
	"cmp"
	"fmt"
	"math/big"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Unix(1_000_000, 0)

func instances(n int, zones ...string) []Instance {
	out := make([]Instance, n)
	for i := range out {
		out[i] = Instance{Address: fmt.Sprintf("10.0.0.%03d:80", i)}
		if len(zones) > 0 {
			out[i].Zone = zones[i%len(zones)]
		}
	}
	return out
}

// The story of one instance, step by step: what is reported, how much later, and whether that ejects it.
func TestRecord(t *testing.T) {
	t.Parallel()
	type step struct {
		after   time.Duration
		outcome Outcome
		eject   bool
	}
	rule := Ejection{Unreached: 2, Errors: 3, Base: 10 * time.Second, Max: 25 * time.Second}.withDefaults()
	for name, steps := range map[string][]step{
		"not reached twice in a row":                      {{0, Unreached, false}, {0, Unreached, true}},
		"an answer in between":                            {{0, Unreached, false}, {0, Answered, false}, {0, Unreached, false}},
		"an error of its own is an answer, to that":       {{0, Unreached, false}, {0, Errored, false}, {0, Unreached, false}, {0, Unreached, true}},
		"errors of its own are counted apart":             {{0, Errored, false}, {0, Errored, false}, {0, Unreached, false}, {0, Errored, true}},
		"while it is ejected nothing counts":              {{0, Unreached, false}, {0, Unreached, true}, {9 * time.Second, Unreached, false}, {0, Errored, false}},
		"back on trial, the first failure is enough":      {{0, Unreached, false}, {0, Unreached, true}, {10 * time.Second, Unreached, true}},
		"for twice as long then":                          {{0, Unreached, false}, {0, Unreached, true}, {10 * time.Second, Unreached, true}, {19 * time.Second, Unreached, false}, {time.Second, Unreached, true}},
		"never for longer than the most":                  {{0, Unreached, false}, {0, Unreached, true}, {10 * time.Second, Unreached, true}, {20 * time.Second, Unreached, true}, {25 * time.Second, Unreached, true}, {25 * time.Second, Unreached, true}},
		"a good stretch takes an ejection off":            {{0, Unreached, false}, {0, Unreached, true}, {20 * time.Second, Answered, false}, {0, Unreached, false}, {0, Unreached, true}, {10 * time.Second, Unreached, true}},
		"a good moment does not, and the trial is passed": {{0, Unreached, false}, {0, Unreached, true}, {10 * time.Second, Answered, false}, {0, Unreached, false}, {0, Unreached, true}, {11 * time.Second, Unreached, false}},
	} {
		var r record
		now := start
		for i, s := range steps {
			now = now.Add(s.after)
			got := r.report(rule, s.outcome, now)
			if got != s.eject {
				t.Errorf("%s: step %d: %v, want %v (%+v)", name, i+1, got, s.eject, r)
			}
			if got {
				r.eject(rule, now)
			}
		}
	}
}

func TestRecord_NeverWhereTheRuleSaysSo(t *testing.T) {
	t.Parallel()
	var r record
	rule := Ejection{Unreached: -1, Errors: -1}.withDefaults()
	for range 100 {
		if r.report(rule, Unreached, start) || r.report(rule, Errored, start) {
			t.Fatal("ejected")
		}
	}
}

func TestHealth(t *testing.T) {
	t.Parallel()
	rule := Health{Up: 2, Down: 3}
	for checks, want := range map[string]fitness{
		"": unchecked, "+": up, "-": down, "+--": up, "+---": down, "+--+--": up, "-+": down, "-++": up, "-+-+": down, "+---++": up,
	} {
		var r record
		for _, c := range checks {
			r.check(rule, c == '+')
		}
		if r.fit != want {
			t.Errorf("%q: %v, want %v", checks, r.fit, want)
		}
	}
}

// A good check ends no ejection, and a bad one is no reason for one.
func TestChecksAndEjectionsAreApart(t *testing.T) {
	t.Parallel()
	p := NewPool(Rules{Checked: true, Ejection: Ejection{Unreached: 1}})
	p.Update(instances(3), start)
	for _, in := range instances(3) {
		p.Checked(in.Address, true, start)
	}
	m, _ := p.Pick(start, 0, nil)
	if !p.Report(m, Unreached, start) {
		t.Fatal("not ejected")
	}
	for range 10 {
		p.Checked(m.Address, true, start)
	}
	if s := p.Summary(start); s.Ejected != 1 || s.Fit != 2 {
		t.Errorf("%+v", s)
	}
	for range 10 {
		p.Checked(m.Address, false, start)
	}
	if s := p.Summary(start.Add(time.Minute)); s.Ejected != 0 || s.Fit != 2 {
		t.Errorf("%+v: it came back from its ejection, and checks still fail", s)
	}
}

// The pool against a dumb twin: after any story, who is ejected and who may be chosen is the same, the floor holds, and
// somebody is chosen.
func TestPool_AgainstATwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 9).Draw(rt, "instances")
		rules := Rules{Checked: rapid.Bool().Draw(rt, "checked"), Ejection: Ejection{Unreached: 2, Errors: 3, Base: 4 * time.Second, Max: 9 * time.Second, Share: rapid.SampledFrom([]float64{0.2, 0.5, 0.9}).Draw(rt, "share")}}.withDefaults()
		p, twin := NewPool(rules), newTwin(rules, n)
		p.Update(instances(n), start)
		members := slices.Clone(p.mu.members)
		now := start
		for range rapid.IntRange(0, 60).Draw(rt, "steps") {
			i := rapid.IntRange(0, n-1).Draw(rt, "which")
			now = now.Add(time.Duration(rapid.IntRange(0, 3).Draw(rt, "later")) * time.Second)
			if rules.Checked && rapid.Bool().Draw(rt, "check") {
				good := rapid.Bool().Draw(rt, "good")
				p.Checked(members[i].Address, good, now)
				twin.check(i, good)
			} else {
				o := rapid.SampledFrom([]Outcome{Answered, Errored, Unreached, Unreached}).Draw(rt, "outcome")
				p.Report(members[i], o, now)
				twin.report(i, o, now)
			}
			m, ok := p.Pick(now, rapid.Uint64().Draw(rt, "draw"), nil)
			if !ok {
				rt.Fatal("nobody was chosen")
			}
			m.Release()
			may := twin.may(now)
			if !may[slices.Index(members, m)] {
				rt.Fatalf("%s was chosen, of %v", m.Address, may)
			}
			s, out := p.Summary(now), twin.ejected(now)
			if s.Ejected != out || 2*out > n {
				rt.Fatalf("%+v, the twin says %d of %d are ejected", s, out, n)
			}
		}
	})
}

// twin keeps every event of every instance and reads the whole story at each question.
type twin struct {
	rules  Rules
	events [][]event
	checks [][]bool
}

type event struct {
	outcome Outcome
	at      time.Time
	ejected time.Duration // for how long from then on; 0: not
}

func newTwin(rules Rules, n int) *twin {
	return &twin{rules, make([][]event, n), make([][]bool, n)}
}

func (w *twin) check(i int, good bool) { w.checks[i] = append(w.checks[i], good) }

func (w *twin) out(i int, now time.Time) bool {
	for _, e := range w.events[i] {
		if now.Before(e.at.Add(e.ejected)) {
			return true
		}
	}
	return false
}

func (w *twin) ejected(now time.Time) (n int) {
	for i := range w.events {
		if w.out(i, now) {
			n++
		}
	}
	return n
}

func (w *twin) report(i int, o Outcome, now time.Time) {
	if w.out(i, now) {
		return
	}
	e := event{outcome: o, at: now}
	w.events[i] = append(w.events[i], e)
	unreached, errors, times, good, back := 0, 0, 0, time.Time{}, time.Time{}
	for _, e := range w.events[i] {
		switch e.outcome {
		case Unreached:
			unreached++
		case Errored:
			unreached, errors = 0, errors+1
		case Answered:
			unreached, errors = 0, 0
			from := good
			if back.After(from) {
				from = back
			}
			if times > 0 && e.at.Sub(from) >= w.rules.Ejection.Base {
				times, good = times-1, e.at
			}
		}
		if e.ejected > 0 {
			times++
			unreached, errors = w.rules.Ejection.Unreached-1, w.rules.Ejection.Errors-1
			back = e.at.Add(e.ejected)
		}
	}
	rule := w.rules.Ejection
	if o != Answered && (o == Unreached && unreached >= rule.Unreached || o == Errored && errors >= rule.Errors) &&
		w.ejected(now)+1 <= int(float64(len(w.events))*min(rule.Share, .5)) {
		last := &w.events[i][len(w.events[i])-1]
		last.ejected = min(time.Duration(times+1)*rule.Base, rule.Max)
	}
}

func (w *twin) healthy(i int) bool {
	if !w.rules.Checked {
		return true
	}
	checks := w.checks[i]
	if len(checks) == 0 {
		return false
	}
	now, against := checks[0], 0
	for _, c := range checks[1:] {
		if c == now {
			against = 0
			continue
		}
		against++
		if now && against == w.rules.Health.Down || !now && against == w.rules.Health.Up {
			now, against = c, 0
		}
	}
	return now
}

func (w *twin) may(now time.Time) []bool {
	out := make([]bool, len(w.events))
	fit := 0
	for i := range out {
		if out[i] = w.healthy(i) && !w.out(i, now); out[i] {
			fit++
		}
	}
	if 2*fit < len(out) {
		for i := range out {
			out[i] = true
		}
	}
	return out
}

// The choice against a dumb one: of the two that are drawn, never the one with more to do; where those cannot take it,
// never anybody with more to do than the least; never more than an instance may have; not where it was tried before.
func TestChoose_AgainstATwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 8).Draw(rt, "instances")
		all := instances(n)
		for i := range all {
			all[i].Weight = rapid.IntRange(1, 4).Draw(rt, "weight")
		}
		p := NewPool(Rules{PerMember: rapid.IntRange(0, 5).Draw(rt, "most")})
		p.Update(all, start)
		for _, m := range p.mu.members {
			m.active.Store(rapid.Int64Range(0, 6).Draw(rt, "active"))
		}
		draw := rapid.Uint64().Draw(rt, "draw")
		var not *Member
		if rapid.Bool().Draw(rt, "tried") {
			not = p.mu.members[rapid.IntRange(0, n-1).Draw(rt, "where")]
		}
		before := map[*Member]int64{}
		for _, m := range p.mu.members {
			before[m] = m.active.Load()
		}
		full := func(m *Member) bool { return p.rules.PerMember > 0 && before[m] >= int64(p.rules.PerMember) }
		ticket := func(draw uint64) *Member { // by a row of tickets, one for each unit of weight
			var row []*Member
			for _, m := range p.mu.members {
				for range m.weight {
					row = append(row, m)
				}
			}
			share := new(big.Int).Mul(new(big.Int).SetUint64(draw), big.NewInt(int64(len(row))))
			return row[share.Rsh(share, 64).Int64()]
		}
		less := func(a, b *Member) int { return cmp.Compare((before[a]+1)*b.weight, (before[b]+1)*a.weight) }
		could := func(ms ...*Member) []*Member {
			return slices.DeleteFunc(ms, func(m *Member) bool { return full(m) || m == not })
		}
		a, b := ticket(draw), ticket(mix(draw))
		if a == b {
			b = p.mu.members[(slices.Index(p.mu.members, a)+1)%n]
		}
		of := could(a, b)
		if len(of) == 0 {
			of = could(slices.Clone(p.mu.members)...)
		}
		if len(of) == 0 && not != nil && !full(not) {
			of = []*Member{not}
		}
		got, ok := p.Pick(start, draw, not)
		switch {
		case ok != (len(of) > 0):
			rt.Fatalf("chosen: %v, the twin would choose of %d", ok, len(of))
		case ok && (!slices.Contains(of, got) || less(slices.MinFunc(of, less), got) < 0):
			rt.Fatalf("%s was chosen with %d under way", got.Address, before[got])
		case ok && got.Active() != before[got]+1:
			rt.Fatal("not counted")
		}
	})
}

// simulate has requests come in at a rate to instances with their own service times, and tells each one's share.
func simulate(p *Pool, requests int, every float64, takes func(address string) float64) map[string]int {
	type leaving struct {
		at float64
		m  *Member
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	var there []leaving
	got := map[string]int{}
	for i := range requests {
		now := float64(i) * every
		there = slices.DeleteFunc(there, func(l leaving) bool {
			if l.at <= now {
				l.m.Release()
			}
			return l.at <= now
		})
		m, ok := p.Pick(start, rnd.Uint64(), nil)
		if !ok {
			panic("nobody was chosen")
		}
		got[m.Address]++
		there = append(there, leaving{now + takes(m.Address), m})
	}
	return got
}

// One of three is ten times as slow: it gets few requests, by what is under way there.
func TestSlowInstanceGetsLess(t *testing.T) {
	t.Parallel()
	p := NewPool(Rules{})
	p.Update(instances(3), start)
	slow := instances(3)[1].Address
	got := simulate(p, 20000, 1, func(a string) float64 {
		if a == slow {
			return 100
		}
		return 10
	})
	if share := float64(got[slow]) / 20000; share > 0.15 {
		t.Errorf("the slow one got %.0f %%: %v", 100*share, got)
	}
}

func TestWeights(t *testing.T) {
	t.Parallel()
	p := NewPool(Rules{})
	all := instances(3)
	all[2].Weight = 4
	p.Update(all, start)
	got := simulate(p, 12000, 1, func(string) float64 { return 20 })
	if n := got[all[2].Address]; n < 6500 || n > 9500 {
		t.Errorf("four sixths of 12000 were due to it: %v", got)
	}
}

// The own zone takes all it can; when it has clearly more to do, the others help; when nobody is left there, they do all.
func TestZones(t *testing.T) {
	t.Parallel()
	share := func(rate float64, gone bool) float64 {
		p := NewPool(Rules{Zone: "x"})
		all := instances(4, "x", "y")
		if gone {
			all = instances(4, "y")
		}
		p.Update(all, start)
		got, own := simulate(p, 20000, 1/rate, func(string) float64 { return 1 }), 0
		for _, in := range all {
			if in.Zone == "x" {
				own += got[in.Address]
			}
		}
		return float64(own) / 20000
	}
	if quiet := share(2, false); quiet < 0.99 {
		t.Errorf("on a quiet day only %.2f stayed in the zone", quiet)
	}
	if busy := share(200, false); busy < 0.5 || busy > 0.75 {
		t.Errorf("with a hundred requests at each, %.2f stayed in the zone", busy)
	}
	if none := share(2, true); none != 0 {
		t.Errorf("%.2f stayed in a zone where nobody is", none)
	}
}

// An instance that fails at once is always idle, and is not preferred for that, whether or not it may be ejected.
func TestFailingAtOnceIsNoVirtue(t *testing.T) {
	t.Parallel()
	p := NewPool(Rules{Ejection: Ejection{Unreached: -1}})
	p.Update(instances(2), start)
	rnd := rand.New(rand.NewPCG(3, 4))
	dead, failed := instances(2)[0].Address, 0
	var there []*Member
	for i := range 1000 {
		now := start.Add(time.Duration(i) * time.Millisecond)
		m, _ := p.Pick(now, rnd.Uint64(), nil)
		if m.Address == dead {
			failed++
			p.Report(m, Unreached, now)
			m.Release()
		} else if there = append(there, m); len(there) > 10 {
			there[0].Release()
			p.Report(there[0], Answered, now)
			there = there[1:]
		}
	}
	if failed > 50 || failed < 2 {
		t.Errorf("%d of 1000 went to the dead one; it is to be tried now and then", failed)
	}
}

func TestUpdate_KeepsWhatIsKnown(t *testing.T) {
	t.Parallel()
	p := NewPool(Rules{Ejection: Ejection{Unreached: 1}})
	p.Update(instances(4), start)
	gone := p.mu.members[3]
	p.Report(p.mu.members[0], Unreached, start)
	p.Update(append(instances(3), instances(1)...), start)
	if s := p.Summary(start); s.All != 3 || s.Ejected != 1 {
		t.Errorf("%+v", s)
	}
	p.Report(gone, Unreached, start) // nobody's business any more
	if s := p.Summary(start); s.Ejected != 1 || s.Fit != 2 {
		t.Errorf("%+v", s)
	}
	p.Update(nil, start)
	if _, ok := p.Pick(start, 1, nil); ok {
		t.Error("somebody was chosen where nobody is")
	}
}

func TestPick_DoesNotAllocate(t *testing.T) {
	p := NewPool(Rules{Zone: "x", PerMember: 100})
	p.Update(instances(32, "x", "y", "z"), start)
	draw := uint64(0)
	if n := testing.AllocsPerRun(1000, func() {
		draw = mix(draw)
		m, _ := p.Pick(start, draw, nil)
		p.Report(m, Answered, start)
		m.Release()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkPick(b *testing.B) {
	for _, n := range []int{3, 100} {
		b.Run(fmt.Sprintf("%d instances in three zones", n), func(b *testing.B) {
			p := NewPool(Rules{Zone: "x"})
			p.Update(instances(n, "x", "y", "z"), start)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				draw := rand.Uint64()
				for pb.Next() {
					draw = mix(draw)
					m, _ := p.Pick(start, draw, nil)
					p.Report(m, Answered, start)
					m.Release()
				}
			})
		})
	}
}
