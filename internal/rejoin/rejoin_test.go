package rejoin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// lost is a document in which b took all of a's users and catalog over: users in two failovers.
func lost(t *testing.T) topo.Ownership {
	t.Helper()
	o := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{
		"users": {Buckets: 64, Hash: "md5", Ranges: []topo.Range{{First: 0, Last: 31, Owner: "a", Epoch: 4, State: topo.Open},
			{First: 32, Last: 63, Owner: "a", Epoch: 2, State: topo.Open}}},
		"catalog": {Buckets: 1, Hash: "md5", Ranges: []topo.Range{{Owner: "a", Epoch: 7, State: topo.Open}}},
	})
	for _, step := range []func(topo.Ownership) (topo.Ownership, error){
		func(o topo.Ownership) (topo.Ownership, error) {
			return o.StartMove("users", topo.Spans{{First: 8, Last: 15}}, "s1", "b")
		},
		func(o topo.Ownership) (topo.Ownership, error) {
			o, _, err := o.TakeOver("a", "b", "f1", 100)
			return o, err
		},
		func(o topo.Ownership) (topo.Ownership, error) {
			return o.AbortMove("users", topo.Spans{{First: 8, Last: 15}}, "s1")
		},
		func(o topo.Ownership) (topo.Ownership, error) {
			o, _, err := o.TakeOver("a", "b", "f2", 100)
			return o, err
		},
	} {
		var err error
		if o, err = step(o); err != nil {
			t.Fatal(err)
		}
	}
	return o
}

func TestClosingsAndArrears(t *testing.T) {
	t.Parallel()
	o := lost(t)
	want := "[{f1 catalog [{0 0 7}]} {f1 users [{0 7 4} {16 31 4} {32 63 2}]} {f2 users [{8 15 5}]}]"
	got := closings("a", o)
	var plain []struct {
		H topo.HandoverID
		K topo.KeyspaceID
		B []topo.EpochSpan
	}
	for _, c := range got {
		plain = append(plain, struct {
			H topo.HandoverID
			K topo.KeyspaceID
			B []topo.EpochSpan
		}{c.handover, c.keyspace, c.buckets})
	}
	if fmt.Sprint(plain) != want {
		t.Errorf("closings %v, want %s", plain, want)
	}
	if len(closings("b", o)) != 0 || len(arrears("a", o)) != 0 {
		t.Error("the taker has nothing to close, the lost site nothing to settle")
	}
	if a := arrears("b", o); len(a) != 2 || a[0].handover != "f1" || !slices.Equal(a[0].keyspaces, []topo.KeyspaceID{"catalog", "users"}) || len(a[0].others) != 0 || a[1].handover != "f2" {
		t.Errorf("arrears %+v", a)
	}
	if got[1].count() != 56 {
		t.Errorf("%d buckets", got[1].count())
	}
	rest := got[1].without(map[topo.BucketID]bool{0: true, 17: true, 63: true})
	if fmt.Sprint(rest.buckets) != "[{1 7 4} {16 16 4} {18 31 4} {32 62 2}]" {
		t.Errorf("the rest is %v", rest.buckets)
	}
}

// ground is a store and a database that remember; everything else of a Rejoin's surroundings.
type ground struct {
	t  *testing.T
	mu sync.Mutex

	o        topo.Ownership
	rev      store.Revision
	record   json.RawMessage
	rebuild  bool
	anewSaid bool                     // by the keeper: in the record
	stands   map[topo.SiteID][]uint64 // what sites say that they have of a's stream, one look after the other; the last stays
	silent   topo.SiteID
	commits  int
	breaks   []error // of the next commits, one each; a nil one succeeds
	landed   bool    // a commit that breaks has landed all the same
	close    func(postgres.CloseOrder) error
	closed   []string
	remarked []string
	here     chan struct{} // closed: the markers have come
	flushed  change.Position
	anew     []postgres.Anew
	calls    []string
	resyncs  error
	broken   error
}

