package limit

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var start = time.Unix(1_000_000, 0)

// The door against a dumb twin: one list of everybody who waits, searched anew each time.
func TestDoor_AgainstATwin(t *testing.T) {
	t.Parallel()
	type waiting struct {
		p   Priority
		who int
	}
	rapid.Check(t, func(rt *rapid.T) {
		d := &Door[int]{Limit: rapid.IntRange(0, 4).Draw(rt, "limit"), Pending: rapid.IntRange(0, 4).Draw(rt, "pending")}
		inside, limit := 0, d.Limit
		var list []waiting
		best := func() int { // of the highest priority, the one that came first
			b := -1
			for i, w := range list {
				if b < 0 || w.p > list[b].p {
					b = i
				}
			}
			return b
		}
		worst := func(below Priority) int { // of the lowest priority, the one that came last
			b := -1
			for i, w := range list {
				if w.p < below && (b < 0 || w.p <= list[b].p) {
					b = i
				}
			}
			return b
		}
		next := func() {
			for {
				who, ok := d.Next()
				if want := inside < limit && len(list) > 0; ok != want {
					rt.Fatalf("next: %v, want %v", ok, want)
				}
				if !ok {
					return
				}
				i := best()
				if list[i].who != who {
					rt.Fatalf("next: %d, want %d of %v", who, list[i].who, list)
				}
				list = slices.Delete(list, i, i+1)
				inside++
			}
		}
		for who := range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch rapid.IntRange(0, 5).Draw(rt, "what") {
			case 0:
				if inside > 0 {
					d.Leave()
					inside--
					next()
				}
			case 1:
				d.Limit = rapid.IntRange(0, 6).Draw(rt, "limit")
				limit = d.Limit
				next()
			case 2:
				if len(list) > 0 {
					i := rapid.IntRange(0, len(list)-1).Draw(rt, "who")
					if !d.GiveUp(list[i].p, list[i].who) || d.GiveUp(list[i].p, list[i].who) {
						rt.Fatal("gave up not once")
					}
					list = slices.Delete(list, i, i+1)
				}
			default:
				p := Priority(rapid.IntRange(0, 2).Draw(rt, "priority"))
				v, displaced, displaces := d.Arrive(p, who)
				want := Wait
				out := -1
				switch {
				case inside < limit && len(list) == 0:
					want = In
					inside++
				case len(list) >= d.Pending:
					if out = worst(p); out < 0 {
						want = Away
					}
				}
				if v != want || displaces != (out >= 0) || displaces && displaced != list[out].who {
					rt.Fatalf("arrived at %d: %v, displaces %v %d; want %v, %d of %v", p, v, displaces, displaced, want, out, list)
				}
				if out >= 0 {
					list = slices.Delete(list, out, out+1)
				}
				if v == Wait {
					list = append(list, waiting{p, who})
				}
			}
			if d.Inside() != inside || d.Waiting() != len(list) {
				rt.Fatalf("%d inside and %d wait, want %d and %d", d.Inside(), d.Waiting(), inside, len(list))
			}
		}
	})
}

// world is a service behind a door with a limiter: so many servers that work for so long on each request, in order of arrival; what
// the servers do not work on waits there.
type world struct {
	limiter *Limiter
	door    Door[*visitor]
	servers func(at time.Duration) int
	takes   func(at time.Duration) time.Duration
	busy    int
	backlog []*visitor
	events  events
	rnd     *rand.Rand

	arrived, answered, away int
	slowest                 time.Duration // answer
	limits                  []int         // every 100 ms
}

type visitor struct {
	p     Priority
	began time.Duration
}

