package assess

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
)

// Simulation bounds the second engine.
type Simulation struct {
	Seed    int
	Width   float64 // wanted half-width of the 99 % interval, relative; default 15 %
	Samples int     // at most, for one service; default 400 000
	// Services to look at; none means all.
	Services []string
}

const (
	z99    = 2.5758293035489004
	pilots = 5    // rounds in which the sampling distribution is learnt
	pilot  = 3000 // states drawn in each
	batch  = 4000
	// shares of states that are drawn without any bias, which bounds the weights, and with all failures likelier
	sober, broad = .1, .4
)

// Simulate estimates, for every service of a plan, the share of time in which it can be served at none of its sites. It
// draws states of the whole estate (components, single servers, shared causes; each up or down in its steady state) and
// asks the model itself what still works: no fault tree, no cut sets. Failures are drawn more often than they happen,
// by a distribution learnt from pilots (cross-entropy method, Rubinstein 1997), and weighed back.
func Simulate(e *Estate, plan Plan, o Simulation) (map[string]Estimate, error) {
	if o.Width == 0 {
		o.Width = .15
	}
	if o.Samples == 0 {
		o.Samples = 400_000
	}
	if o.Width <= 0 || o.Samples < batch {
		return nil, fmt.Errorf("simulation with width %v and %d samples makes no sense", o.Width, o.Samples)
	}
	if len(o.Services) == 0 {
		o.Services = slices.Sorted(maps.Keys(plan))
	}
	out := make(map[string]Estimate, len(o.Services))
	for _, name := range o.Services {
		w := newWorld(e, plan, name)
		s := &sampler{world: w, rng: rand.New(rand.NewPCG(uint64(o.Seed), e.rng(name).Uint64()))}
		est := s.estimate(o)
		est.Seed = o.Seed
		out[name] = est
	}
	return out, nil
}

// world is one drawn state of everything that a service hangs on, and the question whether the service works in it.
type world struct {
	e       *Estate
	plan    Plan
	service string
	index   map[string]int // event → its place
	q       []float64      // unavailability of each
	down    []bool

	serverOf map[string][]int // service@site → its servers
	memo     map[string]bool
}

func newWorld(e *Estate, plan Plan, service string) *world {
	w := &world{e: e, plan: plan, service: service, index: map[string]int{}, serverOf: map[string][]int{}, memo: map[string]bool{}}
	w.works() // names every event once, all of them up
	w.gather(service, map[string]bool{})
	w.down = make([]bool, len(w.q))
	return w
}

// event returns the place of an event, which it makes at the first call.
func (w *world) event(name string, every, lasts Number) int {
	i, known := w.index[name]
	if !known {
		i = len(w.q)
		w.index[name] = i
		q, _ := steady(every.Mean(), lasts.Mean())
		w.q = append(w.q, q)
	}
	return i
}

func (w *world) isDown(i int) bool { return i < len(w.down) && w.down[i] }

// gather names every event that may matter: evaluation stops at the first reason to be down, naming must not.
func (w *world) gather(service string, seen map[string]bool) {
	if seen[service] {
		return
	}
	seen[service] = true
	for _, site := range w.plan[service].Sites {
		w.servers(service, site)
		for _, name := range w.e.Sites[site].Needs.Names() {
			w.component(name)
		}
	}
	for _, l := range w.e.Links {
		for _, name := range l.Needs.Names() {
			w.component(name)
		}
	}
	for _, s := range w.e.Shared {
		w.event(causePrefix+s.Name, s.Every, s.Lasts)
	}
	for _, c := range w.e.Services[service].Calls {
		if !c.Optional {
			w.gather(c.To, seen)
		}
	}
}

func (w *world) component(name string) bool {
	c := w.e.Components[name]
	return w.isDown(w.event(name, c.Every, c.Lasts))
}

func (w *world) cause(s *Shared) bool {
	return w.isDown(w.event(causePrefix+s.Name, s.Every, s.Lasts))
}

// servers counts how many of a group work, one by one.
func (w *world) servers(service, site string) (working int) {
	key := serversAt(service, site)
	group, known := w.serverOf[key]
	s := w.e.Services[service].Servers
	if !known {
		for i := range int(math.Round(s.Count.Mean())) {
			group = append(group, w.event(fmt.Sprintf("%s#%d", key, i), s.Every, s.Lasts))
		}
		w.serverOf[key] = group
	}
	for _, i := range group {
		if !w.isDown(i) {
			working++
		}
	}
	return working
}

// works asks for the service in the drawn state.
func (w *world) works() bool {
	clear(w.memo)
	return slices.ContainsFunc(w.plan[w.service].Sites, func(site string) bool { return w.upAt(w.service, site) })
}