func newGround(t *testing.T, o topo.Ownership) *ground {
	rec := handover.Record{Format: handover.Format, ID: "f1", Kind: handover.KindFailover, Move: handover.Move{From: "a", To: "b"}, Sites: []topo.SiteID{"b"}, Who: "x", Driver: "x",
		Phase: handover.Done, Outcome: handover.OutcomeDone, Decided: 3, Steps: []handover.Step{{Phase: handover.Done}},
		Failover: &handover.Failover{Taken: []topo.Taken{{Keyspace: "users", Buckets: []topo.EpochSpan{{Epoch: 1}}}}}}
	return &ground{t: t, o: o, rev: 1, record: rec.Encode(), here: make(chan struct{})}
}

func (g *ground) rejoin(site topo.SiteID, peers ...topo.SiteID) *Rejoin {
	return New(Config{Site: site, Sites: peers, Store: g, Fence: g, Rebuilding: g,
		Ownership: func() (topo.Ownership, bool) { g.mu.Lock(); defer g.mu.Unlock(); return g.o, true },
		WaitMarkers: func(ctx context.Context, _ topo.SiteID, _ topo.HandoverID, _ []topo.KeyspaceID) error {
			select {
			case <-g.here:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		},
		Flushed:   func(topo.SiteID) change.Position { g.mu.Lock(); defer g.mu.Unlock(); return g.flushed },
		BeginAnew: func(_ context.Context, a postgres.Anew, _ bool) error { g.anew = append(g.anew, a); return nil },
		Place: func(_ context.Context, target topo.SiteID) (change.Position, error) {
			g.calls = append(g.calls, "slot for "+string(target))
			return 33, nil
		},
		WaitVector: func(_ context.Context, v topo.Vector) error {
			g.calls = append(g.calls, fmt.Sprintf("waited for %v", v))
			return nil
		},
	})
}

func (g *ground) Ownership(context.Context) (topo.Ownership, store.Revision, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.o, g.rev, nil
}

func (g *ground) Handover(context.Context, topo.HandoverID) (json.RawMessage, store.Revision, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.record, g.rev, nil
}

func (g *ground) Lease(context.Context, topo.SiteID) (store.Lease, store.Revision, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return store.Lease{Rebuild: g.rebuild, Anew: g.anewSaid}, g.rev, nil
}

func (g *ground) Commit(_ context.Context, ch store.Change) (store.Revision, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.commits++
	var err error
	if len(g.breaks) > 0 {
		err, g.breaks = g.breaks[0], g.breaks[1:]
	}
	if err == nil || g.landed {
		if ch.Ownership != nil {
			g.o, g.record = ch.Ownership.Next, ch.Handover.Body
			g.rev++
		}
	}
	return g.rev, err
}

func (g *ground) CloseBuckets(_ context.Context, o postgres.CloseOrder) (change.Marker, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.close != nil {
		if err := g.close(o); err != nil {
			return change.Marker{}, err
		}
	}
	g.closed = append(g.closed, fmt.Sprintf("%s/%s %v", o.Handover, o.Keyspace, o.Buckets))
	return change.Marker{}, nil
}

func (g *ground) Remark(_ context.Context, o postgres.CloseOrder) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remarked = append(g.remarked, fmt.Sprintf("%s/%s", o.Handover, o.Keyspace))
	return nil
}

func (g *ground) Point(context.Context) (change.Position, error)              { return 50, nil }
func (g *ground) Tail(context.Context, topo.HandoverID) (a, k int, err error) { return 3, 4, nil }
func (g *ground) Replaced() bool                                              { return g.rebuild }
func (g *ground) Broken(context.Context, topo.SiteID) error                   { return g.broken }
func (g *ground) Rebuilt() {
	g.calls = append(g.calls, "rebuilt")
	g.rebuild, g.anewSaid = false, false
}

