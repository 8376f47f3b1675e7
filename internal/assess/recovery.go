package assess

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
)

const (
	draws  = 4000 // of a recovery, for its quantiles: a P95 within about 2 %
	sample = 512  // where an integral over it is wanted,
	fewOf  = 16   // for which the middles of their sixteenths stand
)

// steps lists a recovery's steps in their order.
func (r *Recovery) steps() []struct {
	name string
	n    *Number
} {
	return []struct {
		name string
		n    *Number
	}{
		{"detect", &r.Detect}, {"decide", &r.Decide}, {"fence", &r.Fence}, {"promote", &r.Promote},
		{"scale", &r.Scale}, {"shift", &r.Shift}, {"warm", &r.Warm}, {"verify", &r.Verify},
	}
}

// recoveryTimes is how long a recovery takes, drawn.
type recoveryTimes struct {
	few      []float64 // that stand for all, in order; their mean is that of all, exactly
	mean     float64
	coverage float64

	draw func(rng *rand.Rand) float64
	all  []float64 // once asked for
}

// drawn are many recoveries, in order.
func (r *recoveryTimes) drawn() []float64 {
	if r.all == nil {
		rng := rand.New(rand.NewPCG(1, 2))
		for range draws {
			r.all = append(r.all, r.draw(rng))
		}
		slices.Sort(r.all)
	}
	return r.all
}

func (r *recoveryTimes) quantiles() Quantiles {
	q := quantiles(r.drawn(), Duration)
	q.Mean = r.mean
	return q
}

// waited is the recovery where there is none.
var waited = &recoveryTimes{coverage: 1}

// restoreOf is the time to restore a service's data, where its pattern has to.
func (s *Service) restoreOf(p Pattern) Number {
	if s.Data == nil || p != BackupRestore {
		return Number{}
	}
	return s.Data.Restore
}

// rto is how long the loss of the serving site is felt: as long as a recovery, or under pattern single the outage.
func (v *evaluator) rto(a *arrangement, service int) Quantiles {
	if v.spot(a, service).Pattern == Single {
		return v.outages(a, service)
	}
	return v.recoveryOf(a, v.servingLoss(a, service)).quantiles()
}

// servingLoss lists the services whose recoveries one waits for when its first site is lost; its own first.
func (v *evaluator) servingLoss(a *arrangement, service int) []int {
	for _, f := range v.losses(a, service) {
		if f.site == v.spot(a, service).Sites[0] {
			return f.waits
		}
	}
	return []int{service}
}

// recoveryFrom is the recovery that an interruption waits for.
func (v *evaluator) recoveryFrom(a *arrangement, service int, i *interruption) *recoveryTimes {
	if i.waits || len(i.behind) == 0 {
		return waited
	}
	return v.recoveryOf(a, i.behind)
}

// recoveryOf is the recovery of services that are lost together: over when the slowest is. Services of one pattern go
// through its steps together, and restore their data side by side.
func (v *evaluator) recoveryOf(a *arrangement, services []int) *recoveryTimes {
	if v.base != nil && !slices.ContainsFunc(services, func(m int) bool { return v.varied.touchesRecovery(v.spot(a, m).Pattern, m) }) {
		return v.base.recoveryOf(a, services)
	}
	var space [64]byte
	key := append(space[:0], 0)
	for _, m := range services {
		s := v.spot(a, m)
		key[0] |= 1 << s.level
		if s.Pattern == BackupRestore && v.Services[v.services[m]].Data != nil {
			key = append(key, byte(m), byte(m>>8))
		}
	}
	if r, known := v.recovered[string(key)]; known {
		return r
	}
	r := v.recoveryTimes(a, services)
	v.recovered[string(key)] = r
	return r
}

// together are services of one pattern that recover at once.
type together struct {
	steps    []Number
	restores []Number
}

