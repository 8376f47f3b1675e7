package replicate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

func TestMain(m *testing.M) {
	code := pgserver.RunMain(m)
	os.RemoveAll(certificates)
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// certificates is the folder of the identities that all tests share.
var certificates string

var identities = sync.OnceValues(func() (map[string]*pki.Identity, error) {
	var err error
	if certificates, err = os.MkdirTemp("", "atoll-replicate-*"); err != nil {
		return nil, err
	}
	if err := pki.Init(certificates, "shop"); err != nil {
		return nil, err
	}
	out := make(map[string]*pki.Identity)
	for _, role := range []pki.Role{{Kind: pki.Site, Name: "a"}, {Kind: pki.Site, Name: "b"}, {Kind: pki.Site, Name: "c"}, {Kind: pki.Operator, Name: "anna"}} {
		if err := pki.Issue(certificates, role); err != nil {
			return nil, err
		}
		if out[role.File()], err = pki.Load(certificates, role.File()); err != nil {
			return nil, err
		}
	}
	return out, nil
})

func identity(t testing.TB, file string) *pki.Identity {
	t.Helper()
	all, err := identities()
	if err != nil {
		t.Fatal(err)
	}
	return all[file]
}

var table = &change.Table{ID: 1, Schema: "public", Name: "t", Identity: 'd', Columns: []change.Column{{Name: "v", Type: 25, Key: true}}}

func row(value string) change.Row {
	return change.Row{Op: change.Insert, Table: table, New: []change.Value{{Kind: change.Text, Bytes: []byte(value)}}}
}

func oneTx(site topo.SiteID, pos change.Position, values ...string) change.Tx {
	tx := change.Tx{Origin: site, Position: pos, XID: uint64(pos), Committed: time.Now().Truncate(time.Microsecond), First: true, Last: true}
	for _, v := range values {
		tx.Rows = append(tx.Rows, row(v))
	}
	return tx
}

// quick are settings for tests that wait for a silence on the real clock.
var quick = link.Settings{Heartbeat: 50 * time.Millisecond, Silence: 400 * time.Millisecond, Connect: 2 * time.Second}

// server is a Serve that runs, and where it listens.
type server struct {
	*Serve
	addr string
	stop context.CancelFunc
}

func logger(t testing.TB) *slog.Logger {
	if testing.Verbose() {
		return slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	return slog.New(slog.DiscardHandler)
}

func serve(t testing.TB, db *originDB, change ...func(*Serve)) *server {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Serve{Site: db.site, Deployment: "shop", Identity: identity(t, "site-"+string(db.site)), Open: db.open, Settings: quick, Logger: logger(t)}
	for _, f := range change {
		f(s)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Run(ctx, ln); err != nil {
			t.Error(err)
		}
	})
	stop := func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return &server{s, ln.Addr().String(), stop}
}

type follower struct {
	*Follow
	stop context.CancelFunc
}

func follow(t testing.TB, db *targetDB, origin topo.SiteID, addr string, change ...func(*Follow)) *follower {
	t.Helper()
	f := &Follow{Site: db.site, Origin: origin, Deployment: "shop", Addr: addr, Identity: identity(t, "site-"+string(db.site)),
		Open: db.opener(origin), CopyFrom: true, Settings: quick, Logger: logger(t)}
	for _, g := range change {
		g(f)
	}
	if f.Applied == nil {
		var err error
		if f.Applied, err = LoadApplied(t.Context(), db.site, db); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop := func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return &follower{f, stop}
}

// eventually waits for a condition that becomes true by itself.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(60 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func wantText(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			t.Errorf("%q lacks %q", text, part)
		}
	}
}

