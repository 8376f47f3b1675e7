package report

import (
	"cmp"
	"fmt"
	"html/template"
	"math"
	"slices"

	"github.com/atollhq/atoll/internal/assess"
)

// maxBars is how many services a chart of bars shows; the rest is one bar.
const maxBars = 12

// pareto draws plans by what they cost and how long they are down; those that none beats are joined.
func pareto(r *assess.Report) figurePair {
	return both(func(w float64, class string) template.HTML {
		c := newCanvas(w, 330, 54, 14, 30, 44)
		low, high := math.Inf(1), 0.0
		cheap, dear := math.Inf(1), 0.0
		for _, p := range r.Pareto {
			low, high = min(low, p.Downtime), max(high, p.Downtime)
			cheap, dear = min(cheap, p.CostYear), max(dear, p.CostYear)
		}
		unit, in := unitOf(high)
		low, high = low/unit, high/unit
		y := linear(0, high, c.bottom, c.top, 5)
		if low > 0 && high > 8*low {
			y = logarithmic(low, high, c.bottom, c.top, 6)
		} else if low > .5*high {
			y = linear(low, high, c.bottom, c.top, 5)
		}
		span := dear - cheap
		x := linear(max(0, cheap-.06*span), dear+.06*span, c.left, c.right, ticksFor(w))
		c.beside(y, plainly, "downtime ("+in+" a year)")
		c.below(x, money, "cost ("+r.Currency+" a year)")
		var front []assess.ParetoPoint
		for _, p := range r.Pareto {
			if p.OnFront {
				front = append(front, p)
			}
		}
		slices.SortStableFunc(front, func(a, b assess.ParetoPoint) int { return cmp.Compare(a.CostYear, b.CostYear) })
		var path []point
		for i, p := range front {
			if i > 0 {
				path = append(path, point{x.at(p.CostYear), y.at(front[i-1].Downtime / unit)})
			}
			path = append(path, point{x.at(p.CostYear), y.at(p.Downtime / unit)})
		}
		c.path(path, "front", false)
		c.plans(r, x, func(p assess.ParetoPoint) float64 { return y.at(p.Downtime / unit) })
		return c.done(class, "Plans by cost and downtime a year")
	})
}

// unitOf is the unit of an axis whose largest value is so many seconds.
func unitOf(seconds float64) (float64, string) {
	switch {
	case seconds > 2*hour:
		return hour, "hours"
	case seconds > 2*minute:
		return minute, "minutes"
	}
	return 1, "seconds"
}

func plainly(v float64) string { return significant(v, 3) }

func ticksFor(w float64) int { return int(w / 100) }

// plans draws the points and names those for which there is room: today and the front first.
func (c *canvas) plans(r *assess.Report, x *scale, y func(assess.ParetoPoint) float64) {
	l := &labels{c: c}
	final := ""
	for i, s := range r.Roadmap {
		if s.Worth {
			final = fmt.Sprintf("step %d", i+1)
		}
	}
	order := slices.Clone(r.Pareto)
	weight := func(p assess.ParetoPoint) int {
		switch {
		case p.Name == "today":
			return 0
		case p.Name == final:
			return 1
		case p.OnFront:
			return 2
		}
		return 3
	}
	slices.SortStableFunc(order, func(a, b assess.ParetoPoint) int { return cmp.Compare(weight(a), weight(b)) })
	for _, p := range order {
		l.keepOff(x.at(p.CostYear), y(p))
	}
	seen := map[point]bool{}
	for _, p := range order {
		if at := (point{x.at(p.CostYear), y(p)}); seen[at] {
			continue // everything single is today, where all is single
		} else {
			seen[at] = true
		}
		class, name := "plan", p.Name
		switch {
		case name == "today":
			class = "plan today"
		case name == final:
			class, name = "plan final", "proposed"
		case p.OnFront:
			class = "plan onfront"
		}
		px, py := x.at(p.CostYear), y(p)
		c.dot(px, py, 4.5, class, fmt.Sprintf("%s: %s %s a year, down %s a year", p.Name, money(p.CostYear), r.Currency, duration(p.Downtime)))
		l.place(px, py, name)
	}
}

