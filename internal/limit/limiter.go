package limit

import (
	"cmp"
	"math"
	"time"
)

// The limiter's numbers. See docs/adr/026.
const (
	tolerance  = 1.5                  // answers may take so many times what they take without waiting,
	slack      = 2 * time.Millisecond // and so much more: clocks and schedulers are not exact
	shrinkMost = 0.5                  // of the limit is left at least after one window
	fewSamples = 10                   // a window has at least so many
	shortest   = 50 * time.Millisecond
	longest    = time.Second // a window that is not full by then ends with fewTrickle samples
	fewTrickle = 5
	probeEvery = 6 * time.Second // to learn again how long answers take without waiting,
	probeRests = 50              // and not before as many times what an answer takes, which a probe costs a few of
	probeShare = 0.75            // of what the service seems to work at is let through meanwhile
	probeGives = 3 * time.Second // up: it takes too long
	lostMost   = 0.1             // of a window's attempts may come to nothing before that alone shrinks the limit
)

// Adaptive bounds what a limiter learns. Zero fields take their defaults.
type Adaptive struct {
	First int // limit at first; default 20
	Min   int // default 2
	Max   int // default 1000
}

func (a Adaptive) withDefaults() Adaptive {
	a.Min = cmp.Or(a.Min, 2)
	a.Max = max(cmp.Or(a.Max, 1000), a.Min)
	a.First = min(max(cmp.Or(a.First, 20), a.Min), a.Max)
	return a
}

// Limiter learns how many requests a service can work at: as long as answers take no longer than with few requests under way,
// there may be more; where they take longer, they wait for each other, and there may be fewer.
//
// The formula is that of Envoy's adaptive concurrency filter (gradient × limit + √limit, after Netflix' concurrency-limits). How long an
// answer takes without waiting is measured as TCP BBR does: from time to time less is let through for a moment. Without
// that, what is measured under a long overload would become the measure.
type Limiter struct {
	rules Adaptive
	limit float64
	base  time.Duration // how long an answer takes without waiting; 0: not known
	probe struct {
		on      bool
		settled bool // no more is under way than the probe lets through
		since   time.Time
		back    float64   // the limit behind it
		next    time.Time // not before
	}
	window struct {
		since time.Time
		count int
		lost  int
		took  [steps]uint32 // how many took how long, see step
		least time.Duration
		peak  int
	}
}

// NewLimiter begins without knowing anything.
func NewLimiter(rules Adaptive) *Limiter {
	rules = rules.withDefaults()
	return &Limiter{rules: rules, limit: float64(rules.First)}
}

// Limit is how many requests may be at the service now.
func (l *Limiter) Limit() int { return max(int(l.limit), 1) }

// Base is how long an answer takes without waiting, as far as that is known.
func (l *Limiter) Base() time.Duration { return l.base }

// Sample is one request that is over.
type Sample struct {
	Began  time.Time
	Took   time.Duration // until the answer's head, or until there was none
	Inside int           // requests that were at the service when it was over, this one included
	Lost   bool          // there was no answer, or one that says that it is too much; a good one takes as long at least
}

// Add takes in a sample.
func (l *Limiter) Add(s Sample, now time.Time) {
	w := &l.window
	if w.since.IsZero() {
		w.since = s.Began
	}
	if l.probe.on && !l.probing(s, now) {
		return
	}
	w.peak = max(w.peak, s.Inside)
	if s.Began.Before(w.since) {
		return // it says something of a time before
	}
	if s.Lost {
		w.lost++
		s.Took = max(s.Took, l.base)
	}
	if w.count++; w.count == 1 || s.Took < w.least {
		w.least = s.Took
	}
	w.took[step(s.Took)]++
	age := now.Sub(w.since)
	if age >= shortest && w.count >= max(fewSamples, l.Limit()) || age >= longest && w.count >= fewTrickle {
		l.close(now)
		l.begin(now)
	}
}

// begin begins a window.
func (l *Limiter) begin(now time.Time) {
	w := &l.window
	w.since, w.count, w.lost, w.least, w.peak = now, 0, 0, 0, 0
	clear(w.took[:])
}

// probing tells whether a sample counts during a probe: what began before it must have left.
func (l *Limiter) probing(s Sample, now time.Time) bool {
	switch {
	case now.Sub(l.probe.since) >= max(probeGives, 4*l.base):
		l.probe.on, l.limit, l.probe.next = false, l.probe.back, now.Add(probeEvery)
		l.begin(now)
		return false
	case l.probe.settled:
		return true
	case s.Inside <= l.Limit():
		l.probe.settled = true
		l.begin(now)
	}
	return false
}

// The steps of how long an answer took: eight to each doubling, from 10 µs on.
const (
	steps     = 200
	stepsEach = 8
	firstStep = 10 * time.Microsecond
)

func step(took time.Duration) int {
	if took <= firstStep {
		return 0
	}
	return min(int(stepsEach*math.Log2(float64(took)/float64(firstStep))), steps-1)
}

// median is how long the window's answers took. A few that take much longer say nothing of a service that has too much to do: one
// of its instances may be slow, or some of its requests are.
func (l *Limiter) median() time.Duration {
	left := l.window.count / 2
	for i, n := range l.window.took {
		if left -= int(n); left < 0 {
			return time.Duration(float64(firstStep) * math.Exp2((float64(i)+0.5)/stepsEach))
		}
	}
	panic("BUG: a window of the limiter has fewer samples than it counts")
}

// close draws the conclusions of a window.
func (l *Limiter) close(now time.Time) {
	w := &l.window
	took := l.median()
	if l.probe.on {
		l.base, l.limit, l.probe.on = took, l.probe.back, false
		rest := max(probeEvery, probeRests*l.base)
		l.probe.next = now.Add(rest - rest/8 + time.Duration(now.UnixNano())%(rest/4)) // gateways do not probe together
		return
	}
	if l.base == 0 {
		l.base = (w.least + took) / 2 // the first ones found nobody before them
	}
	full := float64(w.peak) >= 0.8*l.limit
	if float64(w.peak) <= l.limit/2 {
		l.base += (took - l.base) / 10 // as good as a probe
		return
	}
	if took < l.base {
		l.base -= (l.base - took) / 5
	}
	gradient := (tolerance*l.base.Seconds() + slack.Seconds()) / max(took.Seconds(), 1e-9)
	next := min(max(gradient, shrinkMost), 1)*l.limit + math.Sqrt(l.limit)
	if !full {
		next = min(next, l.limit) // nobody knows what more would do
	}
	if float64(w.lost) > lostMost*float64(w.count) {
		next = min(next, 0.9*l.limit)
	}
	l.limit = min(max(next, float64(l.rules.Min)), float64(l.rules.Max))
	if full && gradient < 1 && !now.Before(l.probe.next) {
		l.probe.on, l.probe.settled, l.probe.since, l.probe.back = true, false, now, l.limit
		can := float64(w.peak) * l.base.Seconds() / took.Seconds()
		l.limit = max(min(l.limit/2, probeShare*can), 1)
	}
}
