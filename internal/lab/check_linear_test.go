package lab

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// tale is a hand-made history of ada's register, told in seconds.
type tale struct {
	ops       []Operation
	conflicts []ConflictRow
	losses    []Loss
}

func (s *tale) op(from, to float64, op, value string, outcome Outcome) *tale {
	s.ops = append(s.ops, Operation{ID: fmt.Sprint(len(s.ops) + 1), Op: op, Keyspace: users, Key: ada, Write: op == registerWrite, Value: value, Outcome: outcome,
		InvokedUS: second(from).UnixMicro(), ReturnedUS: second(to).UnixMicro()})
	return s
}

func (s *tale) write(from, to float64, value string) *tale {
	return s.op(from, to, registerWrite, value, OK)
}
func (s *tale) read(from, to float64, value string) *tale {
	return s.op(from, to, registerRead, value, OK)
}
func (s *tale) unknown(from, to float64, value string) *tale {
	return s.op(from, to, registerWrite, value, Unknown)
}
func (s *tale) fail(from, to float64, value string) *tale {
	return s.op(from, to, registerWrite, value, Fail)
}

// lost says that a was killed at 10, that b opened at 15, and that a was back at 20 and settled at 25.
func (s *tale) lost() *tale {
	s.losses = append(s.losses, Loss{ID: "h1", Lost: "a", Taker: "b", Cut: second(9), Killed: second(10), Opened: second(15), Back: second(20), Settled: second(25)})
	return s
}

func addressRow(key, value string) json.RawMessage {
	row, err := json.Marshal(map[string]string{"id": key, "name": "x", registerColumn: value})
	if err != nil {
		panic(err)
	}
	return row
}

func (s *tale) logged(at float64, value, local, decision string) *tale {
	s.conflicts = append(s.conflicts, ConflictRow{Database: "b", Origin: "a", Position: uint64(len(s.conflicts) + 1), XID: uint64(len(s.conflicts) + 1),
		Kind: "stale_update", Table: "public.customers", Keyspace: users, Handover: "h1", Local: addressRow(ada, local), Remote: addressRow(ada, value), Decision: decision, At: second(at)})
	return s
}

// goodLoss: one was at both sites, two and three at a only; b went on from one.
func goodLoss() *tale {
	return new(tale).write(1, 2, "one").write(9.2, 9.3, "two").read(9.4, 9.5, "two").write(9.6, 9.7, "three").
		lost().fail(11, 12, "no").read(15.1, 15.2, "one").write(16, 17, "four").read(18, 19, "four").
		logged(21, "two", "four", "kept").logged(21, "three", "four", "kept").read(26, 27, "four")
}

// appliedLoss: b wrote nothing meanwhile, so that a's versions stand.
func appliedLoss() *tale {
	return new(tale).write(1, 2, "one").write(9.2, 9.3, "two").write(9.6, 9.7, "three").lost().read(15.1, 15.2, "one").
		logged(21, "two", "one", "applied").logged(22, "three", "two", "applied")
}

