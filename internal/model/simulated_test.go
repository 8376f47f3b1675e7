package model

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// The simulated world: the real loops of the keeper and of the controller (lookouts and drivers), against a store and
// databases in memory, in synthetic time, with faults at exact moments. What a seed does is the same each time, but for
// what happens at one and the same nanosecond.

var (
	seedFlag = flag.Uint64("seed", 0, "TestSimulated: the run to play; 0: as many as -runs says")
	runsFlag = flag.Int("runs", 6, "TestSimulated: how many runs, each of twelve simulated minutes")
	keepFlag = flag.String("keep", "", "TestSimulated: with -seed, the numbers of the faults that happen, such as 0,3,7; empty: all")
)

const (
	simD       = 10 * time.Second
	simW       = 2 * time.Second
	simBuckets = 4
	simLength  = 10 * time.Minute
	simCalm    = 2 * time.Minute
)

var epochOfSim = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC) // when every bubble begins

// simulation is one run.
type simulation struct {
	seed       uint64
	plant      Plant
	background sync.WaitGroup // requests that are late
	broken     context.CancelFunc

	mu        sync.Mutex // all below, and every effect
	store     simStore
	site      [2]*simSite
	storeDown bool
	agentsCut bool // from each other
	linkCut   bool
	ending    bool
	found     []string // what is broken
	stats     map[string]int
	over      map[topo.HandoverID]bool
	owner     map[slot]int
	open      [2]map[topo.BucketID]topo.Epoch
	cut       map[topo.BucketID]topo.Cut
	committed int
}

type slot struct {
	bucket topo.BucketID
	epoch  topo.Epoch
}

func (s *simulation) do(effect func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	effect()
}

func (s *simulation) fail(format string, args ...any) {
	if len(s.found) == 0 {
		s.broken()
	}
	if len(s.found) < 5 {
		s.found = append(s.found, fmt.Sprintf("%9.3f s  ", time.Since(epochOfSim).Seconds())+fmt.Sprintf(format, args...))
	}
}

// simEvent is a fault, or a switch that somebody asks for.
type simEvent struct {
	at   time.Duration
	text string
	do   func(*simulation)
}

func (e simEvent) String() string { return fmt.Sprintf("%9.3f s  %s", e.at.Seconds(), e.text) }

// schedule draws a run's faults and switches.
func schedule(seed uint64) []simEvent {
	r := newSource(seed, "schedule")
	var out []simEvent
	add := func(text string, do func(*simulation)) {
		out = append(out, simEvent{r.between(5*time.Second, simLength-30*time.Second), text, do})
	}
	for range 8 + r.below(8) {
		at, long := r.below(2), r.between(simD/20, 3*simD)
		site := siteID(at)
		for_ := fmt.Sprintf(" for %.3f s", long.Seconds())
		switch r.below(10) {
		case 0:
			add("the agent of "+string(site)+" is killed, and starts"+fmt.Sprintf(" %.3f s later", long.Seconds()), func(s *simulation) { s.kill(at); time.Sleep(long); s.startAgent(at) })
		case 1, 2:
			add("the agent of "+string(site)+" is frozen"+for_, func(s *simulation) { s.freeze(at); time.Sleep(long); s.thaw(at) })
		case 3:
			add(string(site)+" is cut from the store"+for_, func(s *simulation) {
				s.during(long, func(on bool) { s.site[at].storeCut = on })
			})
		case 4:
			add("30 % of the calls of "+string(site)+" to the store are not answered"+for_, func(s *simulation) {
				s.during(long, func(on bool) { s.site[at].loss = map[bool]int{true: 30}[on] })
			})
		case 5:
			add("the database of "+string(site)+" is down"+for_, func(s *simulation) {
				s.do(s.site[at].db.crash)
				time.Sleep(long)
				s.do(func() { s.site[at].db.up = true })
			})
		case 6:
			add("the store is down"+for_, func(s *simulation) { s.during(long, func(on bool) { s.storeDown = on }) })
		case 7:
			add("the link is cut"+for_, func(s *simulation) { s.during(long, func(on bool) { s.linkCut = on }) })
		case 9:
			add("30 % of the calls of "+string(site)+"'s agent to its database are not answered"+for_, func(s *simulation) {
				s.during(long, func(on bool) { s.site[at].dbLoss = map[bool]int{true: 30}[on] })
			})
		case 8:
			add("the agents are cut from each other"+for_, func(s *simulation) { s.during(long, func(on bool) { s.agentsCut = on }) })
		}
	}
	for range 10 + r.below(10) {
		at, to, first := r.below(2), r.below(2), r.below(simBuckets)
		buckets := topo.Span{First: topo.BucketID(first), Last: topo.BucketID(first + r.below(simBuckets-first))}.String()
		add(fmt.Sprintf("%s is asked for a switch of %s to %s", siteID(at), buckets, siteID(to)), func(s *simulation) { s.ask(at, buckets, siteID(to)) })
	}
	slices.SortStableFunc(out, func(a, b simEvent) int { return int(a.at - b.at) })
	return out
}