// box is a part of a canvas that is taken.
type box struct{ x1, y1, x2, y2 float64 }

func (a box) meets(b box) bool { return a.x1 < b.x2 && b.x1 < a.x2 && a.y1 < b.y2 && b.y1 < a.y2 }

// labels places texts beside points so that none lies on another one, or leaves it out where there is no room.
type labels struct {
	c     *canvas
	taken []box
}

func (l *labels) keepOff(x, y float64) { l.taken = append(l.taken, box{x - 4, y - 4, x + 4, y + 4}) }

func (l *labels) place(x, y float64, text string) {
	w := textWidth(text) + 4
	for _, at := range []struct {
		dx, dy float64
		anchor string
	}{{8, -7, "start"}, {8, 4, "start"}, {-8, 4, "end"}, {0, -9, "middle"}, {0, 17, "middle"}, {8, 15, "start"}, {-8, -7, "end"}, {-8, 15, "end"}} {
		x1 := x + at.dx
		switch at.anchor {
		case "end":
			x1 -= w
		case "middle":
			x1 -= w / 2
		}
		b := box{x1, y + at.dy - 11, x1 + w, y + at.dy + 4}
		if b.x1 < l.c.left || b.x2 > l.c.w || b.y1 < l.c.top-8 || b.y2 > l.c.bottom {
			continue
		}
		if !slices.ContainsFunc(l.taken, b.meets) {
			l.taken = append(l.taken, b)
			l.c.text(x+at.dx, y+at.dy, "point-label", at.anchor, text)
			return
		}
	}
}

// bar is one row of a chart of bars.
type bar struct {
	name  string
	parts [][]segment // one or two stacks, upper and lower
}

type segment struct {
	value        float64
	class, title string
}

func (b *bar) longest() float64 {
	out := 0.0
	for _, stack := range b.parts {
		sum := 0.0
		for _, s := range stack {
			sum += s.value
		}
		out = max(out, sum)
	}
	return out
}

// bars draws rows with names at the left and a measure below.
func bars(rows []bar, show func(float64) string, label, name string) figurePair {
	return both(func(w float64, class string) template.HTML {
		widest, most := 0.0, 0.0
		for i := range rows {
			widest, most = max(widest, textWidth(rows[i].name)), max(most, rows[i].longest())
		}
		room := min(widest+8, .36*w)
		row := 30.0
		c := newCanvas(w, 30+row*float64(len(rows))+46, room, 16, 24, 46)
		x := linear(0, most, c.left, c.right, ticksFor(w))
		c.below(x, show, label)
		c.text(0, 12, "axis-label", "start", "service")
		for i, r := range rows {
			y := c.top + row*float64(i) + 4
			thick := 20.0 / float64(len(r.parts))
			c.text(0, y+14, "name", "start", shorten(line(r.name), int(room/letter)-1))
			for k, stack := range r.parts {
				at := 0.0
				for _, s := range stack {
					c.rect(x.at(at), y+thick*float64(k), max(x.at(at+s.value)-x.at(at), .5), thick-1, s.class, s.title)
					at += s.value
				}
			}
		}
		return c.done(class, name)
	})
}

// losses compares each service's loss today with what is proposed.
func losses(r *assess.Report) figurePair {
	var rows []bar
	var now, then float64
	pair := func(name string, now, then float64) bar {
		title := func(when string, v float64) string {
			return fmt.Sprintf("%s, %s: %s %s a year", name, when, money(v), r.Currency)
		}
		return bar{name, [][]segment{{{now, "bar now", title("today", now)}}, {{then, "bar then", title("proposed", then)}}}}
	}
	for i, s := range r.Services {
		if i < maxBars {
			rows = append(rows, pair(s.Service, s.Now.Money.Loss.V, s.Proposed.Money.Loss.V))
			continue
		}
		now, then = now+s.Now.Money.Loss.V, then+s.Proposed.Money.Loss.V
	}
	if n := len(r.Services) - maxBars; n > 0 {
		rows = append(rows, pair(plural(n, "other", "others"), now, then))
	}
	return bars(rows, money, "loss ("+r.Currency+" a year)", "Loss a year by service, today and proposed")
}