func TestCheckK4(t *testing.T) {
	t.Parallel()
	late := goodLoss()
	late.conflicts[0].Handover = "h9"
	twoLosses := goodLoss().write(30, 31, "five").write(39, 39.1, "six").read(46, 47, "five")
	twoLosses.losses = append(twoLosses.losses, Loss{ID: "h2", Lost: "b", Taker: "a", Killed: second(40), Opened: second(45)})
	unlogged2 := &tale{ops: twoLosses.ops, conflicts: slices.Clone(twoLosses.conflicts), losses: twoLosses.losses}
	twoLosses.logged(50, "six", "five", "kept").conflicts[2].Handover = "h2"
	crossed := &tale{ops: twoLosses.ops, conflicts: slices.Clone(twoLosses.conflicts[1:]), losses: twoLosses.losses}
	crossed.ops = slices.DeleteFunc(slices.Clone(crossed.ops), func(o Operation) bool { return o.Value == "two" })
	uncrossed := *crossed
	uncrossed.conflicts = slices.Clone(crossed.conflicts)
	crossed.conflicts[0].Handover, crossed.conflicts[1].Handover = "h2", "h1"
	reordered := goodLoss()
	reordered.conflicts[0].Position, reordered.conflicts[1].Position = 2, 1
	for name, test := range map[string]struct {
		s         *tale
		violation string
	}{
		"one after the other":              {new(tale).write(1, 2, "one").read(3, 4, "one").write(5, 6, "two").read(7, 8, "two"), ""},
		"at the same time, either way":     {new(tale).write(1, 5, "one").write(2, 6, "two").read(7, 8, "one").read(9, 10, "one"), ""},
		"unknown, and it took place":       {new(tale).write(1, 2, "one").unknown(3, 4, "two").read(5, 6, "one").read(7, 8, "two"), ""},
		"unknown, and it did not":          {new(tale).write(1, 2, "one").unknown(3, 4, "two").read(5, 6, "one"), ""},
		"read nothing before the first":    {new(tale).read(1, 2, "").write(3, 4, "one").read(5, 6, "one"), ""},
		"a stale read":                     {new(tale).write(1, 2, "one").write(3, 4, "two").read(5, 6, "one"), `it read "one"`},
		"a lost write":                     {new(tale).write(1, 2, "one").read(3, 4, ""), "fits in no order"},
		"two values at once":               {new(tale).write(1, 5, "one").write(2, 6, "two").read(7, 8, "one").read(9, 10, "two"), "fits in no order"},
		"an old value again":               {new(tale).write(1, 2, "one").write(3, 4, "two").read(5, 6, "two").read(7, 8, "one"), "fits in no order"},
		"unknown comes and goes":           {new(tale).write(1, 2, "one").unknown(3, 4, "two").read(5, 6, "two").read(7, 8, "one"), "fits in no order"},
		"refused and read":                 {new(tale).write(1, 2, "one").fail(3, 4, "two").read(5, 6, "two"), "refused, and read all the same"},
		"a value of nobody's":              {new(tale).write(1, 2, "one").read(5, 6, "zero"), "which no client wrote"},
		"a value twice":                    {new(tale).write(1, 2, "one").write(3, 4, "one").read(5, 6, "one"), "two operations write one value"},
		"a good loss":                      {goodLoss(), ""},
		"applied at the return":            {appliedLoss().read(26, 27, "three"), ""},
		"applied, seen half":               {appliedLoss().read(21.5, 21.6, "two").read(26, 27, "three"), ""},
		"applied, then written":            {appliedLoss().write(26, 27, "four").read(28, 29, "four"), ""},
		"two losses":                       {twoLosses, ""},
		"unknown in the tail":              {goodLoss().unknown(9.8, 11, "last").logged(21, "last", "four", "kept"), ""},
		"lost and not logged":              {&tale{ops: goodLoss().ops, losses: goodLoss().losses}, "fits in no order"},
		"the last one not logged":          {&tale{ops: goodLoss().ops, conflicts: goodLoss().conflicts[:1], losses: goodLoss().losses}, "fits in no order"},
		"logged for another failover":      {late, "fits in no order"},
		"the second loss not logged":       {unlogged2, `it read "five"`},
		"two losses, a version each":       {&uncrossed, ""},
		"two losses, the logs crossed":     {crossed, "fits in no order"},
		"the log in another order":         {reordered, "fits in no order"},
		"an old value before the cut":      {new(tale).write(1, 2, "one").write(4, 5, "two").read(6, 7, "one").lost().logged(21, "two", "one", "kept"), `it read "one"`},
		"no loss is known":                 {&tale{ops: goodLoss().ops, conflicts: goodLoss().conflicts}, "fits in no order"},
		"logged, and read at the taker":    {goodLoss().read(19, 19.5, "two"), "fits in no order"},
		"kept, and there after all":        {goodLoss().read(28, 29, "three"), `it read "three"`},
		"one of before the tail lost":      {goodLoss().read(15.3, 15.4, ""), "fits in no order"},
		"the owner's write lost":           {goodLoss().read(28, 29, "one"), `it read "one"`},
		"applied over the owner's write":   {appliedLoss().write(16, 17, "four").read(26, 27, "three"), "fits in no order"},
		"applied, and not there":           {appliedLoss().read(26, 27, "one"), `it read "one"`},
		"applied, half of it there":        {appliedLoss().read(26, 27, "two"), `it read "two"`},
		"seen before it was applied":       {appliedLoss().read(17, 18, "three").read(26, 27, "three"), `it read "three"`},
		"the lost site answers on":         {goodLoss().read(15.5, 15.6, "three"), `it read "three"`},
		"the lost site takes a write":      {goodLoss().write(15.5, 15.6, "stray").logged(21, "stray", "four", "kept"), "fits in no order"},
		"logged by mistake: the taker had": {new(tale).write(1, 2, "one").write(9.2, 9.3, "two").lost().read(15.1, 15.2, "two").logged(21, "two", "", "kept"), `it read "two"`},
		"logged, nobody wrote it":          {goodLoss().logged(21, "zero", "four", "kept"), "which no client wrote"},
		"logged, and refused":              {goodLoss().logged(21, "no", "four", "kept"), "refused, and a version in the conflict log"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want(t, CheckK4(test.s.ops, test.s.conflicts, test.s.losses), test.violation)
		})
	}
	if c := CheckK4(nil, nil, nil); c.Passed() {
		t.Error("a check of nothing passes")
	}
	if c := CheckK4(goodLoss().ops, nil, []Loss{{ID: "h1", Lost: "a", Taker: "b", Killed: second(10)}}); c.Error == "" {
		t.Error("a loss without an opening is accepted")
	}
}