func (s *simulation) during(long time.Duration, set func(on bool)) {
	s.do(func() { set(true) })
	time.Sleep(long)
	s.do(func() { set(false) })
}

func (s *simulation) ask(at int, buckets string, to topo.SiteID) {
	s.mu.Lock()
	a := s.site[at].agent
	s.mu.Unlock()
	if a == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := a.controller.Switch(ctx, "operator", api.SwitchRequest{Keyspace: keyspace, Buckets: buckets, To: to})
	s.do(func() { s.stats[map[bool]string{true: "asked for", false: "refused"}[err == nil]]++ })
}

// application is one of a site's: it writes to any bucket for which the fence lets it pass, and may take its time.
func (s *simulation) application(ctx context.Context, at, n int) {
	r, d := newSource(s.seed, fmt.Sprintf("application %d at %s", n, siteID(at))), s.site[at].db
	long := func(usually, most time.Duration) time.Duration {
		if r.chance(8) {
			return r.between(0, most)
		}
		return r.between(0, usually)
	}
	for pause(ctx, r.between(20*time.Millisecond, 1500*time.Millisecond)) == nil {
		t := &simTx{bucket: topo.BucketID(r.below(simBuckets))}
		passed := false
		s.do(func() {
			if passed = d.runs() && d.accepts(t.bucket); passed {
				d.tx[t] = true
			}
		})
		if !passed {
			continue
		}
		time.Sleep(long(20*time.Millisecond, 8*time.Second))
		gap := long(2*time.Millisecond, simW-time.Millisecond) // W: within it, the commit record is written
		s.do(func() {
			if d.tx[t] && !d.inForce() {
				delete(d.tx, t)
			}
		})
		time.Sleep(gap)
		s.do(func() {
			if d.tx[t] {
				s.checkCommit(d, t.bucket)
				d.append(simItem{kind: write, bucket: t.bucket, epoch: d.row[t.bucket].Epoch})
				delete(d.tx, t)
				d.hint()
				s.committed++
			}
		})
	}
}

// simulate plays a run and returns what is broken. kept says which events of its schedule happen.
func simulate(t *testing.T, seed uint64, plant Plant, kept []int) (*simulation, []string) {
	s := &simulation{seed: seed, plant: plant, stats: map[string]int{}, over: map[topo.HandoverID]bool{}, owner: map[slot]int{}, cut: map[topo.BucketID]topo.Cut{}}
	synctest.Test(t, func(*testing.T) { s.play(kept) })
	return s, s.found
}

