package lab

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/atollhq/atoll/topo"
)

// sitting is a hand-made history of sessions that use ada's list, told in seconds. All keys are in bucket 0, which is a's.
type sitting struct {
	diary
	e Evidence
}

func newSitting() *sitting {
	s := &sitting{}
	return s.opened(0, "a", 1, "")
}

func (s *sitting) opened(at float64, site topo.SiteID, epoch topo.Epoch, by topo.HandoverID) *sitting {
	s.e.Epochs = append(s.e.Epochs, EpochRow{Database: site, Site: site, Keyspace: users, Epoch: epoch, Open: true, Handover: by, At: second(at)})
	return s
}

func (s *sitting) closed(at float64, site topo.SiteID, epoch topo.Epoch) *sitting {
	s.e.Epochs = append(s.e.Epochs, EpochRow{Database: site, Site: site, Keyspace: users, Epoch: epoch, At: second(at)})
	return s
}

// killed says that a was killed at 10, that b opened the bucket at 15, and that a's tail was settled at 25.
func (s *sitting) killed() *sitting {
	s.e.Losses = append(s.e.Losses, Loss{ID: "h1", Lost: "a", Taker: "b", Killed: second(10), Opened: second(15), Back: second(20), Settled: second(25)})
	return s.opened(15, "b", 2, "h1")
}

// ask enters a request that is answered by a site and took 0.1 s, through a gateway of that site.
func (s *sitting) ask(session string, at float64, site topo.SiteID, op, value, list string, outcome Outcome) *sitting {
	s.op(at, at+0.1, op, value, list, outcome)
	o := s.last()
	o.Session, o.Site, o.Target, o.Write = session, site, string(site)+"/g1", op == sessionAppend
	if outcome == OK {
		o.TokenBytes = 40
	}
	return s
}

func (s *sitting) last() *Operation { return &s.ops[len(s.ops)-1] }

// add appends; the list is the answer, its last word the entry.
func (s *sitting) add(session string, at float64, site topo.SiteID, list string) *sitting {
	words := strings.Fields(list)
	return s.ask(session, at, site, sessionAppend, words[len(words)-1], list, OK)
}

func (s *sitting) read(session string, at float64, site topo.SiteID, list string) *sitting {
	return s.ask(session, at, site, sessionRead, "", list, OK)
}

// lost makes the last answer one that says so.
func (s *sitting) lost(what string) *sitting {
	s.last().Lost = what
	return s
}

func (s *sitting) via(gateway string) *sitting {
	s.last().Target = gateway
	return s
}

func (s *sitting) of(key string) *sitting {
	s.last().Key = key
	return s
}

// takenAway: s1 has two entries that only a had; b went on from one.
func takenAway() *sitting {
	return newSitting().add("s1", 1, "a", "one").add("s1", 8, "a", "one two").killed()
}

