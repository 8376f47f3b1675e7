package assess

import (
	"fmt"
	"math"
	"slices"
)

// sizes are how many servers there are, how many of them must work, and how many are repaired at once. Ranges count
// with their mean; what is not said is one crew each.
func (s Servers) sizes() (count, need, crews int) {
	whole := func(n Number) int { return int(math.Round(n.Mean())) }
	count = whole(s.Count)
	need, crews = min(whole(s.Need), count), count
	if s.Crews.Set {
		crews = max(1, min(whole(s.Crews), count))
	}
	return count, need, crews
}

// survived is the share of failures that the group survives, of those after which enough servers are left.
func (s Servers) survived() float64 {
	if !s.Coverage.Set {
		return 1
	}
	return s.Coverage.Mean()
}

// crewed is the steady state of a group of servers.
type crewed struct {
	short     float64 // share of time in which fewer work than are needed
	stopped   float64 // and in which enough would, but a failure was not survived
	perSecond float64 // how often either begins
}

func (c crewed) down() float64 { return min(1, c.short+c.stopped) }

// group is the steady state of n servers of which k are needed: a Markov chain over how many have failed. From i
// failed ones, the next fails at the rate (n−i)/every, and one is repaired at min(i, crews)/lasts (the repairmen of
// Feller, An Introduction to Probability Theory I, XVII.7). After a failure that the group could survive it stops all
// the same with probability 1 − coverage (Arnold, IEEE Trans. Computers C-22, 1973): nothing works, fails or is repaired
// until the group runs again after a time of the mean lasts, with what is left. Nothing happens in a stop, so that what
// flows between i and i+1 balances as if there were none.
func (s Servers) group() crewed {
	n, k, crews := s.sizes()
	if k == 0 { // none is needed
		return crewed{}
	}
	every, lasts, missed := s.Every.Mean(), s.Lasts.Mean(), 1-s.survived()
	logs := make([]float64, n+1) // of the weight of i failed ones: products that overflow
	for i := range n {
		logs[i+1] = logs[i] + math.Log(float64(n-i)*lasts/every/float64(min(i+1, crews)))
	}
	top := slices.Max(logs)
	var out crewed
	sum := 0.0
	for i, l := range logs {
		w := math.Exp(l - top)
		sum += w
		fails := w * float64(n-i) / every
		switch {
		case n-i < k:
			out.short += w
		case n-i == k:
			out.perSecond += fails
		default:
			out.perSecond += fails * missed
			out.stopped += fails * missed * lasts
		}
	}
	sum += out.stopped
	return crewed{out.short / sum, out.stopped / sum, out.perSecond / sum}
}

// noticed is the time a year below which it is not said that something is assumed: nothing that is shown would change.
const noticed = 10.0

// inputs are the numbers behind a group. That each server has a crew of its own, or that every failure is survived, is
// named as assumed where it would matter if it were not so.
func (s Servers) inputs() []Number {
	out := []Number{s.Count, s.Need, s.Every, s.Lasts}
	if n, k, _ := s.sizes(); n == k || k == 0 {
		if s.Crews.Line > 0 {
			out = append(out, s.Crews)
		}
		return out
	}
	one := s
	one.Crews = Number{Low: 1, Mode: 1, High: 1, Unit: Count, Set: true}
	if s.Crews.Line > 0 || (one.group().down()-s.group().down())*year > noticed {
		out = append(out, s.Crews)
	}
	return append(out, s.Coverage)
}

// noteServers writes down what a service's servers do at each of its sites.
func (v *evaluator) noteServers(service int, id string, book Book) Part {
	name := v.services[service]
	s := v.Services[name].Servers
	g, all := s.group(), []Input{}
	n, k, crews := s.sizes()
	for _, x := range s.inputs() {
		all = append(all, inputOf(x))
	}
	repairs := "each with a crew of its own"
	if crews < n {
		repairs = "by " + counted(crews, "crew")
	}
	d := Derivation{ID: id + ".servers", What: fmt.Sprintf("share of time in which fewer than %d of %d servers of %s work at one of its sites", k, n, name), Value: g.down(), Unit: Ratio, Inputs: all,
		Method: fmt.Sprintf("steady state of a Markov chain over how many have failed: (count − failed) ÷ every, repaired %s; after a failure that coverage leaves out, nothing works for a time of the mean lasts; it begins %.3g times a year", repairs, g.perSecond*year),
		Parts:  []Part{{Name: "fewer work than are needed", Value: g.short, Unit: Ratio}, {Name: "stopped by a failure that was not survived", Value: g.stopped, Unit: Ratio}}}
	book.Note(d)
	return Part{"servers, at each of its sites", d.Value, Ratio, d.ID}
}