func (s *simulation) play(kept []int) {
	s.store = simStore{lease: map[topo.SiteID]store.Lease{}, leaseRev: map[topo.SiteID]store.Revision{}, leaseAt: map[store.Revision]time.Time{}, record: map[topo.HandoverID]store.Handover{}}
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{keyspace: {Buckets: simBuckets, Hash: topo.HashMD5, Ranges: []topo.Range{
		{First: 0, Last: 2, Owner: "a", Epoch: 1, State: topo.Open}, {First: 3, Last: 3, Owner: "b", Epoch: 1, State: topo.Open}}}})
	clocks := newSource(s.seed, "clocks")
	for at := range s.site {
		s.site[at] = &simSite{id: at, db: newSimDB(at)}
		s.site[at].db.rate = 995 + clocks.below(10)
		s.site[at].db.ahead = clocks.between(0, 20*time.Minute) - 10*time.Minute
		s.open[at] = map[topo.BucketID]topo.Epoch{}
	}
	s.broken = func() {}
	s.do(func() {
		s.checkDocument(o, o)
		s.store.rev, s.store.owner, s.store.ownerRev = 1, o, 1
	})
	ctx, stop := context.WithCancel(context.Background())
	s.broken = stop // what comes behind the first breach says nothing
	s.startAgent(0)
	s.startAgent(1)
	var apps, events sync.WaitGroup
	for at := range s.site {
		for n := range 2 {
			apps.Go(func() { s.application(ctx, at, n) })
		}
	}
	for i, e := range schedule(s.seed) {
		if slices.Contains(kept, i) {
			events.Go(func() {
				if pause(ctx, e.at) == nil {
					e.do(s)
				}
			})
		}
	}
	if pause(ctx, simLength) == nil {
		events.Wait() // everything is up again
		s.startAgent(0)
		s.startAgent(1)
		_ = pause(ctx, simCalm)
	}
	stop()
	apps.Wait()
	events.Wait()
	time.Sleep(2 * simD)
	s.do(func() {
		if len(s.found) == 0 {
			s.checkEnd()
		}
		s.ending = true
	})
	s.kill(0)
	s.kill(1)
	s.background.Wait()
}

// checkDocument, checkCommit, checkOpen and checkApply are those of check.go.
func (s *simulation) checkDocument(was, is topo.Ownership) {
	if err := is.Validate(); err != nil {
		s.fail("I1: %v", err)
	}
	for b := range topo.BucketID(simBuckets) {
		p, q := must(was.At(keyspace, b)), must(is.At(keyspace, b))
		if q.Epoch < p.Epoch || q.Owner != p.Owner && q.Epoch == p.Epoch || p.State == topo.Moving && q.State == topo.Open && q.Epoch == p.Epoch {
			s.fail("I1: bucket %d goes from %s at epoch %d to %s at %d", b, p.Owner, p.Epoch, q.Owner, q.Epoch)
		}
		at := slot{b, q.Epoch}
		if owner, known := s.owner[at]; known && owner != siteOf(q.Owner) {
			s.fail("I1: bucket %d has two owners at epoch %d", b, q.Epoch)
		}
		s.owner[at] = siteOf(q.Owner)
		if q.Cut != nil && q.Owner != p.Owner {
			s.cut[b] = *q.Cut
		}
	}
}

func must[T any](v T, ok bool) T {
	if !ok {
		panic("BUG: the model's document lacks a bucket")
	}
	return v
}

func (s *simulation) checkCommit(d *simDB, b topo.BucketID) {
	r, there := d.row[b], other(d.id)
	switch owner, known := s.owner[slot{b, r.Epoch}]; {
	case r.State == "closed":
		s.fail("I3: %s commits a write to bucket %d behind its marker for epoch %d", siteID(d.id), b, r.Epoch)
	case s.open[there][b] > r.Epoch:
		s.fail("K1: %s commits a write to bucket %d at epoch %d; %s has opened it at epoch %d", siteID(d.id), b, r.Epoch, siteID(there), s.open[there][b])
	case !known || owner != d.id:
		s.fail("I2: %s commits a write to bucket %d at epoch %d, which the store never gave it", siteID(d.id), b, r.Epoch)
	}
}