type event struct {
	at time.Duration
	do func(now time.Duration)
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any          { o := *e; x := o[len(o)-1]; *e = o[:len(o)-1]; return x }

func (w *world) at(when time.Duration, do func(now time.Duration)) {
	heap.Push(&w.events, event{when, do})
}

func (w *world) enter(v *visitor, now time.Duration) {
	v.began = now
	w.backlog = append(w.backlog, v)
	w.work(now)
}

func (w *world) work(now time.Duration) {
	for len(w.backlog) > 0 && w.busy < w.servers(now) {
		v := w.backlog[0]
		w.backlog = w.backlog[1:]
		w.busy++
		noise := time.Duration((0.9 + 0.2*w.rnd.Float64()) * float64(w.takes(now)))
		w.at(now+noise, func(now time.Duration) { w.leave(v, now) })
	}
}

func (w *world) leave(v *visitor, now time.Duration) {
	w.busy--
	w.answered++
	w.slowest = max(w.slowest, now-v.began)
	w.limiter.Add(Sample{Began: start.Add(v.began), Took: now - v.began, Inside: w.door.Inside()}, start.Add(now))
	w.door.Leave()
	w.door.Limit = w.limiter.Limit()
	for v, ok := w.door.Next(); ok; v, ok = w.door.Next() {
		w.enter(v, now)
	}
	w.work(now)
}

// run has requests come at random at a rate for a time.
func (w *world) run(from, until time.Duration, rate float64) {
	w.arrived, w.answered, w.away, w.slowest = 0, 0, 0, 0
	var arrive func(now time.Duration)
	arrive = func(now time.Duration) {
		if now >= until {
			return
		}
		w.arrived++
		v := &visitor{p: Normal}
		switch verdict, _, _ := w.door.Arrive(v.p, v); verdict {
		case In:
			w.enter(v, now)
		case Away:
			w.away++
		}
		w.at(now+time.Duration(w.rnd.ExpFloat64()/rate*float64(time.Second)), arrive)
	}
	w.at(from, arrive)
	for at := from; at < until; at += 100 * time.Millisecond {
		w.at(at, func(time.Duration) { w.limits = append(w.limits, w.limiter.Limit()) })
	}
	for len(w.events) > 0 && w.events[0].at < until {
		e := heap.Pop(&w.events).(event)
		e.do(e.at)
	}
}

func newWorld(servers int, takes time.Duration) *world {
	w := &world{limiter: NewLimiter(Adaptive{}), rnd: rand.New(rand.NewPCG(1, 2))}
	w.door = Door[*visitor]{Limit: w.limiter.Limit(), Pending: 32}
	w.servers = func(time.Duration) int { return servers }
	w.takes = func(time.Duration) time.Duration { return takes }
	return w
}

// Whatever a service can do, five times as much is sent: it goes on doing nearly all it can, and what it takes on is not
// far more than it works on. Behind that, everybody is let in again.
func TestLimiter_Overload(t *testing.T) {
	t.Parallel()
	for _, servers := range []int{1, 2, 5, 10, 40, 200} {
		for _, takes := range []time.Duration{time.Millisecond, 20 * time.Millisecond, 300 * time.Millisecond} {
			if float64(servers)/takes.Seconds() > 10_000 {
				continue // so many that the simulation takes too long
			}
			t.Run(fmt.Sprintf("%d at a time, %s each", servers, takes), func(t *testing.T) {
				t.Parallel()
				w := newWorld(servers, takes)
				can := float64(servers) / takes.Seconds()
				length := 60 * time.Second
				if can*length.Seconds() > 200_000 {
					length = time.Duration(200_000 / can * float64(time.Second))
				}
				length = max(length, 10*time.Second)
				w.run(0, length/6, 5*can) // it learns
				w.run(length/6, length, 5*can)
				share := float64(w.answered) / ((length - length/6).Seconds() * can)
				t.Logf("did %.1f %% of what it can; limit %d; slowest %s; base %s", 100*share, w.limiter.Limit(), w.slowest, w.limiter.Base())
				if share < 0.9 {
					t.Error("too little")
				}
				if most := 4*takes + 30*time.Millisecond; servers > 2 && w.slowest > most+most/2 {
					t.Errorf("an answer took %s", w.slowest)
				}
				w.run(length, length+length/6, 0.5*can)
				w.run(length+length/6, length+length/3, 0.5*can)
				if servers > 2 && w.away > w.arrived/100 {
					t.Errorf("with half of what it can do, %d of %d were turned away", w.away, w.arrived)
				}
			})
		}
	}
}

// A service that gets slow, or small, is found out; when it is well again, that too.
func TestLimiter_Changes(t *testing.T) {
	t.Parallel()
	for name, edit := range map[string]func(w *world){
		"it has a fifth of its servers": func(w *world) {
			w.servers = func(at time.Duration) int {
				if at > 20*time.Second && at < 60*time.Second {
					return 8
				}
				return 40
			}
		},
		"it works five times as slowly": func(w *world) {
			w.takes = func(at time.Duration) time.Duration {
				if at > 20*time.Second && at < 60*time.Second {
					return 100 * time.Millisecond
				}
				return 20 * time.Millisecond
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(40, 20*time.Millisecond)
			edit(w)
			w.run(0, 20*time.Second, 4000)
			good := w.answered
			w.run(20*time.Second, 40*time.Second, 4000)
			w.run(40*time.Second, 60*time.Second, 4000)
			bad := w.answered
			w.run(60*time.Second, 80*time.Second, 4000)
			w.run(80*time.Second, 100*time.Second, 4000)
			t.Logf("good %d, bad %d (limit then %v), good again %d; slowest %s; limits %v", good, bad, w.limits[590], w.answered, w.slowest, w.limits[len(w.limits)-20:])
			if bad < 20*400*85/100 || w.answered < 20*2000*85/100 {
				t.Error("too little was done")
			}
		})
	}
}

// On a quiet day the limit is in nobody's way, also where answers differ widely.
func TestLimiter_Quiet(t *testing.T) {
	t.Parallel()
	w := newWorld(100, 20*time.Millisecond)
	w.takes = func(time.Duration) time.Duration {
		return time.Duration(w.rnd.ExpFloat64() * float64(20*time.Millisecond))
	}
	w.run(0, 5*time.Second, 1000) // twenty at a time
	w.run(5*time.Second, 60*time.Second, 1000)
	t.Logf("%d of %d turned away; limit %d", w.away, w.arrived, w.limiter.Limit())
	if w.away > w.arrived/1000 {
		t.Error("too many")
	}
}

// Attempts that come to nothing shrink the limit, whatever the others' answers take.
func TestLimiter_Lost(t *testing.T) {
	t.Parallel()
	l := NewLimiter(Adaptive{First: 100, Min: 5})
	now := start
	for i := range 5000 {
		now = now.Add(5 * time.Millisecond)
		l.Add(Sample{Began: now.Add(-20 * time.Millisecond), Took: 20 * time.Millisecond, Inside: l.Limit(), Lost: i%4 == 0}, now)
	}
	if l.Limit() > 10 {
		t.Errorf("limit %d", l.Limit())
	}
}

// The buckets against a dumb twin: tokens as numbers, and a list in order of use.
func TestBuckets_AgainstATwin(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		rate := Rate{PerSecond: rapid.SampledFrom([]float64{0.5, 1, 10}).Draw(rt, "rate"), Burst: rapid.IntRange(1, 5).Draw(rt, "burst")}
		b := NewBuckets(rate, 0) // one in each part
		type one struct {
			tokens float64
			at     time.Time
		}
		twin := map[uint64]string{} // part → key
		state := map[string]*one{}
		now := start
		for range rapid.IntRange(1, 80).Draw(rt, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 8).Draw(rt, "later")) * 100 * time.Millisecond)
			key := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "key")
			part := b.part(key)
			if old := twin[part]; old != key {
				delete(state, old)
				twin[part], state[key] = key, &one{float64(rate.Burst), now}
			}
			s := state[key]
			s.tokens = min(s.tokens+now.Sub(s.at).Seconds()*rate.PerSecond, float64(rate.Burst))
			s.at = now
			want := s.tokens >= 1-1e-6
			got := b.Take(key, now)
			if got.OK != want {
				rt.Fatalf("%+v with %v tokens", got, s.tokens)
			}
			if want {
				s.tokens--
				if left := int(s.tokens + 1e-6); got.Remaining != left || got.Wait != 0 {
					rt.Fatalf("%+v with %v tokens left", got, s.tokens)
				}
			} else if wait := (1 - s.tokens) / rate.PerSecond; math.Abs(got.Wait.Seconds()-wait) > 1e-6 {
				rt.Fatalf("%+v, want to wait %v s", got, wait)
			}
			if full := (float64(rate.Burst) - s.tokens) / rate.PerSecond; math.Abs(got.Full.Seconds()-full) > 1e-6 {
				rt.Fatalf("%+v, want to be full in %v s", got, full)
			}
		}
	})
}