func TestFinalReads(t *testing.T) {
	t.Parallel()
	s := goodLoss()
	at := func(a, b string) Check {
		sites := []Shop{{Site: "a", Registers: map[string]string{ada: a}}, {Site: "b", Registers: map[string]string{ada: b}}}
		return CheckK4(append(slices.Clone(s.ops), FinalReads(s.ops, sites, second(60))...), s.conflicts, s.losses)
	}
	want(t, at("four", "four"), "")
	want(t, at("three", "four"), `it read "three"`)
	want(t, at("four", ""), `it read ""`)
}

// machine is a register at two sites with a failover between, played in small steps: what a right system would do.
type machine struct {
	random  *rand.Rand
	tale    tale
	now     float64
	value   map[topo.SiteID]string
	stream  []string // what a committed and b has not applied
	taken   bool
	written bool // by a client at b, since the takeover
	flying  map[int]*flight
}

type flight struct {
	op    Operation
	doAt  float64 // when it takes effect, if it is not too late by then
	endAt float64
}

func (m *machine) at() int64 { return second(m.now).UnixMicro() }

// play runs to the end and returns the history.
func play(seed uint64) *tale {
	m := &machine{random: rand.New(rand.NewPCG(seed, 4)), value: map[topo.SiteID]string{}, flying: map[int]*flight{}}
	cut, killed, opened, back, settled := 10.0, 11.0, 15.0, 20.0, 30.1
	var pending []string
	for m.now < 30 {
		m.now += 0.01 + 0.02*m.random.Float64()
		m.start(killed, opened)
		m.advance(killed, opened)
		if m.now < cut && m.random.IntN(3) > 0 { // replication, a little late
			m.apply(m.random.IntN(2))
		}
		if m.now >= opened && !m.taken {
			m.taken, pending, m.stream = true, m.stream, nil
			m.written = false
		}
		if m.now >= back && len(pending) > 0 && m.random.IntN(5) == 0 {
			m.decide(pending[0])
			pending = pending[1:]
		}
	}
	if len(pending) > 0 {
		panic("BUG: the machine has not decided the tail")
	}
	m.tale.losses = []Loss{{ID: "h1", Lost: "a", Taker: "b", Cut: second(cut), Killed: second(killed), Opened: second(opened), Back: second(back), Settled: second(settled)}}
	return &m.tale
}