func (s *simulation) checkOpen(at int, b topo.BucketID) {
	d, from := s.site[at].db, s.site[other(at)].db
	e := d.row[b].Epoch
	s.open[at][b] = max(s.open[at][b], e)
	if owner, known := s.owner[slot{b, e}]; !known || owner != at || d.row[b].State != "open" {
		s.fail("I6: %s opens bucket %d at epoch %d, which the store never gave it, or whose row is closed", siteID(at), b, e)
		return
	}
	if owner, known := s.owner[slot{b, e - 1}]; !known || owner == at {
		return
	}
	if from.up && from.accepts(b) {
		s.fail("I4: %s opens bucket %d at epoch %d while the fence of %s still accepts writes to it", siteID(at), b, e, siteID(from.id))
	}
	if c := s.cut[b]; c.Epoch == e-1 {
		if uint64(d.done) < c.Position {
			s.fail("I9: %s opens bucket %d without what stands at or before the cut %d of %s; it has %d", siteID(at), b, c.Position, c.Handover, d.done)
		}
		return
	}
	marker := slices.IndexFunc(from.log, func(i simItem) bool { return i.kind == closed && i.bucket == b && i.epoch == e-1 })
	if marker < 0 || d.done <= marker {
		s.fail("I3: %s opens bucket %d at epoch %d before it has applied the marker of epoch %d", siteID(at), b, e, e-1)
	}
}

func (s *simulation) checkApply(d *simDB, it simItem, stale bool) {
	c := s.cut[it.bucket]
	beyond := it.kind == write && c.From == siteID(other(d.id)) && c.Epoch >= it.epoch && uint64(d.done) >= c.Position
	if beyond != stale {
		s.fail("I5: %s applies change %d of bucket %d at epoch %d as stale=%t; the cut of epoch %d is %d", siteID(d.id), d.done+1, it.bucket, it.epoch, stale, c.Epoch, c.Position)
	}
	if stale {
		s.stats["stale changes"]++
	}
}

// checkEnd is what must hold after a calm time with everything up: nothing moves, is halted, missing or unsettled, and
// every bucket is open at its owner alone.
func (s *simulation) checkEnd() {
	for at, site := range s.site {
		d, from := site.db, s.site[other(at)].db
		if d.halted != "" || d.done != len(from.log) {
			s.fail("end: %s is halted for %q, and has applied %d of %d changes", siteID(at), d.halted, d.done, len(from.log))
		}
		for b := range topo.BucketID(simBuckets) {
			r := must(s.store.owner.At(keyspace, b))
			if r.State != topo.Open || r.Cut != nil {
				s.fail("end: bucket %d is %+v", b, r)
			}
			if d.accepts(b) != (siteOf(r.Owner) == at) {
				s.fail("end: bucket %d is %s's, and %s accepts=%t, row %+v", b, r.Owner, siteID(at), d.accepts(b), d.row[b])
			}
		}
	}
	for id := range s.store.record {
		if !s.over[id] {
			s.fail("end: handover %s is not over", id)
		}
	}
}

// shrink leaves events out for as long as the run still breaks something.
func shrink(t *testing.T, seed uint64, plant Plant, kept []int) ([]int, []string) {
	_, found := simulate(t, seed, plant, kept)
	for part := max(len(kept)/2, 1); ; part /= 2 {
		for i := 0; i+part <= len(kept); {
			without := append(slices.Clone(kept[:i]), kept[i+part:]...)
			if _, still := simulate(t, seed, plant, without); len(still) > 0 {
				kept, found = without, still
			} else {
				i += part
			}
		}
		if part <= 1 {
			return kept, found
		}
	}
}

// report is how a run failed, shrunk, with the command that plays it again.
func report(t *testing.T, seed uint64, plant Plant, kept []int) string {
	kept, found := shrink(t, seed, plant, kept)
	events := schedule(seed)
	var b strings.Builder
	var numbers []string
	for _, i := range kept {
		fmt.Fprintf(&b, "  %s\n", events[i])
		numbers = append(numbers, strconv.Itoa(i))
	}
	if len(kept) == 0 {
		numbers = []string{"none"}
	}
	if plant != "" {
		fmt.Fprintf(&b, "  (with %s planted)\n", plant)
	}
	return fmt.Sprintf("what happens:\n%swhat is broken:\n  %s\nplay it again: go test -run 'TestSimulated$' ./internal/model -seed=%d -keep=%s", b.String(),
		strings.Join(found, "\n  "), seed, strings.Join(numbers, ","))
}