// way is the roadmap as a curve: what is spent more, and what is still lost.
func way(r *assess.Report) figurePair {
	return both(func(w float64, class string) template.HTML {
		c := newCanvas(w, 330, 54, 14, 30, 44)
		type stop struct {
			spent, loss float64
			name, title string
			worth       bool
		}
		stops := []stop{{0, r.Today.Loss, "today", "today", true}}
		spent, most, least := 0.0, 0.0, 0.0
		for i, s := range r.Roadmap {
			at := spent + 12*s.Month + s.Once/3
			if s.Worth { // what is not worth it is weighed behind the last step that is, each on its own
				spent = at
			}
			stops = append(stops, stop{at, s.After.Loss, fmt.Sprint(i + 1), fmt.Sprintf("%d: %s: %s %s a year more than today, %s lost a year", i+1, s.Text, money(at), r.Currency, money(s.After.Loss)), s.Worth})
			most, least = max(most, at), min(least, at)
		}
		x := linear(least, most, c.left, c.right, ticksFor(w))
		y := linear(0, r.Today.Loss, c.bottom, c.top, 5)
		c.beside(y, money, "loss ("+r.Currency+" a year)")
		c.below(x, money, "more cost ("+r.Currency+" a year)")
		// One for one: a step that falls less steeply than this costs more than it saves.
		if reach := min(x.to, r.Today.Loss); reach > 0 {
			c.line(x.at(0), y.at(r.Today.Loss), x.at(reach), y.at(r.Today.Loss-reach), "even")
		}
		var pays []point
		for _, s := range stops {
			p := point{x.at(s.spent), y.at(s.loss)}
			if s.worth {
				pays = append(pays, p)
				continue
			}
			c.path([]point{pays[len(pays)-1], p}, "curve beyond", false)
		}
		c.path(pays, "curve", false)
		l := &labels{c: c}
		for _, s := range stops {
			l.keepOff(x.at(s.spent), y.at(s.loss))
		}
		for i, s := range stops {
			kind := "plan step"
			switch {
			case i == 0:
				kind = "plan today"
			case !s.worth:
				kind = "plan"
			}
			c.dot(x.at(s.spent), y.at(s.loss), 4.5, kind, s.title)
			l.place(x.at(s.spent), y.at(s.loss), s.name)
		}
		return c.done(class, "Loss a year over what the roadmap costs")
	})
}

// dayOf draws the demand on a site hour by hour against what it holds.
func dayOf(s *assess.SiteAnswer) figurePair {
	return both(func(w float64, class string) template.HTML {
		c := newCanvas(w, 220, 50, 12, 30, 44)
		top := max(slices.Max(s.Day.AfterLoss), slices.Max(s.Day.Usual), s.Day.Cores)
		x := &scale{from: 0, to: 24, a: c.left, b: c.right, ticks: []float64{0, 6, 12, 18, 24}}
		y := linear(0, max(top, 1), c.bottom, c.top, 4)
		c.beside(y, money, "demand (cores)")
		c.below(x, func(v float64) string { return fmt.Sprintf("%02.0f", v) }, "hour of the busiest day (h)")
		area := []point{{x.at(0), y.at(0)}}
		var lost []point
		for h := range 24 {
			for _, at := range []float64{float64(h), float64(h + 1)} {
				area = append(area, point{x.at(at), y.at(s.Day.Usual[h])})
				lost = append(lost, point{x.at(at), y.at(s.Day.AfterLoss[h])})
			}
		}
		c.path(append(area, point{x.at(24), y.at(0)}), "usual", true)
		if s.Day.Lost != "" {
			c.path(lost, "afterloss", false)
		}
		if s.Day.Cores > 0 {
			c.line(c.left, y.at(s.Day.Cores), c.right, y.at(s.Day.Cores), "cores")
		}
		return c.done(class, "Demand on "+line(s.Site)+" over the busiest day")
	})
}