// start lets up to three clients begin operations. One of them rests from the takeover on in half of the runs, so that
// some tails are applied.
func (m *machine) start(killed, opened float64) {
	if m.random.IntN(8) > 0 || m.now > opened && m.random.IntN(40) > 0 && len(m.tale.ops)%2 == 0 {
		return
	}
	client := m.random.IntN(3)
	if m.flying[client] != nil || m.now > killed && m.now < opened {
		return
	}
	id := fmt.Sprintf("%d-%.4f", client, m.now)
	f := &flight{op: Operation{ID: id, Client: client, Op: registerRead, Keyspace: users, Key: ada, InvokedUS: m.at(), Outcome: Unknown},
		doAt: m.now + 0.2*m.random.Float64()}
	if m.random.IntN(2) == 0 {
		f.op.Op, f.op.Write, f.op.Value = registerWrite, true, "v"+id
	}
	f.endAt = f.doAt + 0.2*m.random.Float64()
	m.flying[client] = f
}

func (m *machine) advance(killed, opened float64) {
	for client := range 3 {
		f := m.flying[client]
		if f == nil {
			continue
		}
		dead := m.now > killed && m.now < opened
		if f.op.Outcome == Unknown && !dead && m.now >= f.doAt && f.doAt > 0 {
			m.effect(f)
		}
		if m.now < f.endAt && !dead {
			continue
		}
		delete(m.flying, client)
		f.op.ReturnedUS = m.at()
		if dead || m.random.IntN(10) == 0 { // the answer is lost
			f.op.Outcome = Unknown
			if f.op.Op == registerRead {
				f.op.Outcome, f.op.Value = Fail, ""
			}
		}
		m.tale.ops = append(m.tale.ops, f.op)
	}
}

func (m *machine) effect(f *flight) {
	site := topo.SiteID("a")
	if m.taken {
		site = "b"
	}
	f.op.Outcome, f.doAt = OK, 0
	switch {
	case f.op.Op == registerRead:
		f.op.Value = m.value[site]
	default:
		m.value[site] = f.op.Value
		if site == "a" {
			m.stream = append(m.stream, f.op.Value)
		}
		m.written = true
	}
}

func (m *machine) apply(n int) {
	for ; n > 0 && len(m.stream) > 0; n-- {
		m.value["b"], m.stream = m.stream[0], m.stream[1:]
	}
}

func (m *machine) decide(value string) {
	local, decision := m.value["b"], "kept"
	if !m.written {
		m.value["b"], decision = value, "applied"
	}
	m.tale.logged(m.now, value, local, decision)
}

func TestCheckK4_RandomFailovers(t *testing.T) {
	t.Parallel()
	tails, applied, caught, mutated := 0, 0, map[string]int{}, map[string]int{}
	for seed := range uint64(150) {
		s := play(seed)
		if c := CheckK4(s.ops, s.conflicts, s.losses); !c.Passed() {
			t.Fatalf("seed %d: %s %s\n%s\n%s", seed, c.Result(), c.Error, strings.Join(c.Examples, "\n"), s)
		}
		tails += len(s.conflicts)
		applied += len(slices.DeleteFunc(slices.Clone(s.conflicts), func(r ConflictRow) bool { return r.Decision == "kept" }))
		random := rand.New(rand.NewPCG(seed, 5))
		for name, mutation := range mutations {
			m := &tale{ops: slices.Clone(s.ops), conflicts: slices.Clone(s.conflicts), losses: s.losses}
			if !mutation.spoil(random, m) {
				continue
			}
			mutated[name]++
			if c := CheckK4(m.ops, m.conflicts, m.losses); c.Violated > 0 {
				caught[name]++
			}
		}
	}
	if tails < 150 || applied < 20 || applied == tails {
		t.Errorf("%d versions in tails, %d of them applied: the machine shows too little", tails, applied)
	}
	for name, mutation := range mutations {
		t.Logf("%s: caught %d of %d", name, caught[name], mutated[name])
		if mutated[name] < 20 || caught[name]*100 < mutated[name]*mutation.percent {
			t.Errorf("%s: caught %d of %d", name, caught[name], mutated[name])
		}
	}
}