// TestExactlyOnceInOrder streams while the path is cut, reset and stalled hundreds of times, and commits lose their
// answers.
func TestExactlyOnceInOrder(t *testing.T) {
	t.Parallel()
	const cuts = 200
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("ATOLL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("again: ATOLL_SEED=%d go test -run TestExactlyOnceInOrder ./internal/replicate", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	origin, target := newOrigin("a"), newTarget(t, "b")
	origin.write(oneTx("a", 20, "copied 1"), oneTx("a", 30, "copied 2"))
	lose := rand.New(rand.NewPCG(seed, 2))
	target.mu.lost = func() bool { return lose.IntN(2000) == 0 }

	s := serve(t, origin)
	p := newPath(t, s.addr)
	f := follow(t, target, "a", p.addr(), func(f *Follow) { f.Settings.Window = 64 << 10 })

	want := []string{"copied 1", "copied 2"}
	pos, done := change.Position(30), 0
	begin := func() {
		for range 1 + rnd.IntN(20) {
			pos += change.Position(1 + rnd.IntN(100))
			parts := 1
			if rnd.IntN(10) == 0 {
				parts = 2 + rnd.IntN(4)
			}
			var txs []change.Tx
			for i := range parts {
				values := []string{fmt.Sprintf("%d.%d %s", pos, i, strings.Repeat("x", rnd.IntN(3000)))}
				if parts == 1 && rnd.IntN(10) == 0 {
					values = nil // only moves the position on
				}
				tx := oneTx("a", pos, values...)
				tx.First, tx.Last = i == 0, i == parts-1
				txs = append(txs, tx)
				want = append(want, values...)
			}
			origin.write(txs...)
		}
	}
	eventually(t, "the copy", func() bool { return target.at("a") >= 30 })
	tick := time.NewTicker(3 * time.Millisecond)
	defer tick.Stop()
	for done < cuts {
		begin()
		for range rnd.IntN(6) {
			<-tick.C
		}
		switch rnd.IntN(10) {
		case 0:
			p.stall()
			<-tick.C
			p.cut(true)
			p.heal()
			done++
		case 1, 2, 3:
			if p.cut(true) > 0 {
				done++
			}
		default:
			if p.cut(false) > 0 {
				done++
			}
		}
	}
	begin()
	eventually(t, fmt.Sprintf("position %d", pos), func() bool { return target.at("a") == pos })
	if got := target.valuesOf("a"); !slices.Equal(got, want) {
		t.Fatalf("%d values arrived, want %d, first difference at %d", len(got), len(want), firstDifference(got, want))
	}
	eventually(t, "the confirmation", func() bool { return origin.confirmed("b") == pos })
	origin.mu.Lock()
	most := origin.mu.most
	origin.mu.Unlock()
	if most != 1 {
		t.Errorf("%d streams ran at once for one target", most)
	}
	if v := f.Applied.Vector(); v["a"] != uint64(pos) {
		t.Errorf("vector %v, want position %d", v, pos)
	}
	t.Logf("%d transactions in %d commits, %d cuts", len(want), target.mu.commits, done)
}

func firstDifference(a, b []string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

func TestCopyBrokenInTheMiddleStartsAgain(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	var want []string
	rnd := rand.New(rand.NewPCG(3, 4))
	for i := range 2000 {
		want = append(want, fmt.Sprintf("%d %x", i, rnd.Uint64())+strings.Repeat(fmt.Sprintf(" %x", rnd.Uint64()), 5))
		origin.write(oneTx("a", change.Position(20+i), want[i]))
	}
	p := newPath(t, serve(t, origin).addr)
	p.limit(20_000)
	follow(t, target, "a", p.addr())
	for i := range 20 {
		eventually(t, "the cut", p.spent)
		if target.at("a") != 0 {
			t.Fatalf("half a copy was recorded at cut %d", i)
		}
		p.limit(5_000 + rnd.IntN(30_000))
	}
	p.limit(0)
	eventually(t, "the copy", func() bool { return target.at("a") == 2019 })
	origin.write(oneTx("a", 5000, "streamed"))
	eventually(t, "what follows", func() bool { return target.at("a") == 5000 })
	if got := target.valuesOf("a"); !slices.Equal(got, append(want, "streamed")) {
		t.Errorf("%d values arrived, want %d", len(got), len(want)+1)
	}
}

func TestFreshStartCopiesNothingAndRecordsItsPlace(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("b"), newTarget(t, "a")
	origin.write(oneTx("b", 77, "from before"))
	f := follow(t, target, "b", serve(t, origin).addr, func(f *Follow) { f.CopyFrom = false })
	eventually(t, "the place in the stream", func() bool { return target.at("b") == 77 })
	origin.write(oneTx("b", 80, "new"))
	eventually(t, "what follows", func() bool { return target.at("b") == 80 })
	if got := target.valuesOf("b"); !slices.Equal(got, []string{"new"}) {
		t.Errorf("values %q", got)
	}
	eventually(t, "no lag", func() bool { st := f.State(); return st.LagKnown && st.Lag == 0 && st.Phase == Streaming })
}

func TestFailureStopsTheLinkAndKeepsThePosition(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	s := serve(t, origin)
	f := follow(t, target, "a", s.addr)
	origin.write(oneTx("a", 20, "good"))
	eventually(t, "the first", func() bool { return target.at("a") == 20 })
	target.fail(errors.New("duplicate key in public.t"))
	origin.write(oneTx("a", 30, "bad"), oneTx("a", 40, "after it"))
	eventually(t, "the reason at the target", func() bool { return strings.Contains(f.State().Err, "duplicate key") })
	wantText(t, f.State().Err, "applying changes of site a behind position 20")
	eventually(t, "the reason at the origin", func() bool {
		states := s.State()
		return len(states) == 1 && strings.Contains(states[0].Err, "site b: ") && strings.Contains(states[0].Err, "duplicate key")
	})
	if got := origin.confirmed("b"); got != 20 {
		t.Errorf("confirmed is %d", got)
	}
	target.fail(nil)
	eventually(t, "the rest", func() bool { return target.at("a") == 40 })
	if got := target.valuesOf("a"); !slices.Equal(got, []string{"good", "bad", "after it"}) {
		t.Errorf("values %q", got)
	}
}

func TestOriginSaysThatTheTargetMustBeRebuilt(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	origin.mu.slots["b"] = 500
	target.mu.progress["a"] = change.Progress{Known: true, Position: 400}
	f := follow(t, target, "a", serve(t, origin).addr)
	eventually(t, "the reason", func() bool {
		return strings.Contains(f.State().Err, "site a: asked for changes behind 400, confirmed is 500: the target must be rebuilt")
	})
	if target.at("a") != 400 {
		t.Error("the position moved")
	}
}

func TestStalledPathIsNoticedOnBothSides(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	s := serve(t, origin)
	p := newPath(t, s.addr)
	f := follow(t, target, "a", p.addr())
	origin.write(oneTx("a", 20, "v"))
	eventually(t, "the first", func() bool { return target.at("a") == 20 })
	began := time.Now()
	p.stall()
	eventually(t, "the target to notice", func() bool { return strings.Contains(f.State().Err, "nothing came through") })
	if d := time.Since(began); d > quick.Silence+5*time.Second { // how exactly is measured in package link, on its own clock
		t.Errorf("noticed after %s, silence is %s", d, quick.Silence)
	}
	eventually(t, "the origin to notice", func() bool {
		states := s.State()
		return len(states) == 1 && !states[0].Connected
	})
	if st := f.State(); st.Lag == 0 || !st.LagKnown {
		t.Errorf("a silent origin has lag %v", st.Lag)
	}
	origin.write(oneTx("a", 30, "w"))
	p.cut(false)
	p.heal()
	eventually(t, "the rest", func() bool { return target.at("a") == 30 })
}

func TestWhatArrivedIsAppliedAfterTheLinkBroke(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	s := serve(t, origin)
	p := newPath(t, s.addr)
	f := follow(t, target, "a", p.addr())
	origin.write(oneTx("a", 20, "v"))
	eventually(t, "the first", func() bool { return target.at("a") == 20 })
	gate := make(chan struct{})
	target.mu.Lock()
	target.mu.gate = gate
	target.mu.Unlock()
	for i := range 50 {
		origin.write(oneTx("a", change.Position(21+i), fmt.Sprint(i)))
	}
	eventually(t, "arrival", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		beat, _ := f.mu.in.Heard()
		return beat.Sent == 70
	})
	s.stop() // the origin is gone for good
	eventually(t, "the end of the link", func() bool { return f.State().Phase == Finishing })
	close(gate)
	eventually(t, "everything that had arrived", func() bool { return target.at("a") == 70 })
}

func TestNewerLinkTakesOver(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	s := serve(t, origin)
	origin.write(oneTx("a", 20, "v"))
	first := follow(t, target, "a", s.addr)
	eventually(t, "the first", func() bool { return target.at("a") == 20 })
	other := newTarget(t, "b") // the standby agent's view of the same site
	other.mu.progress["a"] = change.Progress{Known: true, Position: 20}
	second := follow(t, other, "a", s.addr)
	eventually(t, "the takeover", func() bool { return strings.Contains(first.State().Err, "a newer link of site b took over") })
	first.stop()
	origin.write(oneTx("a", 30, "w"))
	eventually(t, "the change at the second", func() bool { return other.at("a") == 30 && second.State().Phase == Streaming })
	origin.mu.Lock()
	defer origin.mu.Unlock()
	if origin.mu.most != 1 {
		t.Errorf("%d streams ran at once for one target", origin.mu.most)
	}
}

func TestOnlySitesMayLink(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	s := serve(t, origin)
	f := follow(t, target, "a", s.addr, func(f *Follow) { f.Identity = identity(t, "operator-anna") })
	eventually(t, "the refusal", func() bool { return strings.Contains(f.State().Err, "refused this site's certificate") })
	thief := follow(t, newTarget(t, "c"), "a", s.addr, func(f *Follow) { f.Identity = identity(t, "site-b") })
	eventually(t, "the refusal", func() bool { return strings.Contains(thief.State().Err, `"c" asks with the certificate of site "b"`) })
	if len(s.State()) != 0 {
		t.Errorf("state %+v", s.State())
	}
}

func TestStatementAndVectorTravel(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	target.mu.progress["c"] = change.Progress{Known: true, Position: 9}
	here, err := LoadApplied(t.Context(), "a", newTarget(t, "a"))
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, origin, func(s *Serve) {
		s.Applied = here
		s.Says = func() link.Statement { return link.Statement{Serving: true, RemainingMS: 1234} }
		s.End = func() change.Position { return 1020 }
	})
	f := follow(t, target, "a", s.addr)
	origin.write(oneTx("a", 20, "v"))
	eventually(t, "the statement", func() bool {
		st := f.State()
		return st.Says.Serving && st.Says.RemainingMS == 1234 && st.Position == 20 && st.Behind == 1000
	})
	eventually(t, "the vector", func() bool { return here.everywhere("c", []topo.SiteID{"b"}) == 9 })
	eventually(t, "the target's own progress", func() bool { return here.everywhere("a", []topo.SiteID{"b"}) == 20 })
}