func TestCheckK5(t *testing.T) {
	t.Parallel()
	noToken := newSitting().add("s1", 1, "a", "one")
	noToken.last().TokenBytes = 0
	broken := takenAway().ask("s1", 16, "b", sessionRead, "", "", Fail).lost("users/0/1").read("s1", 17, "b", "one")
	broken.ops[len(broken.ops)-2].TokenBytes = 40
	for name, test := range map[string]struct {
		s         *sitting
		violation string
	}{
		"what it wrote":                         {newSitting().add("s1", 1, "a", "one").read("s1", 1.1, "b", "one").read("s1", 2, "a", "one"), ""},
		"what another one wrote":                {newSitting().add("s1", 1, "a", "one").read("s2", 2, "b", "").read("s2", 3, "b", "one").add("s2", 4, "a", "one two"), ""},
		"older than another one's":              {newSitting().add("s1", 1, "a", "one").add("s1", 2, "a", "one two").read("s2", 3, "b", "one").read("s2", 4, "b", "one"), ""},
		"unknown, and not promised":             {newSitting().add("s1", 1, "a", "one").ask("s1", 2, "a", sessionAppend, "two", "", Unknown).read("s1", 3, "b", "one").read("s1", 4, "a", "one two"), ""},
		"refused reads promise nothing":         {newSitting().add("s1", 1, "a", "one").ask("s1", 2, "b", sessionRead, "", "", Fail).read("s1", 3, "b", "one"), ""},
		"another list":                          {newSitting().add("s1", 1, "a", "one").read("s1", 2, "b", "").of("bob"), ""},
		"across a switch":                       {newSitting().add("s1", 1, "a", "one").closed(5, "a", 1).opened(5.2, "b", 2, "h7").read("s1", 6, "a", "one").add("s1", 7, "b", "one two").read("s1", 7.1, "a", "one two"), ""},
		"lost, and told":                        {takenAway().read("s1", 16, "b", "one").lost("users/0/1").add("s1", 17, "b", "one three").read("s1", 18, "b", "one three"), ""},
		"lost, and told by an append":           {takenAway().add("s1", 16, "b", "one three").lost("users/0/1").read("s1", 17, "a", "one three"), ""},
		"lost, and told with what broke":        {broken, ""},
		"told before the fence is open":         {takenAway().read("s1", 14, "b", "one").lost("users/0/1"), ""},
		"told, though the list has it all":      {takenAway().read("s1", 16, "b", "one two").lost("users/0/1"), ""},
		"lost, and back when it is settled":     {takenAway().read("s1", 16, "b", "one").lost("users/0/1").read("s1", 26, "b", "one two"), ""},
		"of two lists of the bucket":            {takenAway().add("s1", 8.5, "a", "uno").of("bob").read("s1", 16, "b", "one").lost("users/0/1").read("s1", 17, "b", "").of("bob"), ""},
		"lost, seen at the lost site":           {takenAway().read("s3", 21, "a", "one two").read("s3", 22, "b", "one").lost("users/0/1"), ""},
		"not what it wrote":                     {newSitting().add("s1", 1, "a", "one").read("s1", 1.2, "b", ""), "not what it wrote"},
		"not what it wrote, though it saw it":   {newSitting().add("s1", 1, "a", "one").read("s1", 2, "b", "one").read("s1", 3, "b", ""), "not what it wrote"},
		"less than it saw":                      {newSitting().add("s1", 1, "a", "one").read("s2", 2, "a", "one").read("s2", 3, "b", ""), "less than it saw"},
		"less than an append saw":               {newSitting().add("s1", 1, "a", "one").add("s2", 2, "a", "one two").read("s2", 3, "b", "two"), "less than it saw"},
		"another order":                         {newSitting().add("s1", 1, "a", "one").add("s1", 2, "a", "one two").read("s2", 3, "a", "one two").read("s2", 4, "b", "two one"), "less than it saw"},
		"an append does not follow":             {newSitting().add("s1", 1, "a", "one").read("s2", 2, "a", "one").add("s2", 3, "b", "two"), "does not follow what it wrote and saw"},
		"nobody's":                              {newSitting().add("s1", 1, "a", "one").read("s1", 2, "a", "one zero"), "which no client appended"},
		"before it was sent":                    {newSitting().add("s1", 1, "a", "one").read("s1", 2, "a", "one two").add("s2", 5, "a", "one two"), "before that was sent"},
		"twice":                                 {newSitting().add("s1", 1, "a", "one").read("s1", 2, "a", "one one"), "twice"},
		"no token":                              {noToken.read("s1", 2, "a", "one"), "without a token"},
		"lost, and nobody is told any more":     {takenAway().read("s1", 26, "b", "one").add("s1", 27, "b", "one three"), ""},
		"late, and less again":                  {takenAway().read("s1", 26, "b", "one").read("s1", 27, "b", ""), "not what it wrote"},
		"late, but it had been there meanwhile": {takenAway().read("s1", 21, "b", "one two").read("s1", 26, "b", "one"), "not what it wrote"},
		"late, and at the lost site meanwhile":  {takenAway().read("s1", 21, "a", "one two").read("s1", 26, "b", "one"), ""},
		"late, without a failover":              {newSitting().add("s1", 1, "a", "one").read("s1", 26, "b", ""), "not what it wrote"},
		"lost, and not told":                    {takenAway().read("s1", 16, "b", "one"), "not what it wrote"},
		"lost, and an append not told":          {takenAway().add("s1", 16, "b", "one three"), "does not follow what it wrote and saw"},
		"told, and less again":                  {takenAway().read("s1", 16, "b", "one").lost("users/0/1").read("s1", 17, "a", ""), "not what it wrote"},
		"told, shown it again by the lost site's copy, and without it at the owner": {takenAway().read("s1", 16, "b", "one").lost("users/0/1").read("s1", 21, "a", "one two").read("s1", 22, "b", "one"), "not what it wrote"},
		"told without a failover":               {newSitting().add("s1", 1, "a", "one").read("s1", 2, "b", "").lost("users/0/1"), "no failover took that bucket"},
		"told before the failover":              {takenAway().read("s1", 9, "b", "one").lost("users/0/1"), "no failover took that bucket"},
		"told behind a switch":                  {newSitting().add("s1", 1, "a", "one").closed(5, "a", 1).opened(5.2, "b", 2, "h7").read("s1", 6, "b", "").lost("users/0/1"), "no failover took that bucket"},
		"told twice":                            {takenAway().read("s1", 16, "b", "one").lost("users/0/1").read("s1", 17, "b", "").lost("users/0/1"), "all that it had is from after b had opened"},
		"told of what came later":               {takenAway().add("s2", 16, "b", "one three").read("s2", 17, "b", "one").lost("users/0/1"), "all that it had is from after b had opened"},
		"told with nothing to lose":             {takenAway().read("s2", 17, "b", "one").lost("users/0/1"), "it had nothing of that bucket"},
		"told of another bucket":                {takenAway().read("s1", 16, "b", "one").lost("users/3/1"), "it asked for bucket users/0"},
		"told nonsense":                         {takenAway().read("s1", 16, "b", "one").lost("all"), "it asked for bucket users/0"},
		"the lost site's own, and then no more": {takenAway().read("s3", 21, "a", "one two").read("s3", 22, "b", "one"), "less than it saw"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if test.violation == "" || !strings.Contains(test.violation, "twice") {
				test.s.read("z", 90, "a", "") // some read was served
			}
			c, _ := CheckK5(test.s.e, test.s.ops, 1)
			want(t, c, test.violation)
		})
	}
	if c, _ := CheckK5(Evidence{}, nil, 1); c.Passed() {
		t.Error("a check of nothing passes")
	}
	if c, _ := CheckK5(Evidence{}, newSitting().add("s1", 1, "a", "one").ops, 1); c.Passed() {
		t.Error("sessions that read nothing pass")
	}
	if c, _ := CheckK5(Evidence{}, newSitting().add("s1", 1, "a", "one").read("s1", 1.05, "a", "one").ops, 1); c.Error == "" {
		t.Error("a session with two requests at a time passes")
	}
	s := newSitting().add("s1", 1, "a", "one").read("s1", 2, "b", "one").read("s2", 2, "a", "one").via("b/g1").ask("s2", 3, "", sessionRead, "", "", Fail)
	s.last().Status = 503
	_, got := CheckK5(s.e, s.ops, 1)
	if want := (SessionCounts{Sessions: 2, Lists: 1, Appends: 1, Reads: 2, Local: 1, Copies: 1, Refused: 1, TokenBytes: 40}); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// What sessions append and read is held to the check of lists, too: their appends are the owner's, their reads may be older.