func (g *ground) Begin(_ context.Context, anew bool) error {
	g.calls = append(g.calls, fmt.Sprintf("begin %v", anew))
	g.rebuild, g.anewSaid = true, anew
	return nil
}

func (g *ground) Standing(_ context.Context, at topo.SiteID) (api.Standing, error) {
	if at == g.silent {
		return api.Standing{}, errors.New("no route")
	}
	says := g.stands[at]
	if len(says) == 0 {
		return api.Standing{}, nil
	}
	if len(says) > 1 {
		g.stands[at] = says[1:]
	}
	return api.Standing{Applied: says[0]}, nil
}

func (g *ground) Place(_ context.Context, at topo.SiteID, r api.PlaceRequest) (api.PlaceAnswer, error) {
	g.calls = append(g.calls, fmt.Sprintf("place at %s: %v %v", at, r.Place, r.Until))
	return api.PlaceAnswer{Position: 70}, nil
}

func (g *ground) Epochs(context.Context) (change.Epochs, error) {
	return change.Epochs{"users": {1: 4, 2: 99}}, nil
}
func (g *ground) Anew(_ context.Context, to topo.SiteID, r api.BeginAnewRequest) (api.BeginAnewAnswer, error) {
	text := fmt.Sprintf("anew at %s: %d %v", to, r.Position, r.Epochs)
	if r.Last {
		text = fmt.Sprintf("last %s %v", text, r.Until)
	}
	g.calls = append(g.calls, text)
	return api.BeginAnewAnswer{Position: 41}, nil
}

func (g *ground) Resync(_ context.Context, from topo.SiteID, cuts []topo.CutRange, _ func(string)) (postgres.ResyncReport, error) {
	g.calls = append(g.calls, fmt.Sprintf("resync from %s, %d cuts, %d closed", from, len(cuts), len(g.closed)))
	g.close = func(o postgres.CloseOrder) error { // its markers are gone
		e := &postgres.StaleError{Keyspace: o.Keyspace}
		for _, s := range o.Buckets {
			for b := s.First; b <= s.Last; b++ {
				e.Late = append(e.Late, postgres.LateBucket{Bucket: b, Asked: s.Epoch, Epoch: s.Epoch, State: "closed", Handover: o.Handover})
			}
		}
		return fmt.Errorf("fence: %w", e)
	}
	return postgres.ResyncReport{Copied: 10, Begins: 20, Tables: []postgres.ResyncTable{{Table: "t", Logged: 2}, {Table: "u", Logged: 3}}}, g.resyncs
}

// settleOnly is a document with one failover that is not settled.
func settleOnly(t *testing.T) topo.Ownership {
	t.Helper()
	o, _, err := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 64, Hash: "md5", Ranges: []topo.Range{{Last: 63, Owner: "a", Epoch: 4, State: topo.Open}}}}).TakeOver("a", "b", "f1", 100)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestSettling(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		prepare func(*ground)
		commits int
	}{
		{"at once", func(*ground) {}, 1},
		{"after a conflict", func(g *ground) { g.breaks = []error{store.ErrConflict, nil} }, 2},
		{"after an outcome that is not known, and was not", func(g *ground) { g.breaks = []error{store.ErrOutcomeUnknown, nil} }, 2},
		{"after an outcome that is not known, and was", func(g *ground) { g.breaks, g.landed = []error{store.ErrOutcomeUnknown}, true }, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := newGround(t, settleOnly(t))
				g.rebuild = true
				c.prepare(g)
				r := g.rejoin("b", "a")
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error, 1)
				go func() { ended <- r.Run(ctx) }()
				for _, stage := range []struct {
					waits string
					on    func()
				}{
					{"waits for the end of its tail: the closing markers of users", func() { close(g.here) }},
					{"waits for it to have the decisions about its tail on disk", func() { g.flushed = 50 }},
					{"run `atoll rebuild --site a`", func() { g.rebuild = false }},
				} {
					time.Sleep(10 * time.Second)
					synctest.Wait()
					if got := strings.Join(r.Status(), "\n"); !strings.Contains(got, stage.waits) || !strings.HasPrefix(got, "site a returns from failover f1: ") {
						t.Errorf("status %q; want %q", got, stage.waits)
					}
					if len(g.o.Cuts()) == 0 || g.commits > 0 {
						t.Fatal("settled too early")
					}
					g.mu.Lock()
					stage.on()
					g.mu.Unlock()
				}
				time.Sleep(10 * time.Second)
				synctest.Wait()
				rec, err := handover.DecodeRecord(g.record)
				if err != nil || len(g.o.Cuts()) != 0 || rec.Failover.Return == nil || rec.Failover.Return.Applied != 3 || rec.Failover.Return.Kept != 4 {
					t.Errorf("record %s, cuts %v, %v", g.record, g.o.Cuts(), err)
				}
				if g.commits != c.commits || len(r.Status()) != 0 {
					t.Errorf("%d commits, want %d; status %q", g.commits, c.commits, r.Status())
				}
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
			})
		})
	}
}

