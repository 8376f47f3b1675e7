package limit

import (
	"hash/maphash"
	"math"
	"sync"
	"time"
)

// Rate is a quota: so many a second in the long run, and Burst at once.
type Rate struct {
	PerSecond float64
	Burst     int // at least 1
}

// Allowance is what a bucket says to one request.
type Allowance struct {
	OK        bool
	Remaining int           // that could follow at once
	Wait      time.Duration // until one is allowed again; 0 if one is
	Full      time.Duration // until the whole burst is
}

const shards = 16

// Buckets are token buckets of one rate, by key. Each is only the moment at which it is full again (GCRA, the generic cell
// rate algorithm of ITU-T I.371). Of more keys than are kept, those that were not used for the longest time are
// forgotten: they begin anew with a full bucket.
type Buckets struct {
	every time.Duration // between two in the long run
	depth time.Duration // of a whole burst
	burst int
	seed  maphash.Seed
	shard [shards]shard
}

type shard struct {
	sync.Mutex
	most    int
	buckets map[string]*bucket
	newest  *bucket // a ring by use: newest.older …, newest.newer is the oldest
}

type bucket struct {
	key          string
	full         time.Time // when it is full again
	newer, older *bucket
}

// NewBuckets keeps at most the given number of keys (at least one in each of 16 parts).
func NewBuckets(rate Rate, most int) *Buckets {
	b := &Buckets{burst: max(rate.Burst, 1), seed: maphash.MakeSeed()}
	b.every = time.Duration(max(float64(time.Second)/rate.PerSecond, 1))
	b.depth = b.every * time.Duration(b.burst)
	for i := range b.shard {
		b.shard[i].most, b.shard[i].buckets = max(most/shards, 1), make(map[string]*bucket)
	}
	return b
}

// Len is how many keys are kept.
func (b *Buckets) Len() (n int) {
	for i := range b.shard {
		s := &b.shard[i]
		s.Lock()
		n += len(s.buckets)
		s.Unlock()
	}
	return n
}

// Take asks for one token of a key.
func (b *Buckets) Take(key string, now time.Time) Allowance {
	s := &b.shard[b.part(key)]
	s.Lock()
	defer s.Unlock()
	one := s.use(key, now)
	full := one.full
	if full.Before(now) {
		full = now
	}
	then := full.Add(b.every)
	if wait := then.Sub(now) - b.depth; wait > 0 {
		return Allowance{Wait: wait, Full: full.Sub(now)}
	}
	one.full = then
	left := b.depth - then.Sub(now)
	return Allowance{OK: true, Remaining: int(left / b.every), Full: then.Sub(now)}
}

func (b *Buckets) part(key string) uint64 { return maphash.String(b.seed, key) % shards }

// use finds a key's bucket and makes it the newest; a new one takes the place of the oldest.
func (s *shard) use(key string, now time.Time) *bucket {
	one := s.buckets[key]
	switch {
	case one != nil && one == s.newest:
		return one
	case one != nil:
		one.newer.older, one.older.newer = one.older, one.newer
	case len(s.buckets) >= s.most:
		one = s.newest.newer
		delete(s.buckets, one.key)
		if one.older == one {
			s.newest = nil
		} else {
			one.newer.older, one.older.newer = one.older, one.newer
			if s.newest == one {
				s.newest = one.older
			}
		}
		one.key, one.full = key, now
		s.buckets[key] = one
	default:
		one = &bucket{key: key, full: now}
		s.buckets[key] = one
	}
	if s.newest == nil {
		one.newer, one.older = one, one
	} else {
		one.older, one.newer = s.newest, s.newest.newer
		s.newest.newer.older = one
		s.newest.newer = one
	}
	s.newest = one
	return one
}

// Seconds rounds up, as Retry-After and RateLimit want it.
func Seconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }
