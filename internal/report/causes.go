package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

// part is one cause's share of a service's downtime.
type part struct {
	name    string
	seconds float64
}

const (
	together  = "several failures together"
	recovered = "until recovered at another site"
	needless  = "needless recoveries"
	restored  = "restore from backup"
	others    = "other single causes"
	named     = 5 // causes with a colour of their own
)

// partsOf splits a service's downtime: what is waited for is due to events that take the service down alone, and to
// several failures together; the rest is recovery.
func partsOf(o *assess.Outcome) []part {
	waited := 0.0
	sums := map[string]float64{}
	for _, cause := range o.Availability.Causes {
		switch {
		case cause.Name == "needless recovery":
			sums[needless] += cause.Seconds
		case strings.HasSuffix(cause.Name, ": restore from backup"):
			sums[restored] += cause.Seconds
		case cause.Name == "every site at once" || o.Placement.Pattern == assess.Single:
			waited += cause.Seconds
		default:
			sums[recovered] += cause.Seconds
		}
	}
	alone := 0.0
	for _, s := range o.Availability.Singles {
		alone += s.Unavailable * year
	}
	fit := 1.0 // events overlap a little
	if alone > waited && alone > 0 {
		fit = waited / alone
	}
	for _, s := range o.Availability.Singles {
		sums[s.Event] += s.Unavailable * year * fit
	}
	sums[together] += max(0, waited-alone)
	var out []part
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if sums[name] > 0 {
			out = append(out, part{name, sums[name]})
		}
	}
	return out
}

// legend is what a colour stands for.
type legend struct{ Class, Name string }

// causes stacks what today's downtime is made of, by service.
func causes(r *assess.Report) (figurePair, []legend) {
	sums := map[string]float64{}
	for i := range r.Services {
		for _, p := range partsOf(&r.Services[i].Now) {
			sums[p.name] += p.seconds
		}
	}
	fixed := map[string]string{together: "c5", recovered: "c6", needless: "c7", restored: "c8", others: "c9"}
	var events []string
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if fixed[name] == "" {
			events = append(events, name)
		}
	}
	slices.SortStableFunc(events, func(a, b string) int { return cmp.Compare(sums[b], sums[a]) })
	classOf, order := map[string]string{}, []string{}
	var key []legend
	for i, name := range events {
		if i < named {
			classOf[name] = fmt.Sprintf("c%d", i)
			key, order = append(key, legend{classOf[name], line(name)}), append(order, name)
		}
	}
	if len(events) > named {
		key, order = append(key, legend{fixed[others], others}), append(order, others)
	}
	for _, name := range []string{together, recovered, needless, restored} {
		if sums[name] > 0 {
			key, order = append(key, legend{fixed[name], name}), append(order, name)
		}
	}
	maps.Copy(classOf, fixed)
	worst := slices.Clone(r.Services)
	slices.SortStableFunc(worst, func(a, b assess.ServiceAnswer) int {
		return cmp.Compare(b.Now.Availability.Downtime.V, a.Now.Availability.Downtime.V)
	})
	var rows []bar
	for i := range worst[:min(len(worst), maxBars)] {
		s := &worst[i]
		mine := map[string]float64{}
		for _, p := range partsOf(&s.Now) {
			if classOf[p.name] == "" {
				p.name = others
			}
			mine[p.name] += p.seconds
		}
		var stack []segment
		for _, name := range order {
			if mine[name] > 0 {
				stack = append(stack, segment{mine[name] / hour, "bar " + classOf[name], fmt.Sprintf("%s, %s: %s a year", s.Service, name, duration(mine[name]))})
			}
		}
		rows = append(rows, bar{s.Service, [][]segment{stack}})
	}
	return bars(rows, plainly, "downtime today (hours a year)", "Downtime a year by service and cause"), key
}