func TestReturning(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := newGround(t, lost(t))
		left := true
		g.close = func(o postgres.CloseOrder) error {
			if !o.EndBlockers {
				t.Error("its writers would be waited for, for ever")
			}
			switch {
			case o.Keyspace == "catalog" && left:
				return &postgres.WritersRemainError{Blockers: []postgres.Blocker{{PID: 5}, {GID: "it's", Role: "app"}}}
			case o.Handover == "f2": // a bucket that came back here in some other way is none of this failover's
				if o.Buckets[0].First == 8 {
					return &postgres.StaleError{Late: []postgres.LateBucket{{Bucket: 8, Asked: 5, Epoch: 6, State: "open"}}}
				}
			}
			return nil
		}
		r := g.rejoin("a", "b")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if got := strings.Join(r.Status(), "\n"); !strings.Contains(got, "as role app") || !strings.Contains(got, "ROLLBACK PREPARED 'it''s'") {
			t.Errorf("status %q", got)
		}
		g.mu.Lock()
		left = false
		g.mu.Unlock()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		slices.Sort(g.closed)
		if got := strings.Join(g.closed, "; "); got != "f1/catalog [{0 0 7}]; f1/users [{0 7 4} {16 31 4} {32 63 2}]; f2/users [{9 15 5}]" {
			t.Errorf("closed %s", got)
		}
		if got := r.Status(); len(got) != 2 || !strings.Contains(got[0], "returning from failover f1: 1") || !strings.Contains(got[0], "to apply its tail") {
			t.Errorf("status %q", got)
		}
		g.mu.Lock()
		g.o, _ = g.o.Settle("f1", true)
		g.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := r.Status(); len(got) != 1 || !strings.Contains(got[0], "f2") {
			t.Errorf("status %q after f1 is settled", got)
		}
		cancel()
		<-ended
	})
}

