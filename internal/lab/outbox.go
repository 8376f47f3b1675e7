package lab

import (
	"container/heap"
	"time"
)

// outboxBytes is how much may be under way to one site; what comes on top is dropped, as by a router whose buffer is
// full.
const outboxBytes = 16 << 20

// outbox is what is under way to one site, by the moment at which it arrives. Packets of one way and kind keep their
// order, also when a delay shrinks or jitters; packets of different ones do not wait for each other.
type outbox struct {
	waiting parcels
	floors  map[ruleKey]time.Time // nothing of the way and kind arrives before
	count   uint64                // of parcels so far: the order of those that are due at the same moment
	bytes   int
}

// sent is a packet under way.
type sent struct {
	key  ruleKey
	due  time.Time
	data []byte
	nth  uint64
}

// add puts a packet on its way; false: there is no room for it.
func (o *outbox) add(key ruleKey, due time.Time, data []byte) bool {
	if o.bytes+len(data) > outboxBytes {
		return false
	}
	if o.floors == nil {
		o.floors = map[ruleKey]time.Time{}
	}
	if floor := o.floors[key]; due.Before(floor) {
		due = floor
	}
	o.floors[key] = due
	o.count++
	o.bytes += len(data)
	heap.Push(&o.waiting, sent{key: key, due: due, data: data, nth: o.count})
	return true
}

// take returns the next packet that has arrived by now, or else how long the next one takes; 0: nothing is under way.
func (o *outbox) take(now time.Time) (p sent, arrived bool, wait time.Duration) {
	if len(o.waiting) == 0 {
		return sent{}, false, 0
	}
	if wait := o.waiting[0].due.Sub(now); wait > 0 {
		return sent{}, false, wait
	}
	p = heap.Pop(&o.waiting).(sent)
	o.bytes -= len(p.data)
	return p, true, 0
}

// parcels is a heap, the earliest first.
type parcels []sent

func (h parcels) Len() int      { return len(h) }
func (h parcels) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h parcels) Less(i, j int) bool {
	if !h[i].due.Equal(h[j].due) {
		return h[i].due.Before(h[j].due)
	}
	return h[i].nth < h[j].nth
}
func (h *parcels) Push(x any) { *h = append(*h, x.(sent)) }
func (h *parcels) Pop() any {
	last := len(*h) - 1
	p := (*h)[last]
	(*h)[last] = sent{}
	*h = (*h)[:last]
	return p
}