func TestCheckLists_Sessions(t *testing.T) {
	t.Parallel()
	tail := func() *sitting {
		s := takenAway()
		s.losses = s.e.Losses
		s.logged(21, "one two", "kept")
		return s
	}
	for name, test := range map[string]struct {
		s         *sitting
		end       string
		violation string
	}{
		"a copy is older":                   {newSitting().add("s1", 1, "a", "one").add("s1", 2, "a", "one two").read("s2", 3, "b", "one"), "one two", ""},
		"an append is missing":              {newSitting().add("s1", 1, "a", "one").read("s2", 3, "b", "one"), "", "acknowledged and is missing"},
		"a copy has another order":          {newSitting().add("s1", 1, "a", "one").add("s1", 2, "a", "one two").read("s2", 3, "b", "two one"), "one two", "is no beginning"},
		"an append went back":               {newSitting().add("s1", 1, "a", "one").add("s1", 2, "a", "one two").add("s2", 3, "a", "three"), "one two", "is no beginning"},
		"the lost site's copy shows it":     {tail().read("s2", 21, "a", "one two"), "one", ""},
		"the taker shows it once it opened": {tail().read("s2", 21, "b", "one two"), "one", "is no beginning"},
		"the lost site's copy, unlogged":    {takenAway().read("s2", 21, "a", "one two"), "one", "is no beginning"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test.s.end(test.end)
			want(t, CheckLists(test.s.ops, test.s.conflicts, test.s.losses), test.violation)
		})
	}
}