func TestRebuild(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	running := func(g *ground, peers ...topo.SiteID) *Rejoin {
		r := g.rejoin("a", peers...)
		r.mu.run = ctx
		return r
	}
	refusedWith := func(err error, check string) {
		t.Helper()
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeRefused || len(e.Problems) != 1 || e.Problems[0].Check != check {
			t.Errorf("got %v; want a refusal by %s", err, check)
		}
	}
	req := api.RebuildRequest{Site: "a"}
	g := newGround(t, lost(t))
	_, err := running(g, "b").Rebuild(ctx, "ann", req)
	refusedWith(err, "replaced")
	g.rebuild = true
	_, err = running(g).Rebuild(ctx, "ann", req)
	refusedWith(err, "from")
	_, err = running(g, "b").Rebuild(ctx, "ann", api.RebuildRequest{Site: "a", From: "d"})
	refusedWith(err, "from")
	g.silent = "c"
	_, err = running(g, "b", "c").Rebuild(ctx, "ann", req)
	refusedWith(err, "every-site")
	g.silent = ""
	if _, err = g.rejoin("a", "b").Rebuild(ctx, "ann", req); err == nil || !strings.Contains(err.Error(), "not active") {
		t.Error(err)
	}
	if _, err = running(g, "b").Rebuild(ctx, "ann", api.RebuildRequest{Site: "b"}); err == nil {
		t.Error("another site's agent rebuilds it")
	}
	first := newGround(t, topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 2, Ranges: []topo.Range{{Last: 1, Owner: "a", Epoch: 1, State: topo.Open}}}}))
	first.rebuild = true
	_, err = running(first, "b").Rebuild(ctx, "ann", req)
	refusedWith(err, "owns-nothing")

	if a, err := running(g, "b").Rebuild(ctx, "ann", api.RebuildRequest{Site: "a", DryRun: true}); err != nil || !a.DryRun || !slices.Equal(a.Handovers, []topo.HandoverID{"f1", "f2"}) || len(g.calls) != 0 {
		t.Errorf("dry run: %+v, %v, %v", a, err, g.calls)
	}
	a, err := running(g, "b").Rebuild(ctx, "ann", req)
	if err != nil || a.Logged != 5 || a.From != "b" {
		t.Fatalf("%+v, %v", a, err)
	}
	want := []string{"begin false", "begin true", "place at b: false map[]", "resync from b, 5 cuts, 3 closed", "anew at b: 20 map[users:map[1:4]]",
		"last anew at b: 20 map[users:map[1:4]] map[]", "rebuilt"}
	if !slices.Equal(g.calls, want) || !slices.Equal(g.remarked, []string{"f1/catalog", "f1/users", "f2/users"}) {
		t.Errorf("calls %q, marked again %q", g.calls, g.remarked)
	}

	failing := newGround(t, lost(t))
	failing.broken, failing.resyncs = postgres.ErrRebuild, errors.New("no space left") // the same database, but its slot is gone
	if _, err := running(failing, "b").Rebuild(ctx, "ann", req); err == nil || !strings.Contains(err.Error(), "no space left") || len(failing.calls) != 4 {
		t.Errorf("%v, calls %q", err, failing.calls)
	}
	// Again: the others may have begun anew by then, and say nothing of the former stream any more.
	failing.stands, failing.resyncs, failing.calls = map[topo.SiteID][]uint64{"b": {9}, "c": {1 << 40}}, nil, nil
	if _, err := running(failing, "b", "c").Rebuild(ctx, "ann", req); err != nil || failing.calls[0] != "begin true" {
		t.Errorf("%v, calls %q", err, failing.calls)
	}
}

func TestRebuildAmongThree(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		g := newGround(t, lost(t))
		g.rebuild = true
		g.stands = map[topo.SiteID][]uint64{"b": {5, 5, 5, 8}, "c": {8}}
		r := g.rejoin("a", "b", "c")
		r.mu.run = ctx
		if a, err := r.Rebuild(ctx, "ann", api.RebuildRequest{Site: "a", DryRun: true, From: "c"}); err != nil || a.From != "c" {
			t.Errorf("%+v, %v", a, err)
		}
		if a, err := r.Rebuild(ctx, "ann", api.RebuildRequest{Site: "a"}); err != nil || a.From != "b" {
			t.Errorf("%+v, %v", a, err)
		}
		anew := "20 map[users:map[1:4]]"
		want := []string{"begin false", "begin true", "place at c: true map[]", "place at b: false map[c:70]", "resync from b, 5 cuts, 3 closed",
			"anew at b: " + anew, "anew at c: " + anew, "last anew at b: " + anew + " map[c:41]", "last anew at c: " + anew + " map[b:41]", "rebuilt"}
		if !slices.Equal(g.calls, want) {
			t.Errorf("calls %q", g.calls)
		}
		// Two that never come to the same of its former stream: nothing is begun anew.
		g.rebuild, g.calls, g.stands = true, nil, map[topo.SiteID][]uint64{"b": {5}, "c": {8}}
		began := time.Now()
		_, err := r.Rebuild(ctx, "ann", api.RebuildRequest{Site: "a"})
		if err == nil || !strings.Contains(err.Error(), "site b up to 5 only") || time.Since(began) < equalBound || !slices.Equal(g.calls, []string{"begin false"}) {
			t.Errorf("%v, calls %q", err, g.calls)
		}
	})
}

