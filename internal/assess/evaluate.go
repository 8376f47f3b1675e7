package assess

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/fault"
)

// shape is what hangs on no number of an estate: who calls whom, and the fault trees of the plans that were looked at.
// It is found once, and shared by everything that varies numbers.
type shape struct {
	services, sites []string // in order
	service, site   map[string]int
	needs           [][]int // service → itself and all that it calls, directly or not
	hard            [][]int // the same without optional calls
	users           [][]int // service → itself and all that call it, directly or not

	placed     [][]*spot // service → what it could be, once asked for
	spots      []*spot
	spotOf     map[string]uint16
	sets       map[string]uint16
	structures map[string]*structure
	alone      map[[2]*structure][]bool
}

// spot is a placement with what is often asked of it. Sites are named by their index; lost ones by index + 1, 0 for
// none.
type spot struct {
	Placement
	id       uint16
	at       []int
	set      uint16      // the same for the same sites in any order: fault trees ask no more
	servedBy uint16      // the same where the same sites serve in the same way: latencies ask no more
	level    uint8       // of its pattern: its index in Patterns
	carries  [][]float64 // [lost][site]: share of the service's cores in use
	serves   [][]float64 // [lost][site]: share of its users
}

// evaluator answers questions about plans of one estate and remembers what plans have in common: most that are compared
// differ in few services.
type evaluator struct {
	*Estate
	*shape
	today     *arrangement
	ways      map[string][]interruption
	briefs    map[string]brief
	recovered map[string]*recoveryTimes
	felt      map[string][]felt
	latencies map[string]*spectrum
	levelsOf  [][]level
	events    map[string]fault.Event
	full      map[*arrangement]*loads // where how full sites are varies

	// With one input varied, what does not hang on it is asked of the evaluator with the numbers as they are.
	base   *evaluator
	varied *variation
}

// arrangement is a plan by index: the spot of every service.
type arrangement struct {
	at   []uint16
	load *loads // found when first asked for
}

func newEvaluator(e *Estate) *evaluator {
	v := &evaluator{Estate: e, shape: newShape(e)}
	v.forget()
	v.today = v.arrange(e.Today())
	return v
}

func newShape(e *Estate) *shape {
	h := &shape{services: slices.Sorted(maps.Keys(e.Services)), sites: slices.Sorted(maps.Keys(e.Sites)), service: map[string]int{}, site: map[string]int{},
		spotOf: map[string]uint16{}, sets: map[string]uint16{}, structures: map[string]*structure{}, alone: map[[2]*structure][]bool{}}
	for i, name := range h.services {
		h.service[name] = i
	}
	for i, name := range h.sites {
		h.site[name] = i
	}
	h.users, h.placed = make([][]int, len(h.services)), make([][]*spot, len(h.services))
	for i := range h.services {
		h.needs = append(h.needs, h.closure(e, i, true))
		h.hard = append(h.hard, h.closure(e, i, false))
		for _, callee := range h.needs[i] {
			h.users[callee] = append(h.users[callee], i)
		}
	}
	return h
}

func (h *shape) closure(e *Estate, service int, optional bool) []int {
	into := map[int]bool{}
	var walk func(i int)
	walk = func(i int) {
		if into[i] {
			return
		}
		into[i] = true
		for _, c := range e.Services[h.services[i]].Calls {
			if optional || !c.Optional {
				walk(h.service[c.To])
			}
		}
	}
	walk(service)
	return slices.Sorted(maps.Keys(into))
}

// forget drops everything that hangs on numbers.
func (v *evaluator) forget() {
	v.ways, v.briefs, v.recovered, v.latencies = map[string][]interruption{}, map[string]brief{}, map[string]*recoveryTimes{}, map[string]*spectrum{}
	v.felt = map[string][]felt{}
	v.events, v.full = map[string]fault.Event{}, map[*arrangement]*loads{}
	if v.base != nil && !v.varied.loads {
		v.levelsOf = v.base.levelsOf
		return
	}
	v.levelsOf = nil
	for _, name := range v.services {
		v.levelsOf = append(v.levelsOf, v.levels(v.Services[name]))
	}
}

func (p Placement) key() string {
	return string(p.Pattern) + ":" + strings.Join(p.Sites, ",") + ":" + p.Quorum
}

func (p Placement) String() string {
	return fmt.Sprintf("%s at %s", p.Pattern, strings.Join(p.Sites, " and "))
}

// spotFor finds or makes the spot of a placement.
func (h *shape) spotFor(p Placement) *spot {
	key := p.key()
	if id, known := h.spotOf[key]; known {
		return h.spots[id]
	}
	s := &spot{Placement: p, id: uint16(len(h.spots)), level: uint8(rank(p.Pattern))}
	for _, name := range p.Sites {
		s.at = append(s.at, h.site[name])
	}
	set := strings.Join(slices.Sorted(slices.Values(p.Sites)), ",")
	if _, known := h.sets[set]; !known {
		h.sets[set] = uint16(len(h.sets))
	}
	s.set = h.sets[set]
	answers := key
	if !active(p.Pattern) {
		answers = "serves " + p.Sites[0]
	}
	if _, known := h.sets[answers]; !known {
		h.sets[answers] = uint16(len(h.sets))
	}
	s.servedBy = h.sets[answers]
	for lost := range len(h.sites) + 1 {
		name := ""
		if lost > 0 {
			name = h.sites[lost-1]
		}
		carries, serves := make([]float64, len(h.sites)), make([]float64, len(h.sites))
		for _, i := range s.at {
			carries[i], serves[i] = p.carries(h.sites[i], name), p.serves(h.sites[i], name)
		}
		s.carries, s.serves = append(s.carries, carries), append(s.serves, serves)
	}
	h.spots, h.spotOf[key] = append(h.spots, s), s.id
	return s
}

