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
	return recoveries(ops, l, buckets, n, func(o *Operation) bool { return o.Op == registerWrite })
}

// RTOOfAny is RTO with whoever's write comes first, of the same buckets: those that no register writes would measure how
// seldom somebody asks for them.
func RTOOfAny(ops []Operation, l Loss, buckets []topo.BucketID, n int) []time.Duration {
	asked := map[topo.BucketID]bool{}
	for i := range ops {
		if ops[i].Op == registerWrite {
			asked[bucketOf(ops[i].Key, n)] = true
		}
	}
	buckets = slices.DeleteFunc(slices.Clone(buckets), func(b topo.BucketID) bool { return !asked[b] })
	return recoveries(ops, l, buckets, n, func(o *Operation) bool {
		return o.Keyspace == users && o.Key != "" && o.Write && (o.Outcome != OK || o.Status < 300) // a refusal by the shop has written nothing
	})
}

func recoveries(ops []Operation, l Loss, buckets []topo.BucketID, n int, counts func(*Operation) bool) []time.Duration {
	type recovery struct{ first, last time.Time }
	at := map[topo.BucketID]*recovery{}
	for _, b := range buckets {
		at[b] = &recovery{}
	}
	for i := range ops {
		o := &ops[i]
		if !counts(o) || !o.Returned().After(l.Killed) || o.Site == l.Lost && l.before(o) {
			continue
		}
		r := at[bucketOf(o.Key, n)]
		if r == nil {
			continue
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
		case r.last.IsZero(): // nobody tried
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
