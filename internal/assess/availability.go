package assess

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/atollhq/atoll/internal/fault"
)

func probability(b *treeBuilder, service string) (down, perSecond float64, err error) {
	down, perSecond, err = fault.Probability(b.m)
	if err != nil {
		return 0, 0, fmt.Errorf("service %s: %w", service, err)
	}
	return down, max(0, perSecond), nil
}

// interruption is one way in which a service stops for a share of its users, in a year.
type interruption struct {
	cause   string
	perYear float64
	share   float64 // of the users
	outage  float64 // mean length in seconds if nothing is done
	waits   bool    // nothing can be done: the outage lasts as long as it lasts
	whole   bool    // the recovery's own length is what it takes (a needless one)
	restore float64 // seconds that data takes to be restored, behind the outage
}

// interruptions lists all ways. What takes every site at once is waited for; what takes one is recovered from.
func (e *Estate) interruptions(plan Plan, service string) (out []interruption, structural fault.Result, m *fault.Model, err error) {
	p := plan[service]
	m, structural, err = e.structural(plan, service)
	if err != nil {
		return nil, structural, m, err
	}
	all, begins := structural.Probability, max(0, structural.Frequency)
	if begins > 0 {
		out = append(out, interruption{cause: "every site at once", perYear: begins * year, share: 1, outage: all / begins, waits: true})
		if p.Pattern == Single {
			out[0].cause = "site " + p.Sites[0]
		}
	}
	if p.Pattern != Single {
		r := e.Recovery[p.Pattern]
		for i, site := range p.Sites {
			share := e.shareOf(p, i)
			if share == 0 {
				continue
			}
			down, perSecond, _, err := e.siteLoss(plan, service, site)
			if err != nil {
				return nil, structural, m, err
			}
			// What takes this site alone: the losses that leave another one working.
			if alone := perSecond - begins; alone > 0 && down > all {
				out = append(out, interruption{cause: "site " + site, perYear: alone * year, share: share, outage: (down - all) / alone})
			}
		}
		out = append(out, interruption{cause: "needless recovery", perYear: year / r.False.Mean(), share: e.shareOf(p, 0), whole: true})
	}
	if s := e.Services[service]; s.Data != nil {
		for _, cause := range e.Shared {
			if cause.Data && strikes(cause.Hits.Services, service) {
				_, perSecond := steady(cause.Every.Mean(), cause.Lasts.Mean())
				out = append(out, interruption{cause: cause.Name + ": restore from backup", perYear: perSecond * year, share: 1, restore: s.Data.Restore.Mean(), waits: true})
			}
		}
	}
	return out, structural, m, nil
}

// shareOf is the share of users whom the loss of the i-th site of a placement interrupts.
func (e *Estate) shareOf(p Placement, i int) float64 {
	switch p.Pattern {
	case SameCity, Partitioned:
		return 1 / float64(len(p.Sites))
	case OneWriter: // everybody's writes wait for a new writer; a reading site's users go to another one
		if i == 0 {
			return 1
		}
		return 1 / float64(len(p.Sites))
	default: // a standby serves nobody
		if i == 0 {
			return 1
		}
		return 0
	}
}

// expected is the mean length of an interruption: an exponential outage, cut short by a recovery that works.
func (i *interruption) expected(recovery, coverage float64) float64 {
	switch {
	case i.whole:
		return recovery
	case i.waits:
		return i.outage + i.restore
	case i.outage == 0:
		return 0
	}
	cut := i.outage * -math.Expm1(-recovery/i.outage) // E[min(D, T)]
	return coverage*cut + (1-coverage)*i.outage
}