func markerTx(site topo.SiteID, pos change.Position, id topo.HandoverID, vector topo.Vector) change.Tx {
	tx := oneTx(site, pos, "marker "+string(id))
	tx.Markers = []change.Marker{{Kind: change.MarkerClosed, Site: site, Handover: id, Keyspace: "users", Vector: vector}}
	return tx
}

func TestMarkerWaitsForItsVector(t *testing.T) {
	t.Parallel()
	a, c, target := newOrigin("a"), newOrigin("c"), newTarget(t, "b")
	applied, err := LoadApplied(t.Context(), "b", target)
	if err != nil {
		t.Fatal(err)
	}
	shared := func(f *Follow) { f.Applied = applied }
	fa := follow(t, target, "a", serve(t, a).addr, shared)
	sc := serve(t, c)
	pc := newPath(t, sc.addr)
	fc := follow(t, target, "c", pc.addr(), shared, func(f *Follow) { f.CopyFrom = false })
	eventually(t, "both links", func() bool { return fa.State().Phase == Streaming && fc.State().Phase == Streaming })

	pc.stall()
	c.write(oneTx("c", 50, "first"), oneTx("c", 60, "second"))
	a.write(oneTx("a", 20, "before"), markerTx("a", 30, "h1", topo.Vector{"c": 60, "b": 1 << 40}), oneTx("a", 40, "behind"))
	eventually(t, "waiting", func() bool { return fa.State().WaitsFor == "c" && target.at("a") == 20 || target.at("a") > 20 })
	if at := target.at("a"); at > 20 {
		target.mu.Lock()
		defer target.mu.Unlock()
		t.Fatalf("after %d transactions, what stands at %d of a was applied before the marker's vector", len(target.mu.got), at)
	}
	waited := make(chan error, 1)
	go func() {
		m, err := applied.WaitMarker(t.Context(), "a", "h1")
		if err == nil && (m.Handover != "h1" || target.at("c") < 60) {
			err = fmt.Errorf("marker %v came at position %d of c", m.Handover, target.at("c"))
		}
		waited <- err
	}()
	target.mu.Lock()
	got := slices.Clone(target.mu.got)
	target.mu.Unlock()
	if slices.Contains(got, 30) || slices.Contains(got, 40) {
		t.Errorf("positions %v were handed to the sink", got)
	}
	pc.heal()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	eventually(t, "what stood behind the marker", func() bool { return target.at("a") == 40 && fa.State().WaitsFor == "" })
}

