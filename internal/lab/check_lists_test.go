package lab

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/atollhq/atoll/topo"
)

// diary is a hand-made history of ada's list, told in seconds. Lists are written as words: "one two".
type diary struct{ tale }

func (s *diary) op(from, to float64, op, value, list string, outcome Outcome) *diary {
	s.tale.op(from, to, op, value, outcome)
	o := &s.ops[len(s.ops)-1]
	o.Write, o.List = op == listAppend, strings.Fields(list)
	return s
}

// add appends; the list is the answer, its last word the entry.
func (s *diary) add(from, to float64, list string) *diary {
	words := strings.Fields(list)
	return s.op(from, to, listAppend, words[len(words)-1], list, OK)
}

func (s *diary) read(from, to float64, list string) *diary {
	return s.op(from, to, listRead, "", list, OK)
}

func (s *diary) unknown(from, to float64, value string) *diary {
	return s.op(from, to, listAppend, value, "", Unknown)
}

func (s *diary) end(list string) *diary {
	s.read(60, 60, list)
	s.ops[len(s.ops)-1].Client = finalClient
	return s
}

func (s *diary) lost() *diary {
	s.tale.lost()
	return s
}

func (s *diary) logged(at float64, list, decision string) *diary {
	row, err := json.Marshal(map[string]string{"id": ada, listColumn: "{" + strings.Join(strings.Fields(list), ",") + "}"})
	if err != nil {
		panic(err)
	}
	s.conflicts = append(s.conflicts, ConflictRow{Database: "b", Origin: "a", Kind: "stale_update", Table: "public.customers", Keyspace: users, Handover: "h1", Remote: row, Decision: decision, At: second(at)})
	return s
}

// droppedEntries: two and three were at a only, b went on from one.
func droppedEntries() *diary {
	return new(diary).add(1, 2, "one").add(8, 8.1, "one two").add(9, 9.1, "one two three").read(9.2, 9.3, "one two three").
		lost().read(15.1, 15.2, "one").add(16, 17, "one four").logged(21, "one two", "kept").logged(21, "one two three", "kept").read(26, 27, "one four").end("one four")
}

// returnedEntries: nobody wrote meanwhile, so that a's entries stand.
func returnedEntries() *diary {
	return new(diary).add(1, 2, "one").add(8, 8.1, "one two").add(9, 9.1, "one two three").lost().read(15.1, 15.2, "one").
		logged(21, "one two", "applied").logged(21, "one two three", "applied").read(21, 21.1, "one two").read(26, 27, "one two three").end("one two three")
}

func TestCheckLists(t *testing.T) {
	t.Parallel()
	unlogged := droppedEntries()
	unlogged.conflicts = unlogged.conflicts[:1]
	other := droppedEntries()
	other.conflicts[1].Handover = "h9"
	for name, test := range map[string]struct {
		s         *diary
		violation string
	}{
		"one after the other":          {new(diary).add(1, 2, "one").read(3, 4, "one").add(5, 6, "one two").end("one two"), ""},
		"at the same time":             {new(diary).add(1, 5, "one").add(2, 4, "one two").read(2, 3, "").read(2, 6, "one").end("one two"), ""},
		"unknown, and entered":         {new(diary).add(1, 2, "one").unknown(3, 4, "two").read(5, 6, "one two").end("one two"), ""},
		"unknown, and entered later":   {new(diary).add(1, 2, "one").unknown(3, 4, "two").read(5, 6, "one").read(7, 8, "one two").end("one two"), ""},
		"unknown, and not entered":     {new(diary).add(1, 2, "one").unknown(3, 4, "two").read(5, 6, "one").end("one"), ""},
		"refused":                      {new(diary).add(1, 2, "one").op(3, 4, listAppend, "two", "", Fail).end("one"), ""},
		"dropped and logged":           {droppedEntries(), ""},
		"dropped, applied":             {returnedEntries(), ""},
		"unknown in the tail":          {droppedEntries().unknown(9.5, 12, "last").logged(21, "one two three last", "kept"), ""},
		"lost":                         {new(diary).add(1, 2, "one").add(3, 4, "one two").end("one"), "acknowledged and is missing"},
		"lost and replaced":            {new(diary).add(1, 2, "one").add(3, 4, "one two").add(5, 6, "one three").end("one three"), "is no beginning of the 2"},
		"twice":                        {new(diary).add(1, 2, "one").read(3, 4, "one one").end("one one"), `has "one" twice`},
		"another order":                {new(diary).add(1, 2, "one").add(1, 2, "one two").read(3, 4, "two one").end("one two"), "they differ from entry 1 on"},
		"shorter later":                {new(diary).add(1, 2, "one").add(3, 4, "one two").read(5, 6, "one").end("one two"), "it has 1 entries after 2"},
		"nobody's":                     {new(diary).add(1, 2, "one").read(3, 4, "one zero").end("one zero"), "which no client appended"},
		"before it was sent":           {new(diary).add(1, 2, "one").read(3, 4, "one two").add(5, 6, "one two").end("one two"), "before that was sent"},
		"refused and entered":          {new(diary).add(1, 2, "one").op(3, 4, listAppend, "two", "", Fail).end("one two"), "refused, and in the list"},
		"one site has less":            {new(diary).add(1, 2, "one").add(3, 4, "one two").end("one two").end("one"), "it has 1 entries after 2"},
		"the answer lacks its entry":   {new(diary).add(1, 2, "one").op(3, 4, listAppend, "two", "one", OK).end("one two"), "does not end with its entry"},
		"a value twice":                {new(diary).add(1, 2, "one").add(3, 4, "one").end("one"), "two operations append one value"},
		"dropped, one not logged":      {unlogged, "is no beginning"},
		"dropped, of another failover": {other, "acknowledged and is missing"},
		"seen after the taker opened":  {droppedEntries().read(16, 16.5, "one two"), "is no beginning"},
		"appended after it, logged":    {droppedEntries().add(15.5, 15.6, "one two three stray").logged(22, "one two three stray", "kept"), "acknowledged and is missing"},
		"the owner's own lost":         {droppedEntries().read(28, 29, "one"), "it has 1 entries after 2"},
		"gone at the lost site":        {droppedEntries().read(9.5, 9.6, "one two"), "it has 2 entries after 3"},
		"not back after the settling":  {returnedEntries().read(26, 27, "one"), "it has 1 entries after 3"},
		"applied, and missing":         {returnedEntries().end("one two"), "it has 2 entries after 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want(t, CheckLists(test.s.ops, test.s.conflicts, test.s.losses), test.violation)
		})
	}
	if c := CheckLists(nil, nil, nil); c.Passed() {
		t.Error("a check of nothing passes")
	}
	if c := CheckLists(new(diary).add(1, 2, "one").ops, nil, nil); c.Passed() {
		t.Error("a list that is never read passes")
	}
}

