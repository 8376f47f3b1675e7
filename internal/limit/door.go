package limit

import "slices"

// Verdict is what becomes of somebody who arrives at a door.
type Verdict uint8

const (
	// In: it is inside, until Leave.
	In Verdict = iota
	// Wait: it waits, until Next names it or GiveUp.
	Wait
	// Away: it is turned away.
	Away
)

// Door lets a number of visitors be inside at the same time; some more may wait, in order of priority, then of arrival.
type Door[T comparable] struct {
	Limit   int // may be inside
	Pending int // may wait

	inside  int
	waiting int
	queues  [priorities][]T
}

// Inside and Waiting are how many there are.
func (d *Door[T]) Inside() int  { return d.inside }
func (d *Door[T]) Waiting() int { return d.waiting }

// Arrive takes in somebody who comes. Where nobody more can wait, one that waits at a lower priority is displaced, the one that
// came last: it is turned away in the newcomer's stead.
func (d *Door[T]) Arrive(p Priority, who T) (v Verdict, displaced T, displaces bool) {
	if d.inside < d.Limit && d.waiting == 0 {
		d.inside++
		return In, displaced, false
	}
	if d.waiting >= d.Pending {
		if displaced, displaces = d.displace(p); !displaces {
			return Away, displaced, false
		}
	}
	d.queues[p] = append(d.queues[p], who)
	d.waiting++
	return Wait, displaced, displaces
}

func (d *Door[T]) displace(below Priority) (who T, ok bool) {
	for p := range below {
		if q := d.queues[p]; len(q) > 0 {
			who = q[len(q)-1]
			d.queues[p] = slices.Delete(q, len(q)-1, len(q))
			d.waiting--
			return who, true
		}
	}
	return who, false
}

// Next lets in the one whose turn it is, if there is room. Call it until it says no after every Leave, and after Limit grew.
func (d *Door[T]) Next() (who T, ok bool) {
	if d.inside >= d.Limit || d.waiting == 0 {
		return who, false
	}
	for p := priorities - 1; p >= 0; p-- {
		if q := d.queues[p]; len(q) > 0 {
			who = q[0]
			d.queues[p] = slices.Delete(q, 0, 1)
			d.waiting--
			d.inside++
			return who, true
		}
	}
	panic("BUG: somebody waits at a door, and in no queue")
}

// Leave ends somebody's stay.
func (d *Door[T]) Leave() { d.inside-- }

// GiveUp ends somebody's wait. Not ok: it does not wait any more.
func (d *Door[T]) GiveUp(p Priority, who T) (ok bool) {
	i := slices.Index(d.queues[p], who)
	if i < 0 {
		return false
	}
	d.queues[p] = slices.Delete(d.queues[p], i, i+1)
	d.waiting--
	return true
}
