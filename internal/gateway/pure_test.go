package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

func viewOf(o topo.Ownership) *topo.View {
	v, err := topo.NewView(o)
	must0(err)
	return v
}

// The property that acknowledgements rest on: once a count was read as zero under a view that moves the bucket, no
// write of that bucket is under way, and none begins, until the view is replaced.
func TestFlightsMissNoWrite(t *testing.T) {
	t.Parallel()
	open := half()
	moving := change(open.StartMove("users", topo.SpansOf(0), "h", "b"))
	var current atomic.Pointer[snapshot]
	openSite, movingSite := route.First("a", viewOf(open), false), route.First("a", viewOf(moving), false)
	current.Store(&snapshot{site: openSite})
	var landed atomic.Int64
	f := newFlights(&current, testSpaces, func() { landed.Add(1) })
	var closed atomic.Bool
	var wrong, written atomic.Int64
	stop := make(chan struct{})
	var writers sync.WaitGroup
	for range 8 {
		writers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				snap := current.Load()
				if slot, _ := snap.site.View.Slot("users", 0); slot.Moving || !f.enter(snap, "users", 0) {
					runtime.Gosched()
					continue
				}
				if closed.Load() {
					wrong.Add(1)
				}
				written.Add(1)
				f.leave("users", 0)
			}
		})
	}
	// A writer that looks before it counts is caught only if it loses its processor in between, and if the bucket is
	// closed when it goes on.
	begin := time.Now()
	for round := 0; time.Since(begin) < 2*time.Second; round++ {
		snap := &snapshot{site: movingSite}
		current.Store(snap)
		for f.moving(snap)["h"] != 0 {
			runtime.Gosched()
		}
		closed.Store(true)
		<-time.After(time.Millisecond)
		closed.Store(false)
		current.Store(&snapshot{site: openSite})
		<-time.After(time.Duration(round%50) * 100 * time.Microsecond)
	}
	close(stop)
	writers.Wait()
	if wrong.Load() > 0 {
		t.Errorf("%d writes after the count was zero", wrong.Load())
	}
	if n := f.counts["users"][0].Load(); n != 0 {
		t.Errorf("%d left", n)
	}
	t.Logf("%d writes, %d landed while moving", written.Load(), landed.Load())
}

// testRoom is a room whose decision is a switch.
func testRoom(limits Hold) (r *room, hold *atomic.Bool, target route.Target) {
	hold = &atomic.Bool{}
	hold.Store(true)
	r = newRoom(limits, func() *snapshot { return nil }, func(*snapshot, route.Target) route.Decision {
		if hold.Load() {
			return route.Decision{Verdict: route.Hold}
		}
		return route.Decision{Verdict: route.Local}
	})
	return r, hold, route.Target{Route: &route.Route{Route: topo.Route{Keyspace: "users"}}, Keyed: true, Write: true}
}

// Of each bucket one at a time is let go, and of all so many; the next one when one is answered, or when it takes too long.
func TestRoomReleasesInOrderAndPaced(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		buckets int
		takes   time.Duration // an answer
		most    int           // under way at a time
		within  [2]time.Duration
	}{
		"one bucket, quick answers": {1, time.Millisecond, 1, [2]time.Duration{640 * time.Millisecond, 700 * time.Millisecond}},
		"one bucket, slow answers":  {1, time.Minute, 640, [2]time.Duration{time.Second, 2 * time.Second}},
		"many, quick answers":       {160, 10 * time.Millisecond, releaseBurst, [2]time.Duration{90 * time.Millisecond, 120 * time.Millisecond}},
		"many, slow answers":        {160, time.Minute, 640, [2]time.Duration{900 * time.Millisecond, 1200 * time.Millisecond}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const n = 10 * releaseBurst
				r, hold, target := testRoom(Hold{MaxPerBucket: n, MaxRequests: n})
				var mu sync.Mutex
				last := make(map[topo.BucketID]int)
				there, most := 0, 0
				var group sync.WaitGroup
				for i := range n {
					group.Go(func() {
						at := target
						at.Bucket = topo.BucketID(i % c.buckets)
						end, passed := r.wait(t.Context(), at, time.Now().Add(time.Hour), func() {})
						if end != holdReleased {
							t.Error(end)
						}
						mu.Lock()
						if before, any := last[at.Bucket]; any && before > i {
							t.Errorf("%d of bucket %d went before %d", before, at.Bucket, i)
						}
						last[at.Bucket] = i
						there++
						most = max(most, there)
						mu.Unlock()
						time.Sleep(c.takes) // of the bubble: no time passes outside
						mu.Lock()
						there--
						mu.Unlock()
						passed()
						passed()
					})
					synctest.Wait() // the order of arrival is the order of i
				}
				start := time.Now()
				hold.Store(false)
				r.settle(nil)
				group.Wait()
				if most > c.most {
					t.Errorf("%d at a time, want %d", most, c.most)
				}
				if d := time.Since(start) - c.takes; d < c.within[0]-c.takes || d > c.within[1] {
					t.Errorf("the release took %s", d)
				}
				r.close()
				if r.held() != 0 || len(r.mu.queues) != 0 {
					t.Errorf("%d held", r.held())
				}
			})
		})
	}
}

