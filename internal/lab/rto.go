package lab

import (
	"slices"
	"time"

	"github.com/atollhq/atoll/topo"
)

// RTO is the time from the kill to the answer of the first acknowledged write, for each of the lost site's buckets that
// some register writes, in the order of the buckets. n is the number of buckets of their keyspace. A bucket for which no
// write was acknowledged again counts with the last attempt, the least that it can have been.
//
// An answer of the lost site itself, on its way at the kill, does not count.
func RTO(ops []Operation, l Loss, buckets []topo.BucketID, n int) []time.Duration {
	type recovery struct{ first, last time.Time }
	at := map[topo.BucketID]*recovery{}
	for i := range ops {
		o := &ops[i]
		if o.Op != registerWrite || !o.Returned().After(l.Killed) || o.Site == l.Lost && l.before(o) {
			continue
		}
		b := bucketOf(o.Key, n)
		if !slices.Contains(buckets, b) {
			continue
		}
		r := at[b]
		if r == nil {
			r = &recovery{}
			at[b] = r
		}
		if o.Outcome == OK && (r.first.IsZero() || o.Returned().Before(r.first)) {
			r.first = o.Returned()
		}
		if o.Returned().After(r.last) {
			r.last = o.Returned()
		}
	}
	var out []time.Duration
	for _, b := range slices.Sorted(slices.Values(buckets)) {
		switch r := at[b]; {
		case r == nil:
		case r.first.IsZero():
			out = append(out, r.last.Sub(l.Killed))
		default:
			out = append(out, r.first.Sub(l.Killed))
		}
	}
	return slices.Clip(out)
}

// before tells whether an operation began before the site was back.
func (l *Loss) before(o *Operation) bool { return l.Back.IsZero() || o.Invoked().Before(l.Back) }