// Memory is bounded, and those that are used stay.
func TestBuckets_Bounded(t *testing.T) { // not in parallel: it counts allocations
	b := NewBuckets(Rate{PerSecond: 1, Burst: 1}, 1600)
	b.Take("mine", start)
	for i := range 100_000 {
		b.Take(fmt.Sprint(i), start)
		if i%10 == 0 && b.Take("mine", start).OK {
			t.Fatalf("after %d other keys it was forgotten", i)
		}
	}
	if n := b.Len(); n > 1600 || n < 1500 {
		t.Errorf("%d keys are kept", n)
	}
	if n := testing.AllocsPerRun(100, func() { b.Take("mine", start) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkBuckets(b *testing.B) {
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = fmt.Sprint("customer-", i)
	}
	buckets := NewBuckets(Rate{PerSecond: 1000, Burst: 100}, 1<<16)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for i := 0; pb.Next(); i++ {
			buckets.Take(keys[i%len(keys)], start)
		}
	})
}

// Some answers that take twenty times as long are no reason to let less through.
func TestLimiter_SomeAreSlow(t *testing.T) {
	t.Parallel()
	w := newWorld(1000, 20*time.Millisecond)
	w.takes = func(at time.Duration) time.Duration {
		if at > 10*time.Second && w.rnd.IntN(10) == 0 {
			return 400 * time.Millisecond
		}
		return 20 * time.Millisecond
	}
	w.run(0, 10*time.Second, 1000)
	w.run(10*time.Second, 40*time.Second, 1000)
	t.Logf("%d of %d turned away; limit %d", w.away, w.arrived, w.limiter.Limit())
	if w.away > w.arrived/1000 {
		t.Error("too many")
	}
}
