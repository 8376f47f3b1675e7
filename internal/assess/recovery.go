package assess

import (
	"math"
	"math/rand/v2"
	"slices"
)

// draws is how many times a distribution is drawn for its quantiles: enough for a P95 within about 2 %.
const draws = 4000

// steps lists a recovery's steps in their order.
func (r *Recovery) steps() []struct {
	name string
	n    Number
} {
	return []struct {
		name string
		n    Number
	}{
		{"detect", r.Detect}, {"decide", r.Decide}, {"fence", r.Fence}, {"promote", r.Promote},
		{"scale", r.Scale}, {"shift", r.Shift}, {"warm", r.Warm}, {"verify", r.Verify},
	}
}

// meanTime is the mean of the whole recovery, for a service whose data takes so long to restore.
func (r *Recovery) meanTime(restore float64) float64 {
	sum := restore
	for _, s := range r.steps() {
		sum += s.n.Mean()
	}
	return sum
}

// draw is one recovery.
func (r *Recovery) draw(rng *rand.Rand, restore Number) float64 {
	sum := 0.0
	if restore.Set {
		sum = restore.At(rng.Float64())
	}
	for _, s := range r.steps() {
		sum += s.n.At(rng.Float64())
	}
	return sum
}

// restoreOf is the time to restore a service's data, where its pattern has to.
func (s *Service) restoreOf(p Pattern) Number {
	if s.Data == nil || p != BackupRestore {
		return Number{}
	}
	return s.Data.Restore
}

// rng is a source of randomness that belongs to a name, so that adding a service changes no other one's numbers.
func (e *Estate) rng(name string) *rand.Rand {
	h := uint64(14695981039346656037)
	for _, b := range []byte(name) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(uint64(e.Seed), h))
}

// quantiles sorts draws.
func quantiles(values []float64, unit Unit) Quantiles {
	slices.Sort(values)
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	at := func(q float64) float64 { return values[min(len(values)-1, int(math.Ceil(q*float64(len(values))))-1)] }
	return Quantiles{P50: at(.5), P95: at(.95), Mean: sum / float64(len(values)), Unit: unit}
}

// recovery is what the loss of the serving site costs in time and data. Under pattern single it is the outage itself.
func (e *Estate) recovery(plan Plan, service string, book Book) (RecoveryTime, error) {
	p, s := plan[service], e.Services[service]
	rng := e.rng("recovery " + service)
	times := make([]float64, draws)
	var out RecoveryTime
	what := "time from the loss of the serving site to service again at another, for " + service
	d := Derivation{ID: service + ".rto", What: what, Unit: Duration}
	if p.Pattern == Single {
		down, perSecond, inputs, err := e.siteLoss(plan, service, p.Sites[0])
		if err != nil {
			return out, err
		}
		mean := 0.0
		if perSecond > 0 {
			mean = down / perSecond
		}
		for i := range times {
			times[i] = mean * rng.ExpFloat64()
		}
		d.Method = "there is no other site: the outage itself, exponential with the mean that unavailability ÷ frequency gives"
		d.Inputs = inputs
	} else {
		r := e.Recovery[p.Pattern]
		restore := s.restoreOf(p.Pattern)
		for i := range times {
			times[i] = r.draw(rng, restore)
		}
		d.Method = "the sum of its steps, each drawn from its range (triangular); quantiles of 4000 draws"
		for _, step := range r.steps() {
			out.Steps = append(out.Steps, Part{Name: step.name, Value: step.n.Mean(), Unit: Duration})
			d.Inputs = append(d.Inputs, inputOf(step.n))
		}
		if restore.Set {
			out.Steps = append(out.Steps, Part{Name: "restore", Value: restore.Mean(), Unit: Duration})
			d.Inputs = append(d.Inputs, inputOf(restore))
		}
		d.Parts = out.Steps
	}
	out.RTO = quantiles(times, Duration)
	out.RTO.ID, d.Value = d.ID, out.RTO.P95
	book.Note(d)
	out.RPO = e.lost(plan, service, book)
	if w := s.Wants; w.RTO.Set || w.RPO.Set {
		met := (!w.RTO.Set || out.RTO.P95 <= w.RTO.Mean()) && (!w.RPO.Set || out.RPO.P95 <= w.RPO.Mean())
		out.Met = &met
	}
	return out, nil
}

// lost is how much of the newest data is gone when the serving site is.
func (e *Estate) lost(plan Plan, service string, book Book) Quantiles {
	p, s := plan[service], e.Services[service]
	d := Derivation{ID: service + ".rpo", What: "newest writes of " + service + " that are gone with a lost site", Unit: Duration}
	rng := e.rng("lost " + service)
	times := make([]float64, draws)
	switch {
	case s.Data == nil:
		d.Method = "it keeps no data"
	case p.Pattern == Single || p.Pattern == BackupRestore:
		d.Method = "the loss falls anywhere between two backups: uniform over the interval"
		d.Inputs = []Input{inputOf(s.Data.Backup)}
		for i := range times {
			times[i] = rng.Float64() * s.Data.Backup.At(rng.Float64())
		}
	case p.Pattern == SameCity:
		d.Method = "replicas of one city are synchronous: nothing that was acknowledged"
	default:
		lag := e.Recovery[p.Pattern].Lag
		behind := e.backlog(p, s)
		d.Method = "what replication is behind at the peak; where changes outgrow the line, the backlog of an hour is added"
		d.Inputs = []Input{inputOf(lag), inputOf(s.Data.Changes)}
		for i := range times {
			times[i] = lag.At(rng.Float64()) + behind
		}
	}
	q := quantiles(times, Duration)
	q.ID, d.Value = d.ID, q.P95
	book.Note(d)
	return q
}

// backlog is the lag in seconds that an hour at the peak adds where a line is too thin.
func (e *Estate) backlog(p Placement, s *Service) float64 {
	worst := 0.0
	for _, other := range p.Sites[1:] {
		thin := 0.0
		for _, l := range e.Links {
			if slices.Contains(l.Between, p.Sites[0]) && slices.Contains(l.Between, other) {
				thin += l.Bandwidth.Mean()
			}
		}
		if changes := s.Data.Changes.Mean(); thin > 0 && changes > thin {
			worst = max(worst, hour*(changes/thin-1))
		}
	}
	return worst
}

// siteLoss is the steady state of "the service is down at this site".
func (e *Estate) siteLoss(plan Plan, service, site string) (down, perSecond float64, inputs []Input, err error) {
	b := e.newTree(plan)
	b.at(service, site)
	b.m.Top = downAt(service, site)
	down, perSecond, err = probability(b, service)
	return down, perSecond, e.inputsOf(b.m), err
}