// More are let go at a time where that gets more answered, and not where they only wait for each other.
func TestPacerLooksHowLongAnswersTake(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		places      int // of the application: so many answers are made at a time
		takes       time.Duration
		atLeast, to int // under way at a time
		within      time.Duration
	}{
		"a way that is long":    {1000, 50 * time.Millisecond, 200, 200, 2500 * time.Millisecond},
		"an application's most": {4, time.Millisecond, releaseBurst, releaseBurst + 16, 2100 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				const buckets, each = 800, 10
				places := make(chan bool, c.places)
				var there, most atomic.Int64
				var group sync.WaitGroup
				queues := make([][]*waiter, buckets)
				for i := range queues {
					for range each {
						w := &waiter{free: make(chan struct{})}
						queues[i] = append(queues[i], w)
						group.Go(func() {
							<-w.free
							n := there.Add(1)
							for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
							}
							places <- true
							time.Sleep(c.takes) // of the bubble
							<-places
							there.Add(-1)
							w.passed()
						})
					}
				}
				start := time.Now()
				newPacer(queues, nil).run()
				group.Wait()
				if n := int(most.Load()); n < c.atLeast || n > c.to {
					t.Errorf("%d at a time", n)
				}
				if d := time.Since(start); d > c.within {
					t.Errorf("took %s", d)
				}
			})
		})
	}
}

// Whoever left while its turn had not come is not waited for; at the end everybody is let go at once.
func TestPacer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		queue := make([]*waiter, 5)
		for i := range queue {
			queue[i] = &waiter{free: make(chan struct{})}
		}
		for _, w := range queue[:3] {
			w.gone.Store(true)
		}
		stop := make(chan struct{})
		p := newPacer([][]*waiter{queue}, stop)
		began := time.Now()
		done := make(chan struct{})
		go func() { p.run(); close(done) }()
		<-queue[3].free
		if d := time.Since(began); d > 0 {
			t.Errorf("waited %s for those who had left", d)
		}
		close(stop)
		<-queue[4].free
		<-done
	})
}

func TestRoomEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, hold, target := testRoom(Hold{MaxPerBucket: 2, MaxRequests: 3})
		wait := func(ctx context.Context, b topo.BucketID, d time.Duration) chan holdEnd {
			end := make(chan holdEnd, 1)
			at := target
			at.Bucket = b
			go func() {
				how, _ := r.wait(ctx, at, time.Now().Add(d), func() {})
				end <- how
			}()
			synctest.Wait()
			return end
		}
		gone, leave := context.WithCancel(t.Context())
		first, second := wait(t.Context(), 0, time.Second), wait(gone, 0, time.Minute)
		if end := <-wait(t.Context(), 0, time.Minute); end != holdBucketFull {
			t.Error(end)
		}
		third := wait(t.Context(), 1, time.Minute)
		if end := <-wait(t.Context(), 2, time.Minute); end != holdFull {
			t.Error(end)
		}
		if end := <-first; end != holdTimeout {
			t.Error(end)
		}
		leave()
		if end := <-second; end != holdClientGone {
			t.Error(end)
		}
		hold.Store(false) // a view that came between decision and entry
		if end := <-wait(t.Context(), 5, time.Minute); end != holdReleased {
			t.Error(end)
		}
		r.settle(nil)
		if end := <-third; end != holdReleased {
			t.Error(end)
		}
		synctest.Wait()
		if r.held() != 0 {
			t.Errorf("%d held", r.held())
		}
		r.close()
	})
}

func TestReplay(t *testing.T) {
	t.Parallel()
	for _, size := range []int{0, 1, 1000, keepBody, keepBody + 1, 3 * keepBody} {
		text := strings.Repeat("0123456789", size/10+1)[:size]
		p := newReplay(iotest.HalfReader(strings.NewReader(text)), int64(size), Pace{}.withDefaults(), func(time.Time) error { return nil })
		first, _ := p.next()
		half := make([]byte, size/2)
		if _, err := io.ReadFull(first, half); err != nil && size > 1 {
			t.Fatal(err)
		}
		second, ok := p.next()
		if !ok {
			if size <= keepBody {
				t.Errorf("%d bytes cannot be sent again", size)
			}
			continue
		}
		if _, err := first.Read(make([]byte, 1)); !errors.Is(err, errRevoked) {
			t.Errorf("the first attempt goes on: %v", err)
		}
		if all, err := io.ReadAll(second); err != nil || string(all) != text {
			t.Errorf("%d of %d bytes, %v", len(all), size, err)
		}
		if third, ok := p.next(); ok != (size <= keepBody) && size != keepBody+1 {
			t.Errorf("%d bytes: third attempt %v", size, ok)
		} else if ok {
			if all, err := io.ReadAll(third); err != nil || string(all) != text {
				t.Errorf("third attempt: %d of %d bytes, %v", len(all), size, err)
			}
		}
		if p.failed() != nil || !p.whole() {
			t.Error("the body came whole")
		}
	}
}

