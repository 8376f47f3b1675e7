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
	flips := func(f float64, services []int) []int {
		k.set(scaled(saved, f))
		v.forget()
		if k.turns.anything {
			v.today = &arrangement{at: d.today.at}
		}
		return slices.DeleteFunc(slices.Clone(services), func(i int) bool { return d.worth(v, i) == d.answers[i].Answer.Worth })
	}
	for _, to := range []float64{maxFactor, 1 / maxFactor} {
		f, which := nearestFlip(to, asked, flips)
		if which >= 0 && distance(f) < distance(out.Factor) {
			out.Service, out.Factor = d.services[which], f
			out.Text = fmt.Sprintf("at %s times its value, the verdict on %s flips", trim(f), d.services[which])
		}
	}
	return out
}

// probes are where a direction is tried, as powers of its end: verdicts do not always hang on an input one way only.
var probes = []float64{.3, 1}

// nearestFlip bisects from 1 to a factor for the first that flips something, to three per cent; -1 for none.
func nearestFlip(to float64, services []int, flips func(float64, []int) []int) (float64, int) {
	low := 0.0
	for _, high := range probes {
		flipped := flips(math.Pow(to, high), services)
		if len(flipped) == 0 {
			low = high
			continue
		}
		for (high-low)*math.Log(maxFactor) > .03 {
			mid := (low + high) / 2
			if here := flips(math.Pow(to, mid), flipped); len(here) > 0 {
				high, flipped = mid, here
			} else {
				low = mid
			}
		}
		return math.Pow(to, high), flipped[0]
	}
	return 0, -1
}

// dependents lists the services whose verdict may hang on what varies.
func (d *doubter) dependents(v *evaluator) []int {
	var out []int
	for i := range d.services {
		if slices.ContainsFunc(d.all[i], func(c candidate) bool {
			return slices.ContainsFunc(c.affected, func(j int) bool { return v.varied.touches(v, d.today, j) || v.varied.touches(v, c.to, j) })
		}) {
			out = append(out, i)
		}
	}
	return out
}

// worth weighs a service's ways again.
func (d *doubter) worth(v *evaluator, service int) bool {
	for i := range d.all[service] {
		c := d.all[service][i]
		if v.varied.anything { // what is possible, and how full sites are, may have changed too
			c.to = &arrangement{at: c.to.at}
			c.eligible = v.eligible(v.today, service, &c)
		}
		if !c.eligible {
			continue
		}
		if x, err := v.change(v.today, c.to, service); err == nil && x.net() > 0 {
			return true
		}
	}
	return false
}