// shelf is a list at two sites with a failover between, and sessions whose gateways do what they ought to: a token holds the epoch
// and how long the list was; a copy that does not reach so far is not read; what a failover cut off is told.
type shelf struct {
	random *rand.Rand
	sitting
	at       map[topo.SiteID][]string
	cut      int // how much of epoch 1 there is at b
	taken    bool
	settled  bool
	pending  []string // a's list beyond the cut
	written  bool     // at b, since the takeover
	sessions map[string]*position
	next     int
}

type position struct {
	epoch, length int
	busy          float64
}

func playShelf(seed uint64) *shelf {
	const cut, killed, opened, back = 9.0, 10.0, 15.0, 20.0
	m := &shelf{random: rand.New(rand.NewPCG(seed, 8)), sitting: *newSitting(), at: map[topo.SiteID][]string{}, sessions: map[string]*position{}}
	for now := 0.2; now < 30; now += 0.02 + 0.05*m.random.Float64() {
		dead := now > killed && now < opened
		owner := m.owner()
		switch {
		case !m.taken && now >= opened:
			m.taken, m.cut = true, len(m.at["b"])
			m.pending = slices.Clone(m.at["a"])
		case m.taken && now >= back && !m.settled: // its tail is decided, and then it hears of what happened meanwhile
			m.settled = true
			if len(m.pending) > m.cut {
				decision := "kept"
				if !m.written {
					m.at["b"], decision = m.pending, "applied"
				}
				m.logged(now, strings.Join(m.pending, " "), decision)
			}
			m.at["a"] = slices.Clone(m.at["b"])
		case (now < cut || m.settled) && m.random.IntN(3) > 0: // replication, a little late
			other := map[topo.SiteID]topo.SiteID{"a": "b", "b": "a"}[owner]
			m.at[other] = slices.Clone(m.at[owner])
		}
		m.step(now, dead)
	}
	m.losses = []Loss{{ID: "h1", Lost: "a", Taker: "b", Killed: second(killed), Opened: second(opened), Back: second(back), Settled: second(30.1)}}
	m.e.Losses = m.losses
	m.opened(opened, "b", 2, "h1")
	m.end(strings.Join(m.at["b"], " "))
	return m
}

func (m *shelf) owner() topo.SiteID {
	if m.taken {
		return "b"
	}
	return "a"
}

// step lets some session do something.
func (m *shelf) step(now float64, dead bool) {
	name := fmt.Sprintf("s%d", m.random.IntN(4))
	p := m.sessions[name]
	if p == nil {
		p = &position{epoch: 1}
		m.sessions[name] = p
	}
	if now < p.busy {
		return
	}
	p.busy = now + 0.11
	write := m.random.IntN(4) == 0 && (!m.taken || m.random.IntN(10) == 0)
	asked := []topo.SiteID{"a", "b"}[m.random.IntN(2)]
	site := m.owner()
	lost := m.taken && p.epoch == 1 && p.length > m.cut
	if reach := len(m.at[asked]); !write && !lost && reach >= p.length && (asked == "b" || !m.taken || m.settled) {
		site = asked
	}
	if dead && (site == "a" || asked == "a") {
		m.ask(name, now, "", map[bool]string{true: sessionAppend, false: sessionRead}[write], m.entry(write), "", Fail).via(string(asked) + "/g1")
		return
	}
	value := m.entry(write)
	if write {
		m.at[site] = append(slices.Clone(m.at[site]), value)
		m.written = m.written || m.taken
	}
	m.ask(name, now, site, map[bool]string{true: sessionAppend, false: sessionRead}[write], value, strings.Join(m.at[site], " "), OK).via(string(asked) + "/g1")
	if write && m.random.IntN(10) == 0 { // the answer is lost
		o := m.last()
		o.Outcome, o.List, o.TokenBytes, o.Status = Unknown, nil, 0, 0
		return
	}
	if lost {
		m.lost("users/0/1")
		*p = position{2, len(m.at[site]), p.busy}
		return
	}
	if m.taken && site == "b" {
		p.epoch = 2
	}
	p.length = max(p.length, len(m.at[site]))
}

