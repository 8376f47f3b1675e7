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
	z99   = 2.5758293035489004
	batch = 4000
	// shares of states that are drawn without any bias, which bounds the weights, and with all failures likelier
	sober, broad = .1, .2
)

// Simulate estimates, for every service of a plan, the share of time in which it can be served at none of its sites. It
// draws states of the whole estate (components, single servers or groups of them that share crews, shared causes; each up
// or down in its steady state) and asks the model itself what still works: no fault tree and no cut set of the first
// engine is looked at. Failures are drawn more often than they happen, around ways to fail that pilots come across, and
// weighed back.
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
		s := &sampler{world: newWorld(e, plan, name), rng: rand.New(rand.NewPCG(uint64(o.Seed), e.rng(name).Uint64()))}
		est := s.estimate(o)
		est.Seed = o.Seed
		out[name] = est.orRefused()
	}
	return out, nil
}

// sampler draws states of a world from a mixture: mostly states in which one of the ways to fail that pilots came across
// is there, sometimes with every failure made more likely, so that no way to fail is missed, and sometimes as they
// happen, so that no weight is large.
type sampler struct {
	*world
	rng  *rand.Rand
	q    []float64 // probability with which each atom is down
	wide bias
	ways ways
}

// bias is a distribution to draw from, with the logarithms of how much more often each event is drawn as it is than it
// happens.
type bias struct {
	p          []float64
	down, up   []float64
	allWorking float64 // Σ up: the state in which nothing fails
}

func (s *sampler) biased(p []float64) bias {
	b := bias{p: p, down: make([]float64, len(p)), up: make([]float64, len(p))}
	for i, q := range s.q {
		if p[i] != q {
			b.down[i], b.up[i] = math.Log(p[i]/q), math.Log1p(-p[i])-math.Log1p(-q)
		}
		b.allWorking += b.up[i]
	}
	return b
}

// draw fills in a state and returns its weight: how much more often it happens than it is drawn.
func (s *sampler) draw() float64 {
	from, given := s.q, (*wayDown)(nil)
	known := 1 - sober - broad // share of states that are drawn around known ways
	if s.ways.total == 0 {
		known = 0
	}
	switch u := s.rng.Float64(); {
	case u < known:
		given = s.ways.pick(s.rng)
	case u < 1-sober:
		from = s.wide.p
	}
	wide := s.wide.allWorking
	for i, p := range from {
		s.down[i] = s.rng.Float64() < p
	}
	if given != nil {
		s.ways.set(given, s.down, s.rng)
	}
	for i, down := range s.down {
		if down {
			wide += s.wide.down[i] - s.wide.up[i]
		}
	}
	w := sober + (1-sober-known)*math.Exp(wide)
	if known > 0 {
		w += known * s.ways.in(s.down) / s.ways.total
	}
	return 1 / w
}

// estimate draws until the interval is as narrow as wanted.
func (s *sampler) estimate(o Simulation) Estimate {
	out := Estimate{Method: "states drawn around ways to fail that were found, and weighed back"}
	if len(s.atoms) == 0 {
		return out
	}
	for _, a := range s.atoms {
		s.q = append(s.q, a.share())
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