// TestLostAnswerStillTellsOfTheMarker: the commit that brought the marker succeeded, but nobody heard.
func TestLostAnswerStillTellsOfTheMarker(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	f := follow(t, target, "a", serve(t, origin).addr)
	origin.write(oneTx("a", 20, "v"))
	eventually(t, "the first", func() bool { return target.at("a") == 20 })
	waited := make(chan error, 1)
	go func() {
		_, err := f.Applied.WaitMarker(t.Context(), "a", "h1")
		waited <- err
	}()
	eventually(t, "waiting", func() bool {
		f.Applied.mu.Lock()
		defer f.Applied.mu.Unlock()
		return len(f.Applied.mu.waiting) == 1
	})
	target.mu.Lock()
	target.mu.lost = func() bool { return true }
	target.mu.Unlock()
	origin.write(markerTx("a", 30, "h1", nil))
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

// kept is a relay in memory.
type kept struct {
	mu  sync.Mutex
	pos []change.Position
	cut change.Position
}

func (k *kept) Keep(_ context.Context, txs []change.Tx) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, tx := range txs {
		k.pos = append(k.pos, tx.Position)
	}
	return nil
}

func (k *kept) Trim(_ context.Context, _ topo.SiteID, through change.Position) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cut = max(k.cut, through)
	return nil
}