func TestPlace(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	g := newGround(t, lost(t))
	r := g.rejoin("b", "a", "c")
	if _, err := r.Place(ctx, api.PlaceRequest{Site: "a", Place: true}); err == nil || !strings.Contains(err.Error(), "not active") {
		t.Error(err)
	}
	r.mu.run = ctx
	if a, err := r.Place(ctx, api.PlaceRequest{Site: "a", Place: true, Until: topo.Vector{"c": 9}}); err != nil || a.Position != 33 {
		t.Errorf("%+v, %v", a, err)
	}
	if !slices.Equal(g.calls, []string{"slot for a", "waited for map[c:9]"}) {
		t.Errorf("calls %q", g.calls)
	}
	for name, site := range map[string]topo.SiteID{"a stranger": "x", "an owner": "b"} {
		r.cfg.Sites = []topo.SiteID{"a", "b", "c"}
		if _, err := r.Place(ctx, api.PlaceRequest{Site: site}); err == nil {
			t.Errorf("%s is served", name)
		}
	}
	g.rebuild = true
	if _, err := r.Place(ctx, api.PlaceRequest{Site: "a"}); err == nil || !strings.Contains(err.Error(), "rebuilt itself") {
		t.Error(err)
	}
}

func TestBeginAnew(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	g := newGround(t, lost(t))
	r := g.rejoin("b", "a")
	for name, req := range map[string]api.BeginAnewRequest{
		"no position":     {Origin: "a"},
		"a bad position":  {Origin: "a", Position: 1 << 63},
		"an epoch of now": {Origin: "a", Position: 9, Epochs: change.Epochs{"users": {1: 5}}},
		"no such bucket":  {Origin: "a", Position: 9, Epochs: change.Epochs{"users": {64: 1}}},
		"an owner":        {Origin: "b", Position: 9},
	} {
		if _, err := r.BeginAnew(ctx, req); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
	if _, err := r.BeginAnew(ctx, api.BeginAnewRequest{Origin: "a", Position: 9, Epochs: change.Epochs{"users": {1: 4}}}); err != nil {
		t.Fatal(err)
	}
	if len(g.anew) != 1 || g.anew[0].Position != 9 || !slices.Contains(g.anew[0].Handovers, "f2") {
		t.Errorf("%+v", g.anew)
	}
}

func TestGate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var g Gate
		var mu sync.Mutex
		inside, entered := 0, 0
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 2)
		for range 2 {
			go func() {
				ended <- g.Run(ctx, func(ctx context.Context) error {
					mu.Lock()
					inside++
					entered++
					mu.Unlock()
					<-ctx.Done()
					mu.Lock()
					inside--
					mu.Unlock()
					return nil
				})
			}()
		}
		synctest.Wait()
		for round := range 3 {
			release := g.Hold()
			if mu.Lock(); inside != 0 || entered != 2*(round+1) {
				t.Errorf("%d inside, %d entered", inside, entered)
			}
			mu.Unlock()
			release()
			release()
			synctest.Wait()
		}
		if inside != 2 {
			t.Errorf("%d inside behind the hold", inside)
		}
		release := g.Hold()
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		release()
		if err := g.Run(t.Context(), func(context.Context) error { return errBy }); !errors.Is(err, errBy) {
			t.Errorf("one that ends by itself: %v", err)
		}
	})
}

var errBy = errors.New("by itself")