func (v *evaluator) recoveryTimes(a *arrangement, services []int) *recoveryTimes {
	out := &recoveryTimes{coverage: 1}
	var groups []together
	name := "recovery"
	for _, p := range Patterns {
		var g together
		member := false
		for _, m := range services {
			if v.spot(a, m).Pattern != p {
				continue
			}
			member = true
			if restore := v.Services[v.services[m]].restoreOf(p); restore.Set {
				g.restores = append(g.restores, restore)
				name += " " + v.services[m]
			}
		}
		if !member {
			continue
		}
		name += " " + string(p)
		for _, step := range v.Recovery[p].steps() {
			g.steps = append(g.steps, *step.n)
		}
		groups, out.coverage = append(groups, g), min(out.coverage, v.Recovery[p].Coverage.Mean())
	}
	out.draw = func(rng *rand.Rand) float64 {
		slowest := 0.0
		for i := range groups {
			slowest = max(slowest, groups[i].draw(rng))
		}
		return slowest
	}
	rng, n := v.rng(name), sample
	exact := len(groups) == 1 && len(groups[0].restores) < 2
	if !exact {
		n *= 2
	}
	some, mean := make([]float64, n), 0.0
	for i := range some {
		some[i] = out.draw(rng)
		mean += some[i] / float64(n)
	}
	if out.mean = mean; exact {
		out.mean = groups[0].mean()
	}
	slices.Sort(some)
	mean = 0
	for i := range fewOf {
		out.few = append(out.few, some[(2*i+1)*n/(2*fewOf)])
		mean += out.few[i] / fewOf
	}
	for i := range out.few {
		out.few[i] *= out.mean / max(mean, 1e-9)
	}
	return out
}

func (g *together) draw(rng *rand.Rand) float64 {
	sum := 0.0
	for i := range g.restores {
		sum = max(sum, g.restores[i].At(rng.Float64()))
	}
	for i := range g.steps {
		sum += g.steps[i].At(rng.Float64())
	}
	return sum
}

// mean is that of draw, with one restore at most.
func (g *together) mean() float64 {
	sum := 0.0
	for i := range g.restores {
		sum += g.restores[i].Mean()
	}
	for i := range g.steps {
		sum += g.steps[i].Mean()
	}
	return sum
}

