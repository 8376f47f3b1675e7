package split

import (
	"cmp"
	"math"
	"time"
)

// Budget says how much worse the new way may be. Zero fields take their defaults.
type Budget struct {
	Errors float64       // by how much the share of failures may be larger than the old way's; default 0.02
	Window time.Duration // over which they are counted; default 1 min
	Least  int           // failures before anything is concluded; default 5
}

func (b Budget) withDefaults() Budget {
	b.Errors = cmp.Or(b.Errors, 0.02)
	b.Window = cmp.Or(b.Window, time.Minute)
	b.Least = cmp.Or(b.Least, 5)
	return b
}

// sigmas is how far beyond the budget the new way has to be, in standard deviations, before it is not chance: it is looked at
// after every failure, and would be stopped sooner or later for what was bad luck.
const sigmas = 4

// exceeded tells whether the new way's failures are beyond the budget. Without answers of the old way there is nothing to
// compare with, and the budget is all that the new way has.
func (b Budget) exceeded(t Tally) bool {
	if t.New.Failed < b.Least {
		return false
	}
	allowed, spread := b.Errors, 1/float64(t.New.All)
	if t.Old.All > 0 {
		allowed += (float64(t.Old.Failed) + 1) / (float64(t.Old.All) + 2) // Laplace's: a few answers without a failure are no proof
		spread += 1 / float64(t.Old.All)
	}
	if allowed >= 1 {
		return false // where everything fails, it is not the new way's fault
	}
	return t.New.share() > allowed+sigmas*math.Sqrt(allowed*(1-allowed)*spread)
}

// Way is which of the two an answer came from.
type Way uint8

const (
	// Old is where everything went before.
	Old Way = iota
	// New is where a part of it goes now.
	New
)

// Count is how many answers there were.
type Count struct {
	All    int `json:"answers"`
	Failed int `json:"failed"`
}

func (c Count) share() float64 {
	if c.All == 0 {
		return 0
	}
	return float64(c.Failed) / float64(c.All)
}

func (c *Count) add(o Count) { c.All, c.Failed = c.All+o.All, c.Failed+o.Failed }

// Tally is what a Watch has counted of both ways.
type Tally struct {
	Old Count `json:"old"`
	New Count `json:"new"`
}

// slots is in how many parts a window is cut: it moves on by one of them at a time.
const slots = 12

// Watch counts what became of requests over a sliding window.
type Watch struct {
	budget Budget
	began  time.Time
	width  time.Duration
	slots  [slots]struct {
		turn  int64 // how many widths after began; what is older is of no account
		tally Tally
	}
}

// NewWatch begins to count.
func NewWatch(b Budget, now time.Time) *Watch {
	b = b.withDefaults()
	return &Watch{budget: b, began: now, width: max(b.Window/slots, 1)}
}

// Add counts an answer, and tells whether the new way's failures are beyond the budget.
func (w *Watch) Add(way Way, failed bool, now time.Time) (exceeded bool) {
	turn := w.turn(now)
	slot := &w.slots[turn%slots]
	if slot.turn != turn {
		slot.turn, slot.tally = turn, Tally{}
	}
	one := Count{All: 1}
	if failed {
		one.Failed = 1
	}
	if way == Old {
		slot.tally.Old.add(one)
		return false // an old way that gets better says nothing of the new one
	}
	slot.tally.New.add(one)
	return failed && w.budget.exceeded(w.Tally(now))
}

// Tally is what was counted within the window.
func (w *Watch) Tally(now time.Time) (sum Tally) {
	turn := w.turn(now)
	for _, slot := range w.slots {
		if turn-slot.turn < slots {
			sum.Old.add(slot.tally.Old)
			sum.New.add(slot.tally.New)
		}
	}
	return sum
}

func (w *Watch) turn(now time.Time) int64 { return int64(max(now.Sub(w.began), 0) / w.width) }