func (k *kept) Begin(context.Context, topo.SiteID, bool) error { return nil }

func BenchmarkEndToEnd(b *testing.B) {
	origin, target := newOrigin("a"), newTarget(b, "b")
	f := follow(b, target, "a", serve(b, origin).addr)
	eventually(b, "the link", func() bool { return f.State().Phase == Streaming })
	n := change.Position(100)
	value := strings.Repeat("some text ", 8)
	for b.Loop() {
		n++
		origin.write(oneTx("a", n, value))
		if n%1000 == 0 {
			eventually(b, "room", func() bool { return target.at("a")+20_000 > n })
		}
	}
	eventually(b, "everything", func() bool { return target.at("a") == n })
}

// A copy alone leaves the stream to Run.
func TestCopyAlone(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	origin.write(oneTx("a", 20, "x"), oneTx("a", 30, "y"))
	applied, err := LoadApplied(t.Context(), "b", target)
	if err != nil {
		t.Fatal(err)
	}
	like := follow(t, newTarget(t, "b"), "a", serve(t, origin).addr) // its settings and certificates
	f := &Follow{Site: "b", Origin: "a", Deployment: like.Deployment, Addr: like.Addr, Identity: like.Identity, Settings: like.Settings, Open: target.opener("a"), Applied: applied}
	if err := f.Copy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := target.valuesOf("a"); !slices.Equal(got, []string{"x", "y"}) || target.at("a") != 30 || f.State().Phase != Stopped {
		t.Errorf("%v at %d, %s", got, target.at("a"), f.State().Phase)
	}
	if err := f.Copy(t.Context()); err == nil {
		t.Error("a copy where one is already")
	}
}

// holdUp is an error whose reason goes away by itself.
type holdUp struct{}

func (holdUp) Error() string { return "halted for failover f1" }
func (holdUp) Passing() bool { return true }

func TestWhatPassesIsLookedAtOften(t *testing.T) {
	t.Parallel()
	origin, target := newOrigin("a"), newTarget(t, "b")
	s := serve(t, origin)
	f := follow(t, target, "a", s.addr)
	origin.write(oneTx("a", 20, "good"))
	eventually(t, "the first", func() bool { return target.at("a") == 20 })
	target.fail(fmt.Errorf("apply: %w", holdUp{}))
	origin.write(oneTx("a", 30, "held up"))
	began, tries := time.Now(), 0
	last := time.Time{}
	eventually(t, "tries", func() bool {
		if st := f.State(); strings.Contains(st.Err, "halted for failover f1") && st.ErrAt.After(last) {
			last, tries = st.ErrAt, tries+1
		}
		return tries == 6
	})
	if took := time.Since(began); took > 5*time.Second { // 6 waits of what needs help: 11 s at least
		t.Errorf("six tries took %s", took)
	}
	target.fail(nil)
	eventually(t, "the rest", func() bool { return target.at("a") == 30 })
}

// b2 is another database of the same site, as far as the first had come.
func b2(t *testing.T, b *targetDB) *targetDB {
	db := newTarget(t, b.site)
	db.mu.progress["a"] = change.Progress{Known: true, Position: b.at("a")}
	return db
}

// mute is a source that gives nothing.
type mute struct{ source }

func (*mute) Confirmed(context.Context) (change.Position, bool, error) { return 0, true, nil }
func (*mute) Confirm(change.Position)                                  {}
func (*mute) Reach(change.Position)                                    {}
func (*mute) Run(ctx context.Context, _ change.Position, _ change.Epochs, _ func(context.Context, change.Tx) error) error {
	<-ctx.Done()
	return context.Cause(ctx)
}