func (m *shelf) entry(write bool) string {
	if !write {
		return ""
	}
	m.next++
	return fmt.Sprintf("v%d", m.next)
}

// Right histories pass, spoilt ones mostly do not.
func TestCheckK5_RandomFailovers(t *testing.T) {
	t.Parallel()
	told, tails, applied, caught, mutated := 0, 0, 0, map[string]int{}, map[string]int{}
	for seed := range uint64(200) {
		m := playShelf(seed)
		k5, _ := CheckK5(m.e, m.ops, 1)
		for _, c := range []Check{k5, CheckLists(m.ops, m.conflicts, m.losses)} {
			if !c.Passed() {
				t.Fatalf("seed %d: %s %s %s\n%s", seed, c.Name, c.Result(), c.Error, strings.Join(c.Examples, "\n"))
			}
		}
		for i := range m.ops {
			if m.ops[i].Lost != "" {
				told++
			}
		}
		for _, r := range m.conflicts {
			tails++
			if r.Decision == "applied" {
				applied++
			}
		}
		random := rand.New(rand.NewPCG(seed, 9))
		for name, spoil := range sessionMutations {
			ops := slices.Clone(m.ops)
			if !spoil(random, ops) {
				continue
			}
			mutated[name]++
			if c, _ := CheckK5(m.e, ops, 1); c.Violated > 0 {
				caught[name]++
			}
		}
	}
	t.Logf("%d times lost, %d tails, %d of them applied", told, tails, applied)
	if told < 100 || applied == 0 || applied == tails {
		t.Errorf("%d times lost, %d tails, %d applied: the machine shows too little", told, tails, applied)
	}
	for name := range sessionMutations {
		t.Logf("%s: caught %d of %d", name, caught[name], mutated[name])
		if mutated[name] < 20 || caught[name] < mutated[name] {
			t.Errorf("%s: caught %d of %d", name, caught[name], mutated[name])
		}
	}
}

// sessionMutations spoil a history and tell whether they found something to spoil.
var sessionMutations = map[string]func(*rand.Rand, []Operation) bool{
	"a read is older than the one before": func(r *rand.Rand, ops []Operation) bool {
		return spoilAnswer(r, ops, func(o, before *Operation) bool {
			if o.Op != sessionRead || o.Lost != "" || len(before.List) == 0 {
				return false
			}
			o.List = before.List[:len(before.List)-1]
			return true
		})
	},
	"nothing is said of what was lost": func(r *rand.Rand, ops []Operation) bool {
		return spoilAnswer(r, ops, func(o, before *Operation) bool {
			if o.Lost == "" || startsWith(o.List, before.List) {
				return false
			}
			o.Lost = ""
			return true
		})
	},
	"a loss is told without one": func(r *rand.Rand, ops []Operation) bool {
		return spoilAnswer(r, ops, func(o, _ *Operation) bool {
			if o.Returned().After(second(10)) {
				return false
			}
			o.Lost = "users/0/1"
			return true
		})
	},
	"an append's answer forgets an entry": func(r *rand.Rand, ops []Operation) bool {
		return spoilAnswer(r, ops, func(o, before *Operation) bool {
			if o.Op != sessionAppend || o.Lost != "" || len(before.List) == 0 {
				return false
			}
			o.List = o.List[1:]
			return true
		})
	},
}

// spoilAnswer tries answers of sessions, from a random one on, with the session's answer before each.
func spoilAnswer(r *rand.Rand, ops []Operation, spoil func(o, before *Operation) bool) bool {
	first := r.IntN(len(ops))
	for i := range ops {
		i = (first + i) % len(ops)
		if ops[i].Session == "" || ops[i].Outcome != OK {
			continue
		}
		for j := i - 1; j >= 0; j-- {
			if ops[j].Session == ops[i].Session && ops[j].Outcome == OK {
				if spoil(&ops[i], &ops[j]) {
					return true
				}
				break
			}
		}
	}
	return false
}
