package assess

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// doubter asks, for every assumed input, how far it may be wrong before some verdict flips, from a tenth to ten times
// its value.
type doubter struct {
	*evaluator
	answers []ServiceAnswer // by index of the service
	all     [][]candidate   // and its ways
	book    Book
}

// maxFactor is how wrong an assumption is taken to be at most.
const maxFactor = 10.0

// doubts tries all assumed inputs that an answer names; the one that flips a verdict soonest stands first.
func (d *doubter) doubts() []Doubt {
	knobs, heard := d.knobs(), d.assumed()
	var out []Doubt
	for _, in := range heard {
		if k, ok := knobs[in.Path]; ok {
			out = append(out, d.doubt(in, k))
		}
	}
	slices.SortStableFunc(out, func(a, b Doubt) int {
		return cmp.Or(cmp.Compare(distance(a.Factor), distance(b.Factor)), cmp.Compare(a.Input.Path, b.Input.Path))
	})
	return out
}

// distance orders factors: 2 is as far as one half; 0 (none flips) is farthest.
func distance(factor float64) float64 {
	if factor == 0 {
		return math.Inf(1)
	}
	return math.Abs(math.Log(factor))
}

// assumed lists the assumed inputs that derivations name, each once.
func (d *doubter) assumed() []Input {
	seen := map[string]Input{}
	for _, x := range d.book {
		for _, in := range x.Inputs {
			if in.Assumed {
				seen[in.Path] = in
			}
		}
	}
	var out []Input
	for _, in := range seen {
		out = append(out, in)
	}
	slices.SortFunc(out, func(a, b Input) int { return cmp.Compare(a.Path, b.Path) })
	return out
}

// doubt looks up and down for the nearest factor that flips a verdict.
func (d *doubter) doubt(in Input, k knob) Doubt {
	out := Doubt{Input: in, Text: "no factor from a tenth to ten times changes a verdict"}
	saved := k.get()
	defer k.set(saved)
	v := d.with(&k.turns)
	asked := d.dependents(v)
	flips := func(f float64, cases []*dependent) []*dependent {
		k.set(scaled(saved, f))
		v.forget()
		return slices.DeleteFunc(slices.Clone(cases), func(c *dependent) bool { return d.worth(v, c, f) == d.answers[c.service].Answer.Worth })
	}
	for _, to := range []float64{maxFactor, 1 / maxFactor} {
		f, which := nearestFlip(to, asked, flips)
		if which != nil && distance(f) < distance(out.Factor) {
			out.Service, out.Factor = d.services[which.service], f
			out.Text = fmt.Sprintf("at %s times its value, the verdict on %s flips", trim(f), out.Service)
		}
	}
	return out
}

// nearestFlip bisects from 1 to a factor for where something flips, to five per cent; nil for nothing. Nets hang on an
// input one way only, or nearly so: what does not flip at the end does not flip before it.
func nearestFlip(to float64, cases []*dependent, flips func(float64, []*dependent) []*dependent) (float64, *dependent) {
	flipped := flips(to, cases)
	if len(flipped) == 0 {
		return 0, nil
	}
	low, high := 0.0, 1.0 // powers of to
	for (high-low)*math.Log(maxFactor) > .05 {
		mid := (low + high) / 2
		if here := flips(math.Pow(to, mid), flipped); len(here) > 0 {
			high, flipped = mid, here
		} else {
			low = mid
		}
	}
	return math.Pow(to, high), flipped[0]
}

// dependent is a service whose verdict may hang on what varies.
type dependent struct {
	service int
	changed []bool // whether the net of each of its ways may
	order   []int  // its ways, the best first
}

func (d *doubter) dependents(v *evaluator) []*dependent {
	var out []*dependent
	for i := range d.services {
		x := &dependent{service: i, changed: make([]bool, len(d.all[i]))}
		matters := false
		for j := range d.all[i] {
			c := &d.all[i][j]
			x.changed[j] = slices.ContainsFunc(c.affected, func(k int) bool { return v.varied.touches(v, d.today, k) || v.varied.touches(v, c.to, k) })
			matters = matters || x.changed[j] || d.doubtful(v, c, maxFactor) || d.doubtful(v, c, 1/maxFactor)
		}
		if matters {
			for j := range d.all[i] {
				x.order = append(x.order, j)
			}
			slices.SortStableFunc(x.order, func(a, b int) int { return cmp.Compare(d.all[i][b].change.net(), d.all[i][a].change.net()) })
			out = append(out, x)
		}
	}
	return out
}

// doubtful tells whether something may speak for or against a way now.
func (d *doubter) doubtful(v *evaluator, c *candidate, factor float64) bool {
	return slices.ContainsFunc(c.moved, func(i int) bool { return v.varied.touchesWhatIsPossible(v, i, factor, c.eligible) })
}

// worth weighs a service's ways again. What is possible is asked again only where it may have changed.
func (d *doubter) worth(v *evaluator, x *dependent, factor float64) bool {
	for _, i := range x.order {
		c := &d.all[x.service][i]
		doubtful := d.doubtful(v, c, factor)
		if !c.eligible && !doubtful {
			continue
		}
		net := c.change.net()
		switch {
		case v.varied.loads: // neighbours feel it where sites are crowded
			now, err := v.changeOf(v.today, c.to, x.service, v.affected(v.today, c.to))
			if net = now.net(); err != nil {
				continue
			}
		case x.changed[i]:
			now, err := v.changeOf(v.today, c.to, x.service, c.affected)
			if net = now.net(); err != nil {
				continue
			}
		}
		if net > 0 && (!doubtful || v.eligible(v.today, x.service, c)) {
			return true
		}
	}
	return false
}