func (w *world) siteWorks(site string) bool {
	key := sitePrefix + site
	v, known := w.memo[key]
	if !known {
		v = w.e.Sites[site].Needs.Works(func(name string) bool { return !w.component(name) })
		for _, s := range w.e.Shared {
			if v && strikes(s.Hits.Sites, site) && w.cause(s) {
				v = false
			}
		}
		w.memo[key] = v
	}
	return v
}

func (w *world) upAt(service, site string) bool {
	key := downAt(service, site)
	if v, known := w.memo[key]; known {
		return v
	}
	s := w.e.Services[service]
	need := min(int(math.Round(s.Servers.Need.Mean())), int(math.Round(s.Servers.Count.Mean())))
	v := w.siteWorks(site) && w.servers(service, site) >= need
	for _, cause := range w.e.Shared {
		v = v && !(strikes(cause.Hits.Services, service) && w.cause(cause))
	}
	for _, c := range s.Calls {
		v = v && (c.Optional || slices.ContainsFunc(w.plan[c.To].Sites, func(to string) bool { return w.joined(site, to) && w.upAt(c.To, to) }))
	}
	w.memo[key] = v
	return v
}

func (w *world) joined(from, to string) bool {
	if from == to {
		return true
	}
	return slices.ContainsFunc(w.e.Links, func(l *Link) bool {
		return slices.Contains(l.Between, from) && slices.Contains(l.Between, to) && l.Needs.Works(func(name string) bool { return !w.component(name) })
	})
}

// sampler draws states of a world from a mixture: mostly from a bias that was learnt, sometimes with every failure made
// more likely, so that no way to fail is missed, and sometimes as they happen, so that no weight is large.
type sampler struct {
	*world
	rng    *rand.Rand
	wide   []float64 // probability with which each event is drawn as down, not learnt
	learnt []float64
}

// logRatio is the logarithm of how much more often the drawn state comes from bias than it happens.
func (s *sampler) logRatio(bias []float64) float64 {
	sum := 0.0
	for i, down := range s.down {
		switch q := s.q[i]; {
		case bias[i] == q:
		case down:
			sum += math.Log(bias[i] / q)
		default:
			sum += math.Log1p(-bias[i]) - math.Log1p(-q)
		}
	}
	return sum
}

// draw fills in a state and returns its weight: how much more often it happens than it is drawn.
func (s *sampler) draw() float64 {
	from := s.learnt
	switch u := s.rng.Float64(); {
	case u < sober:
		from = s.q
	case u < sober+broad:
		from = s.wide
	}
	for i, p := range from {
		s.down[i] = s.rng.Float64() < p
	}
	return 1 / (sober + broad*math.Exp(s.logRatio(s.wide)) + (1-sober-broad)*math.Exp(s.logRatio(s.learnt)))
}

// learn finds a bias under which the service fails often, in the ways in which it most probably does.
func (s *sampler) learn() {
	s.wide = slices.Clone(s.q)
	start := 2.5 / float64(len(s.q))
	for i, q := range s.q {
		s.wide[i] = max(q, min(.5, start))
	}
	s.learnt = slices.Clone(s.wide)
	for range pilots {
		sums, total, hits := make([]float64, len(s.q)), 0.0, 0
		for range pilot {
			w := s.draw()
			if s.works() {
				continue
			}
			hits++
			total += w
			for i, down := range s.down {
				if down {
					sums[i] += w
				}
			}
		}
		if hits < 20 { // too rare to learn from: everything fails more often
			for i := range s.wide {
				s.wide[i] = min(.5, 2*s.wide[i])
			}
			copy(s.learnt, s.wide)
			continue
		}
		for i := range s.learnt {
			s.learnt[i] = .3*s.learnt[i] + .7*min(.95, max(s.q[i], sums[i]/total))
		}
	}
}

// estimate draws until the interval is as narrow as wanted.
func (s *sampler) estimate(o Simulation) Estimate {
	out := Estimate{Method: "states drawn with learnt bias and weighed back (cross-entropy)"}
	if len(s.q) == 0 {
		return out
	}
	s.learn()
	n, sum, squares := 0, 0.0, 0.0
	for n < o.Samples {
		for range batch {
			w := s.draw()
			if !s.works() {
				out.Hits++
				sum += w
				squares += w * w
			}
		}
		n += batch
		mean := sum / float64(n)
		half := z99 * math.Sqrt(max(0, squares/float64(n)-mean*mean)/float64(n))
		out.Mean, out.Low, out.High = mean, max(0, mean-half), mean+half
		if n >= 3*batch && out.Hits >= 300 && half <= o.Width*mean {
			break
		}
	}
	out.Samples = n
	return out
}