func TestArrayOf(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{"": nil, "{}": nil, "{a}": {"a"}, "{a-1,b}": {"a-1", "b"}} {
		if got := arrayOf(text); !slices.Equal(got, want) {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// pages is a list at two sites with a failover between, played in small steps: what a right system would do.
type pages struct {
	random  *rand.Rand
	diary   diary
	now     float64
	at      map[topo.SiteID][]string
	stream  [][]string // versions that a committed and b has not applied
	taken   bool
	written bool // by a client at b, since the takeover
	flying  map[int]*flight
	next    int
}

// playList runs to the end and returns the history.
func playList(seed uint64) *diary {
	m := &pages{random: rand.New(rand.NewPCG(seed, 6)), at: map[topo.SiteID][]string{}, flying: map[int]*flight{}}
	const cut, killed, opened, back = 10.0, 11.0, 15.0, 20.0
	var pending [][]string
	for m.now < 30 {
		m.now += 0.01 + 0.02*m.random.Float64()
		m.start(killed, opened)
		m.advance(killed, opened)
		if m.now < cut && len(m.stream) > 0 && m.random.IntN(3) > 0 { // replication, a little late
			m.at["b"], m.stream = m.stream[0], m.stream[1:]
		}
		if m.now >= opened && !m.taken {
			m.taken, pending, m.stream, m.written = true, m.stream, nil, false
		}
		if m.now >= back && len(pending) > 0 && m.random.IntN(5) == 0 {
			decision := "kept"
			if !m.written {
				m.at["b"], decision = pending[0], "applied"
			}
			m.diary.logged(m.now, strings.Join(pending[0], " "), decision)
			pending = pending[1:]
		}
	}
	if len(pending) > 0 {
		panic("BUG: the machine has not decided the tail")
	}
	m.diary.losses = []Loss{{ID: "h1", Lost: "a", Taker: "b", Killed: second(killed), Opened: second(opened), Back: second(back), Settled: second(30.1)}}
	return m.diary.end(strings.Join(m.at["b"], " "))
}

// start lets up to three clients begin operations. In half of the runs they rest from the takeover on, so that some tails are
// applied.
func (m *pages) start(killed, opened float64) {
	client := m.random.IntN(3)
	if m.random.IntN(10) > 0 || m.flying[client] != nil || m.now > killed && m.now < opened || m.now > 29 || m.now > opened && m.random.IntN(40) > 0 && len(m.diary.ops)%2 == 0 {
		return
	}
	m.next++
	f := &flight{op: Operation{ID: fmt.Sprint(m.next), Client: client, Op: listRead, Keyspace: users, Key: ada, InvokedUS: second(m.now).UnixMicro(), Outcome: Unknown},
		doAt: m.now + 0.2*m.random.Float64()}
	if m.random.IntN(2) == 0 {
		f.op.Op, f.op.Write, f.op.Value = listAppend, true, "v"+f.op.ID
	}
	f.endAt = f.doAt + 0.2*m.random.Float64()
	m.flying[client] = f
}

func (m *pages) advance(killed, opened float64) {
	dead := m.now > killed && m.now < opened
	for client := range 3 {
		f := m.flying[client]
		if f == nil {
			continue
		}
		if f.op.Outcome == Unknown && !dead && m.now >= f.doAt && f.doAt > 0 {
			m.effect(f)
		}
		if m.now < f.endAt && !dead {
			continue
		}
		delete(m.flying, client)
		f.op.ReturnedUS = second(m.now).UnixMicro()
		if dead || m.random.IntN(10) == 0 { // the answer is lost
			f.op.Outcome, f.op.List = Unknown, nil
			if f.op.Op == listRead {
				f.op.Outcome = Fail
			}
		}
		m.diary.ops = append(m.diary.ops, f.op)
	}
}

func (m *pages) effect(f *flight) {
	site := topo.SiteID("a")
	if m.taken {
		site = "b"
	}
	f.op.Outcome, f.doAt = OK, 0
	if f.op.Op == listAppend {
		m.at[site] = append(slices.Clone(m.at[site]), f.op.Value)
		if m.taken {
			m.written = true
		} else {
			m.stream = append(m.stream, m.at[site])
		}
	}
	f.op.List = slices.Clone(m.at[site])
}

// Right histories pass, spoilt ones mostly do not.
func TestCheckLists_RandomFailovers(t *testing.T) {
	t.Parallel()
	tails, applied, caught, mutated := 0, 0, map[string]int{}, map[string]int{}
	for seed := range uint64(200) {
		s := playList(seed)
		if c := CheckLists(s.ops, s.conflicts, s.losses); !c.Passed() {
			t.Fatalf("seed %d: %s %s\n%s", seed, c.Result(), c.Error, strings.Join(c.Examples, "\n"))
		}
		tails += len(s.conflicts)
		applied += len(slices.DeleteFunc(slices.Clone(s.conflicts), func(r ConflictRow) bool { return r.Decision == "kept" }))
		random := rand.New(rand.NewPCG(seed, 7))
		for name, spoil := range listMutations {
			ops := slices.Clone(s.ops)
			for i := range ops {
				ops[i].List = slices.Clone(ops[i].List)
			}
			conflicts := slices.Clone(s.conflicts)
			if !spoil(random, ops, &conflicts) {
				continue
			}
			mutated[name]++
			if c := CheckLists(ops, conflicts, s.losses); c.Violated > 0 {
				caught[name]++
			}
		}
	}
	if tails < 200 || applied < 20 || applied == tails {
		t.Errorf("%d versions in tails, %d of them applied: the machine shows too little", tails, applied)
	}
	for name := range listMutations {
		t.Logf("%s: caught %d of %d", name, caught[name], mutated[name])
		if mutated[name] < 20 || caught[name]*100 < mutated[name]*60 {
			t.Errorf("%s: caught %d of %d", name, caught[name], mutated[name])
		}
	}
}

// listMutations spoil a history and tell whether they found something to spoil.
var listMutations = map[string]func(*rand.Rand, []Operation, *[]ConflictRow) bool{
	"an answer lacks its last entry": func(r *rand.Rand, ops []Operation, _ *[]ConflictRow) bool {
		o := &ops[r.IntN(len(ops))]
		if len(o.List) == 0 || o.Op == listAppend {
			return false
		}
		o.List = o.List[:len(o.List)-1]
		first := slices.IndexFunc(ops, func(p Operation) bool {
			return len(p.List) > len(o.List) && p.ReturnedUS < o.InvokedUS && startsWith(p.List, o.List)
		})
		return first >= 0 // else the read may have been a little earlier
	},
	"two entries change places": func(r *rand.Rand, ops []Operation, _ *[]ConflictRow) bool {
		o := &ops[r.IntN(len(ops))]
		if len(o.List) < 2 || o.Client == finalClient {
			return false
		}
		i := r.IntN(len(o.List) - 1)
		o.List[i], o.List[i+1] = o.List[i+1], o.List[i]
		return true
	},
	"an acknowledged entry is gone everywhere": func(r *rand.Rand, ops []Operation, conflicts *[]ConflictRow) bool {
		entries := pick(ops, listAppend)
		gone := entries[r.IntN(len(entries))].Value
		if slices.ContainsFunc(*conflicts, func(c ConflictRow) bool { return slices.Contains(arrayOf(column(c.Remote, listColumn)), gone) }) {
			return false // that explains it
		}
		for i := range ops {
			ops[i].List = slices.DeleteFunc(ops[i].List, func(v string) bool { return v == gone })
		}
		return true
	},
	"an entry is there twice at the end": func(r *rand.Rand, ops []Operation, _ *[]ConflictRow) bool {
		last := &ops[len(ops)-1]
		if len(last.List) == 0 {
			return false
		}
		last.List = append(last.List, last.List[r.IntN(len(last.List))])
		return true
	},
	"the conflict log is empty": func(_ *rand.Rand, ops []Operation, conflicts *[]ConflictRow) bool {
		kept := slices.ContainsFunc(*conflicts, func(c ConflictRow) bool {
			version := arrayOf(column(c.Remote, listColumn))
			return c.Decision == "kept" && slices.ContainsFunc(ops, func(o Operation) bool {
				return o.Outcome == OK && o.Op == listAppend && o.Value == version[len(version)-1]
			})
		})
		*conflicts = nil
		return kept
	},
}