// availability composes what a service gets in a year.
func (e *Estate) availability(plan Plan, service string, book Book) (Availability, error) {
	p := plan[service]
	ways, structural, m, err := e.interruptions(plan, service)
	if err != nil {
		return Availability{}, err
	}
	recovery, coverage := 0.0, 1.0
	inputs := e.inputsOf(m)
	if p.Pattern != Single {
		r := e.Recovery[p.Pattern]
		recovery, coverage = r.meanTime(e.Services[service].restoreOf(p.Pattern).Mean()), r.Coverage.Mean()
		inputs = append(inputs, inputOf(r.Coverage), inputOf(r.False))
	}
	a := Availability{ByOrder: structural.CutSets.ByOrder}
	a.Structural = book.Note(Derivation{ID: service + ".structural", What: "share of time in which " + service + " can be served at none of its sites",
		Value: structural.Probability, Unit: Ratio, Inputs: e.inputsOf(m),
		Method: fmt.Sprintf("exact: fault tree of %d gates and %d events as a binary decision diagram; %d minimal cut sets", len(m.Gates), len(m.Events), structural.CutSets.Total)})
	losses, downtime := 0.0, 0.0
	var parts []Part
	for _, way := range ways {
		seconds := way.perYear * way.share * way.expected(recovery, coverage)
		downtime += seconds
		if !way.whole {
			losses += way.perYear
		}
		a.Causes = append(a.Causes, Cause{way.cause, seconds})
		parts = append(parts, Part{Name: fmt.Sprintf("%s: %.3g a year × %.0f%% of users × %s", way.cause, way.perYear, 100*way.share, duration(way.expected(recovery, coverage))),
			Value: seconds, Unit: Duration})
	}
	slices.SortStableFunc(a.Causes, func(x, y Cause) int { return cmp.Compare(y.Seconds, x.Seconds) })
	downtime = min(downtime, year)
	a.Losses = book.Note(Derivation{ID: service + ".losses", What: "how often a year " + service + " loses a site that serves", Value: losses, Unit: Count,
		Method: "frequency of the fault tree's top (Birnbaum importance × frequency of each event, summed), per site", Inputs: inputs})
	a.Downtime = book.Note(Derivation{ID: service + ".downtime", What: "expected time a year without " + service + ", weighed by the share of users", Value: downtime, Unit: Duration,
		Method: "Σ frequency × share × (coverage × E[min(outage, recovery)] + (1 − coverage) × outage); outages are exponential, E[min] = m(1−exp(−T/m))", Parts: parts, Inputs: inputs})
	a.Share = book.Note(Derivation{ID: service + ".availability", What: "availability of " + service, Value: 1 - downtime/year, Unit: Ratio,
		Method: "1 − downtime ÷ year", Parts: []Part{{"downtime", downtime, Duration, service + ".downtime"}}})
	if want := e.Services[service].Wants.Availability; want.Set {
		met := a.Share.V >= want.Mean()
		a.Met = &met
	}
	a.BadYear = book.Note(Derivation{ID: service + ".bad-year", What: "time without " + service + " in the worst of twenty years", Value: e.badYear(service, p, ways, nil), Unit: Duration,
		Method: fmt.Sprintf("95th percentile of %d years drawn: a Poisson number of each interruption, exponential outages, drawn recoveries", badYears), Inputs: inputs})
	for _, im := range structural.Importance {
		for _, set := range structural.CutSets.Sets {
			if len(set.Events) == 1 && set.Events[0] == im.Event {
				a.Singles = append(a.Singles, SinglePoint{Event: plain(im.Event), Kind: e.kindOf(im.Event), Unavailable: im.Probability,
					PerYear: m.Events[im.Event].Frequency * year, Path: e.why(m, im.Event)})
			}
		}
	}
	return a, nil
}

const (
	badYears = 4000  // that are drawn for the bad one
	often    = 200.0 // interruptions a year that are not drawn one by one
)

// badYear draws years and returns the 95th percentile of their sum. worth turns an interruption of so many seconds for
// a share of the users into what is summed; nil sums seconds × share.
func (e *Estate) badYear(service string, p Placement, ways []interruption, worth func(seconds, share float64) float64) float64 {
	rng := e.rng("year " + service)
	r := e.Recovery[p.Pattern]
	restore := e.Services[service].restoreOf(p.Pattern)
	years := make([]float64, badYears)
	for i := range years {
		for w := range ways {
			way := &ways[w]
			if way.perYear > often { // so many that their sum hardly varies
				seconds := way.perYear * way.expected(r.meanTime(restore.Mean()), r.Coverage.Mean())
				if worth != nil {
					years[i] += way.perYear * worth(seconds/way.perYear, way.share)
				} else {
					years[i] += seconds * way.share
				}
				continue
			}
			// arrivals of a Poisson process within one year
			for at := rng.ExpFloat64() / way.perYear; at < 1; at += rng.ExpFloat64() / way.perYear {
				seconds := way.outage*rng.ExpFloat64() + way.restore
				if way.whole {
					seconds = r.draw(rng, restore)
				} else if !way.waits && rng.Float64() < r.Coverage.Mean() {
					seconds = min(seconds, r.draw(rng, restore))
				}
				if worth != nil {
					years[i] += worth(seconds, way.share)
				} else {
					years[i] += seconds * way.share
				}
			}
		}
	}
	return quantiles(years, Duration).P95
}