func (v *evaluator) arrange(p Plan) *arrangement {
	a := &arrangement{at: make([]uint16, len(v.services))}
	for i, name := range v.services {
		a.at[i] = v.spotFor(p[name]).id
	}
	return a
}

func (v *evaluator) plan(a *arrangement) Plan {
	out := make(Plan, len(a.at))
	for i, id := range a.at {
		out[v.services[i]] = v.spots[id].Placement
	}
	return out
}

func (h *shape) spot(a *arrangement, service int) *spot { return h.spots[a.at[service]] }

// with returns a copy in which one service runs differently.
func (a *arrangement) with(service int, s *spot) *arrangement {
	out := &arrangement{at: slices.Clone(a.at)}
	out.at[service] = s.id
	return out
}

// brief is what comparing plans needs of a service.
type brief struct {
	downtime, loss, month float64
	perMinute             float64 // of loss, for one unit more of the service's revenue a minute: loss is linear in it
}

// structureKey names what the fault trees of a service hang on.
func (h *shape) structureKey(key []byte, a *arrangement, service int) []byte {
	key = binary.LittleEndian.AppendUint16(key, uint16(service))
	for _, i := range h.hard[service] {
		key = binary.LittleEndian.AppendUint16(key, h.spot(a, i).set)
	}
	return key
}

// briefKey names what a brief hangs on: where and how all that it needs runs, and what it calls besides, and how crowded
// its sites are, if they are.
func (v *evaluator) briefKey(key []byte, a *arrangement, service int) []byte {
	key = v.hardKey(key, a, service)
	for _, c := range v.Services[v.services[service]].Calls {
		key = binary.LittleEndian.AppendUint16(key, a.at[v.service[c.To]])
	}
	return v.loads(a).crowdKey(key, v.spot(a, service))
}

// brief of one service under a plan.
func (v *evaluator) brief(a *arrangement, service int) (brief, error) {
	if v.base != nil && !v.varied.touches(v, a, service) {
		return v.base.brief(a, service)
	}
	var space [128]byte
	key := v.briefKey(space[:0], a, service)
	if b, known := v.briefs[string(key)]; known {
		return b, nil
	}
	ways, err := v.interruptions(a, service)
	if err != nil {
		return brief{}, err
	}
	var b brief
	for i := range ways {
		b.downtime += ways[i].perYear * ways[i].share * ways[i].expected(v.recoveryFrom(a, service, &ways[i]))
	}
	over := v.overload(a, service)
	b.downtime = min(year, b.downtime+over.unserved)
	loss := v.loss(a, service, ways, over, false)
	b.loss, b.perMinute = loss.total, loss.perMinute
	b.month = v.month(a, service, nil)
	v.briefs[string(key)] = b
	return b, nil
}

// change is what a plan gains over another one in a year: for the services that moved and all that use them.
type change struct {
	saves, month, once float64
	perMinute          float64 // of saves, for one unit more of the leading service's revenue a minute
}

// amortised is over how many years getting there is spread.
const amortised = 3

// yearly is what the change costs in a year.
func (c change) yearly() float64 { return 12*c.month + c.once/amortised }

func (c change) net() float64 { return c.saves - c.yearly() }

// moved lists the services that run differently in two plans.
func moved(from, to *arrangement) []int {
	var out []int
	for i := range to.at {
		if from.at[i] != to.at[i] {
			out = append(out, i)
		}
	}
	return out
}

// affected lists the services that a change may touch: what moves, all that use it, and the neighbours whose site
// becomes more or less crowded.
func (v *evaluator) affected(from, to *arrangement) []int {
	in := make([]bool, len(v.services))
	for _, i := range moved(from, to) {
		for _, user := range v.users[i] {
			in[user] = true
		}
	}
	if before, after := v.loads(from), v.loads(to); before.crowded || after.crowded {
		for i := range v.services {
			in[i] = in[i] || before.differs(after, v.spot(from, i))
		}
	}
	var out []int
	for i, yes := range in {
		if yes {
			out = append(out, i)
		}
	}
	return out
}

// changeOf is what a plan gains over another for those that it affects; lead is the service whose revenue perMinute
// speaks of.
func (v *evaluator) changeOf(from, to *arrangement, lead int, affected []int) (change, error) {
	c := change{month: v.sitesMonth(to) - v.sitesMonth(from)}
	for _, i := range affected {
		before, err := v.brief(from, i)
		if err != nil {
			return c, err
		}
		after, err := v.brief(to, i)
		if err != nil {
			return c, err
		}
		c.saves += before.loss - after.loss
		c.month += after.month - before.month
		if i == lead {
			c.perMinute = before.perMinute - after.perMinute
		}
	}
	for _, i := range moved(from, to) {
		c.once += v.work(v.spot(to, i))
	}
	for _, site := range v.newSites(from, to) {
		c.once += v.Sites[v.sites[site]].BuildOnce.Mean()
	}
	return c, nil
}