// An attempt that is stuck in a slow client's body does not take a byte from the one that follows.
func TestReplayOvertakesAStuckAttempt(t *testing.T) {
	t.Parallel()
	pr, pw := io.Pipe()
	p := newReplay(pr, -1, Pace{}.withDefaults(), func(time.Time) error { return nil })
	first, _ := p.next()
	stuck := make(chan error, 1)
	go func() { _, err := first.Read(make([]byte, 10)); stuck <- err }()
	eventually(t, "the first attempt reads", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return p.mu.busy })
	second, ok := p.next()
	if !ok {
		t.Fatal("no second attempt")
	}
	all := make(chan string, 1)
	go func() { b, _ := io.ReadAll(second); all <- string(b) }()
	for _, piece := range []string{"one", "two"} {
		_, _ = io.WriteString(pw, piece)
	}
	pw.Close()
	if err := <-stuck; !errors.Is(err, errRevoked) {
		t.Error(err)
	}
	if got := <-all; got != "onetwo" {
		t.Errorf("%q", got)
	}
}

func TestViewsAwait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		v := newViews("a", func(*snapshot, time.Time) {})
		has := func(s *snapshot) bool { return s.site != nil }
		start := time.Now()
		if _, ok := v.await(t.Context(), time.Second, has); ok || time.Since(start) != time.Second {
			t.Error("the bound")
		}
		go func() {
			<-time.After(time.Millisecond)
			must0(v.apply(viewOf(half()), 0, true))
		}()
		if s, ok := v.await(t.Context(), time.Hour, has); !ok || s.site == nil {
			t.Error("the view came")
		}
	})
}

func FuzzDecodeLine(f *testing.F) {
	good, err := json.Marshal(map[string]any{"format": 1, "ownership": json.RawMessage(half().Encode()), "opened_version": 3})
	must0(err)
	for _, s := range []string{string(good), `{"format":1}`, `{"format":1,"ownership":null}`, `{"format":2}`, "", "{", `{"format":1,"ownership":{"format":1}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		view, _, _, err := decodeLine(line)
		if err != nil || view == nil {
			return
		}
		if err := view.Ownership.Validate(); err != nil {
			t.Fatalf("took a view that is not valid: %v", err)
		}
		v := newViews("a", func(*snapshot, time.Time) {})
		if err := v.apply(view, 0, true); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzForwardedHeaders(f *testing.F) {
	f.Add("users", "83", "7", "1.17", "1", "users/83/7")
	f.Add("", "-1", "99999999999999999999", "1", "x", "a/b/c/d")
	f.Fuzz(func(t *testing.T, ks, bucket, epoch, view, hops, fenced string) {
		h := http.Header{hKeyspace: {ks}, hBucket: {bucket}, hEpoch: {epoch}, hView: {view}, hHops: {hops}, hFenced: {fenced}}
		parseFenced(h)
		got, err := parseForwarded(h)
		if err != nil {
			return
		}
		again := http.Header{}
		got.set(again)
		if same, err := parseForwarded(again); err != nil || same != got {
			t.Fatalf("%+v became %+v, %v", got, same, err)
		}
	})
}

func BenchmarkProxyLocal(b *testing.B) { benchmarkProxy(b, 0, "POST", "/users", "x") }

func BenchmarkProxyForward(b *testing.B) { benchmarkProxy(b, 9, "POST", "/users", "x") }

func BenchmarkProxyRead(b *testing.B) { benchmarkProxy(b, 0, "GET", "/users", "") }

func BenchmarkProxyStrongRead(b *testing.B) { benchmarkProxy(b, 0, "GET", "/strong", "") }

func benchmarkProxy(b *testing.B, bucket topo.BucketID, method, path, body string) {
	app := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "ok") })
	here, there := pair(b, app, app, nil)
	publish(half(), 1, here, there)
	here.ready(b, 1)
	there.ready(b, 1)
	c := newClient(b)
	key, url := keyIn(bucket), here.url(path)
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			want(b, do(b, c, method, url, key, body), 200, "")
		}
	})
}

// What is left of a lease is asked for again while it lasts: one that was renewed late does not lapse here for want of
// having been asked for.
func TestUntilAck(t *testing.T) {
	t.Parallel()
	for remaining, want := range map[time.Duration]time.Duration{
		10 * time.Second:       ackEvery,
		2 * time.Second:        time.Second,
		600 * time.Millisecond: 300 * time.Millisecond,
		60 * time.Millisecond:  ackSoonest,
		0:                      ackEvery / 4,
		-time.Second:           ackEvery / 4,
	} {
		if got := untilAck(remaining); got != want {
			t.Errorf("with %s left: %s, want %s", remaining, got, want)
		}
	}
	asked := 0
	for left := 500 * time.Millisecond; left > 0; left -= untilAck(left) {
		asked++
	}
	if asked < 4 {
		t.Errorf("asked %d times while the last half second lasts", asked)
	}
}