// outages are the lengths of what takes every site of a service: a mixture of exponentials.
func (v *evaluator) outages(a *arrangement, service int) Quantiles {
	q := Quantiles{Unit: Duration}
	ways, err := v.interruptions(a, service)
	if err != nil {
		return q // whoever asks for the interruptions themselves hears of it
	}
	rate, longest := 0.0, 0.0
	for i := range ways {
		if w := &ways[i]; w.waits && !w.backup {
			rate += w.perYear
			q.Mean += w.perYear * w.outage
			longest = max(longest, w.outage)
		}
	}
	if rate == 0 {
		return q
	}
	q.Mean /= rate
	at := func(share float64) float64 {
		low, high := 0.0, 40*longest
		for range 50 {
			mid, longer := (low+high)/2, 0.0
			for i := range ways {
				if w := &ways[i]; w.waits && !w.backup {
					longer += w.perYear / rate * math.Exp(-mid/w.outage)
				}
			}
			if longer > 1-share {
				low = mid
			} else {
				high = mid
			}
		}
		return high
	}
	q.P50, q.P95 = at(.5), at(.95)
	return q
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

// worst is the 95th percentile of values, which it reorders: what sorting them would put there, found without sorting.
func worst(values []float64) float64 {
	at, low, high := int(math.Ceil(.95*float64(len(values))))-1, 0, len(values)-1
	for low < high {
		pivot, i, j := values[low+(high-low)/2], low, high
		for i <= j {
			for values[i] < pivot {
				i++
			}
			for values[j] > pivot {
				j--
			}
			if i <= j {
				values[i], values[j] = values[j], values[i]
				i, j = i+1, j-1
			}
		}
		switch {
		case at <= j:
			high = j
		case at >= i:
			low = i
		default:
			return values[at]
		}
	}
	return values[at]
}

// recovery is what the loss of the serving site costs in time and data.
func (v *evaluator) recovery(a *arrangement, service int, id string, book Book) RecoveryTime {
	p, s, name := v.spot(a, service), v.Services[v.services[service]], v.services[service]
	out := RecoveryTime{RTO: v.rto(a, service)}
	d := Derivation{ID: id + ".rto", What: "time from the loss of the serving site to service again, for " + name + " (P95)", Value: out.RTO.P95, Unit: Duration}
	if p.Pattern == Single {
		d.Method = "there is no other site: the outage itself, a mixture of exponentials, one for each minimal cut set"
		d.Parts = []Part{{"losses a year", book[id+".losses"].Value, Count, id + ".losses"}}
	} else {
		waits := v.servingLoss(a, service)
		slowest := v.slowest(a, waits)
		pattern := v.spot(a, slowest).Pattern
		d.Method = "of a recovery that works: the sum of its steps, each drawn from its range (triangular); quantiles of 4000 draws, never added. What coverage leaves out takes as long as the outage: see downtime"
		if len(waits) > 1 {
			d.Method = fmt.Sprintf("of recoveries that work: the slowest of what is lost with the site and needed at every answer, in each of 4000 draws: %s; those of one pattern go together; the steps are those of %s (%s), each drawn from its range (triangular). What coverage leaves out takes as long as the outage: see downtime",
				strings.Join(v.names(waits), ", "), v.services[slowest], pattern)
		}
		for _, step := range v.Recovery[pattern].steps() {
			out.Steps = append(out.Steps, Part{Name: step.name, Value: step.n.Mean(), Unit: Duration})
			d.Inputs = append(d.Inputs, inputOf(*step.n))
		}
		if restore := v.Services[v.services[slowest]].restoreOf(pattern); restore.Set {
			out.Steps = append(out.Steps, Part{Name: "restore", Value: restore.Mean(), Unit: Duration})
			d.Inputs = append(d.Inputs, inputOf(restore))
		}
		d.Parts = out.Steps
	}
	book.Note(d)
	out.RTO.ID = d.ID
	out.RPO = v.lost(p, service, id, book)
	if w := s.Wants; w.RTO.Set || w.RPO.Set {
		met := (!w.RTO.Set || out.RTO.P95 <= w.RTO.Mean()) && (!w.RPO.Set || out.RPO.P95 <= w.RPO.Mean())
		out.Met = &met
	}
	return out
}

// slowest is whose recovery, of services that are lost together, takes longest in the mean.
func (v *evaluator) slowest(a *arrangement, services []int) (out int) {
	longest := -1.0
	for _, m := range services {
		if mean := v.recoveryOf(a, []int{m}).mean; mean > longest {
			longest, out = mean, m
		}
	}
	return out
}

// lost is how much of the newest data is gone when the serving site is.
func (v *evaluator) lost(p *spot, service int, id string, book Book) Quantiles {
	s := v.Services[v.services[service]]
	d := Derivation{ID: id + ".rpo", What: "newest writes of " + v.services[service] + " that are gone with a lost site (P95)", Unit: Duration}
	rng := v.rng("lost " + v.services[service])
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
		lag := v.Recovery[p.Pattern].Lag
		behind := v.backlog(p, s)
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

// meanLost is the mean of lost, exactly.
func (v *evaluator) meanLost(p *spot, s *Service) float64 {
	switch {
	case s.Data == nil || p.Pattern == SameCity:
		return 0
	case p.Pattern == Single || p.Pattern == BackupRestore:
		return s.Data.Backup.Mean() / 2
	}
	return v.Recovery[p.Pattern].Lag.Mean() + v.backlog(p, s)
}

// backlog is how many seconds of writes have not left behind an hour at the peak where a line is too thin: what it
// carried was written in the first thin/changes of the hour.
func (e *Estate) backlog(p *spot, s *Service) float64 {
	worst := 0.0
	for _, other := range p.Sites[1:] {
		thin := 0.0
		for _, l := range e.Links {
			if l.joins(p.Sites[0], other) {
				thin += l.Bandwidth.Mean()
			}
		}
		if changes := s.Data.Changes.Mean(); thin > 0 && changes > thin {
			worst = max(worst, hour*(1-thin/changes))
		}
	}
	return worst
}

func (l *Link) joins(a, b string) bool {
	return slices.Contains(l.Between, a) && slices.Contains(l.Between, b)
}