// mutations spoil a history and tell whether they found something to spoil. Not every spoilt history shows it: what
// nobody read before it was written over is nobody's loss here; the log itself is held to the databases by CheckTail.
var mutations = map[string]struct {
	percent int // that must be caught
	spoil   func(*rand.Rand, *tale) bool
}{
	"a read shows an older value": {95, func(r *rand.Rand, s *tale) bool {
		reads, writes := pick(s.ops, registerRead), pick(s.ops, registerWrite)
		o := reads[r.IntN(len(reads))]
		older := slices.DeleteFunc(writes, func(w *Operation) bool { return w.ReturnedUS >= o.InvokedUS || w.Value == o.Value })
		if len(older) < 3 {
			return false
		}
		o.Value = older[r.IntN(len(older)-2)].Value
		return true
	}},
	"an entry of an acknowledged version is dropped": {40, func(_ *rand.Rand, s *tale) bool {
		last := len(s.conflicts) - 1
		if last < 0 || !slices.ContainsFunc(s.ops, func(o Operation) bool {
			return o.Outcome == OK && o.Op == registerWrite && o.Value == column(s.conflicts[last].Remote, registerColumn)
		}) {
			return false
		}
		s.conflicts = s.conflicts[:last]
		return true
	}},
	"what was kept is called applied": {90, func(_ *rand.Rand, s *tale) bool { return flip(s, "kept", "applied") }},
	"what was applied is called kept": {25, func(_ *rand.Rand, s *tale) bool { return flip(s, "applied", "kept") }},
	"an acknowledged write is undone": {70, func(r *rand.Rand, s *tale) bool {
		writes := pick(s.ops, registerWrite)
		gone := writes[r.IntN(len(writes))].Value
		before := ""
		seen := false
		for _, o := range pick(s.ops, registerRead) {
			if o.Value == gone {
				o.Value, seen = before, true
			} else if !seen {
				before = o.Value
			}
		}
		return seen
	}},
}

func pick(ops []Operation, op string) []*Operation {
	var out []*Operation
	for i := range ops {
		if ops[i].Op == op && ops[i].Outcome == OK {
			out = append(out, &ops[i])
		}
	}
	return out
}

func flip(s *tale, from, to string) bool {
	found := false
	for i := range s.conflicts {
		if s.conflicts[i].Decision == from {
			s.conflicts[i].Decision, found = to, true
		}
	}
	return found
}

// String is the history in the order of its beginnings, for a failing seed.
func (s *tale) String() string {
	ops := slices.SortedFunc(slices.Values(s.ops), func(a, b Operation) int { return cmp.Compare(a.InvokedUS, b.InvokedUS) })
	var b strings.Builder
	since := func(us int64) float64 { return time.UnixMicro(us).Sub(second(0)).Seconds() }
	for _, o := range ops {
		fmt.Fprintf(&b, "%8.3f to %8.3f %s %q %s\n", since(o.InvokedUS), since(o.ReturnedUS), o.Op, o.Value, o.Outcome)
	}
	for _, r := range s.conflicts {
		fmt.Fprintf(&b, "%8.3f %s %q over %q\n", r.At.Sub(second(0)).Seconds(), r.Decision, column(r.Remote, registerColumn), column(r.Local, registerColumn))
	}
	return b.String()
}
