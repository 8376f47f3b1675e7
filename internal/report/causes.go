package report

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/atollhq/atoll/internal/assess"
)

const (
	together = "several failures together"
	needless = "needless recoveries"
	restored = "restore from backup"
	crowded  = "demand beyond what is left"
	others   = "other single causes"
	named    = 6    // causes with a colour of their own
	visible  = .002 // of all downtime: what is less is not told apart
)

// kindOf says what a cause of downtime counts as: an event that does it alone by its name, all else by its kind.
func kindOf(cause string) string {
	if _, event, ok := strings.Cut(cause, " lost: "); ok {
		cause = event
	}
	switch {
	case cause == "needless recovery":
		return needless
	case strings.HasSuffix(cause, ": restore from backup"):
		return restored
	case strings.HasPrefix(cause, "demand beyond"):
		return crowded
	case strings.Contains(cause, " and "), cause == "other causes", cause == "several causes":
		return together
	}
	return cause
}

// partsOf splits a service's downtime.
func partsOf(o *assess.Outcome) map[string]float64 {
	sums := map[string]float64{}
	for _, cause := range o.Availability.Causes {
		sums[kindOf(cause.Name)] += cause.Seconds
	}
	return sums
}

// legend is what a colour stands for.
type legend struct{ Class, Name string }

// causes stacks what today's downtime is made of, by service.
func causes(r *assess.Report) (figurePair, []legend) {
	sums, total := map[string]float64{}, 0.0
	for i := range r.Services {
		for name, seconds := range partsOf(&r.Services[i].Now) {
			sums[name] += seconds
			total += seconds
		}
	}
	classOf := map[string]string{together: "c6", needless: "c7", restored: "c8", crowded: "c9", others: "c10"}
	var events, order []string
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if classOf[name] == "" {
			events = append(events, name)
		}
	}
	slices.SortStableFunc(events, func(a, b string) int { return cmp.Compare(sums[b], sums[a]) })
	rest := 0.0
	for i, name := range events {
		if i < named && sums[name] > visible*total {
			classOf[name] = fmt.Sprintf("c%d", i)
			order = append(order, name)
			continue
		}
		rest += sums[name]
	}
	sums[others] = rest
	var key []legend
	for _, name := range append(order, others, together, crowded, needless, restored) {
		if sums[name] > visible*total {
			key = append(key, legend{classOf[name], line(name)})
		}
	}
	order = append(order, others, together, crowded, needless, restored)
	worst := slices.Clone(r.Services)
	slices.SortStableFunc(worst, func(a, b assess.ServiceAnswer) int {
		return cmp.Compare(b.Now.Availability.Downtime.V, a.Now.Availability.Downtime.V)
	})
	var rows []bar
	for i := range worst[:min(len(worst), maxBars)] {
		s := &worst[i]
		mine := map[string]float64{}
		for name, seconds := range partsOf(&s.Now) {
			if classOf[name] == "" {
				name = others
			}
			mine[name] += seconds
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