func all(seed uint64) []int {
	out := make([]int, len(schedule(seed)))
	for i := range out {
		out[i] = i
	}
	return out
}

// TestSimulated plays runs of faults and switches.
func TestSimulated(t *testing.T) {
	t.Parallel()
	seeds := []uint64{*seedFlag}
	if *seedFlag == 0 {
		seeds = nil
		for n := range uint64(*runsFlag) {
			seeds = append(seeds, n+1)
		}
	}
	total := map[string]int{}
	began := time.Now()
	for _, seed := range seeds {
		kept := all(seed)
		if *keepFlag != "" && *seedFlag != 0 {
			kept = nil
			for n := range strings.SplitSeq(*keepFlag, ",") {
				if i, err := strconv.Atoi(n); err == nil {
					kept = append(kept, i)
				}
			}
		}
		s, found := simulate(t, seed, "", kept)
		if len(found) > 0 {
			t.Errorf("seed %d\n%s", seed, report(t, seed, "", kept))
			continue
		}
		for k, n := range s.stats {
			total[k] += n
		}
		total["writes"] += s.committed
	}
	hours := float64(len(seeds)) * (simLength + simCalm + 2*simD).Hours()
	t.Logf("%d runs, %.1f simulated hours in %s: %v", len(seeds), hours, time.Since(began).Round(time.Millisecond), sorted(total))
	if *seedFlag == 0 && len(seeds) >= 6 {
		for _, kind := range []string{"takeovers", "switch done", "switch aborted", "stale changes", "writes"} {
			if total[kind] == 0 && !t.Failed() {
				t.Errorf("no %s in %d runs: a whole kind of run is missing", kind, len(seeds))
			}
		}
	}
}

func sorted(m map[string]int) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(out, ", ")
}

// TestSimulatedSees plants bugs: some run must find each.
func TestSimulatedSees(t *testing.T) {
	t.Parallel()
	for plant, seeds := range map[Plant][]uint64{WaitOutRemoved: {1, 2, 3, 4, 5}, EpochIgnored: {1, 2, 3, 4, 5},
		// Rare: a late lease write, and a takeover at once behind it by a site that sees the store all the time. What falls on one
		// nanosecond decides, so a seed that found it may not the next time.
		LeaseRelative: {2, 150, 301, 2, 150, 301, 2, 150, 301, 2, 150, 301},
	} {
		t.Run(string(plant), func(t *testing.T) {
			for _, seed := range seeds {
				if _, found := simulate(t, seed, plant, all(seed)); len(found) > 0 {
					t.Logf("seed %d: %s", seed, found[0])
					return
				}
			}
			t.Error("no run has found it")
		})
	}
}

// TestSimulatedShrinks: of a run that breaks something, what does not matter is left out, and the rest breaks it again.
func TestSimulatedShrinks(t *testing.T) {
	t.Parallel()
	for seed := uint64(1); ; seed++ {
		if _, found := simulate(t, seed, WaitOutRemoved, all(seed)); len(found) == 0 {
			continue
		}
		kept, found := shrink(t, seed, WaitOutRemoved, all(seed))
		if len(kept) > 4 || len(found) == 0 {
			t.Errorf("seed %d: %d of %d events are left: %v, %v", seed, len(kept), len(all(seed)), kept, found)
		}
		if _, again := simulate(t, seed, WaitOutRemoved, kept); len(again) == 0 {
			t.Errorf("seed %d: events %v break nothing when they are played again", seed, kept)
		}
		t.Logf("seed %d: %d of %d events are left", seed, len(kept), len(all(seed)))
		return
	}
}
