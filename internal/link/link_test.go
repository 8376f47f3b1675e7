package link

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		os.RemoveAll(certificates)
		os.Exit(code)
	}))
}

// certificates is the folder of the identities that all tests share.
var certificates string

// identities issues certificates for sites a, b and c, once.
var identities = sync.OnceValues(func() (map[topo.SiteID]*pki.Identity, error) {
	var err error
	if certificates, err = os.MkdirTemp("", "atoll-link-*"); err != nil {
		return nil, err
	}
	return issue(certificates, "shop")
})

func issue(dir, deployment string) (map[topo.SiteID]*pki.Identity, error) {
	if err := pki.Init(dir, deployment); err != nil {
		return nil, err
	}
	var err error
	out := make(map[topo.SiteID]*pki.Identity)
	for _, site := range []topo.SiteID{"a", "b", "c"} {
		if err := pki.Issue(dir, pki.Role{Kind: pki.Site, Name: string(site)}); err != nil {
			return nil, err
		}
		if out[site], err = pki.Load(dir, "site-"+string(site)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func identity(t testing.TB, site topo.SiteID) *pki.Identity {
	t.Helper()
	all, err := identities()
	if err != nil {
		t.Fatal(err)
	}
	return all[site]
}

func acceptConfig(t testing.TB, set Settings) AcceptConfig {
	id := identity(t, "a")
	return AcceptConfig{
		Deployment: "shop", Site: "a", TLS: id.ServerTLS(nil), Settings: set,
		Peer: func(s tls.ConnectionState) (topo.SiteID, error) {
			p, err := id.Peer(s)
			site, _ := p.Site()
			return site, err
		},
	}
}

func dialConfig(t testing.TB, set Settings) DialConfig {
	return DialConfig{
		TLS: identity(t, "b").ClientTLS("a"), Settings: set,
		Hello: Hello{Deployment: "shop", Site: "b", Origin: "a", Start: StartResume, Position: 100},
	}
}

// meet makes the two ends of a link over the given connections. Errors come back, connections are closed at the end.
func meet(t testing.TB, a, b net.Conn, ac AcceptConfig, dc DialConfig) (out *Outbound, in *Inbound, outErr, inErr error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, outErr = Accept(t.Context(), a, ac)
	}()
	in, inErr = open(t.Context(), b, dc)
	<-done
	t.Cleanup(func() {
		if out != nil {
			out.Close()
		}
		if in != nil {
			in.Close()
		}
	})
	return out, in, outErr, inErr
}

// bubble runs a test on a clock of its own, which begins today: in a bubble it would begin before the certificates.
func bubble(t *testing.T, f func(*testing.T)) {
	t.Helper()
	identity(t, "a")
	today := time.Now()
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(today))
		f(t)
	})
}

func loopback(t testing.TB) (server, client net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if client, err = net.Dial("tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = ln.Accept(); err != nil {
		t.Fatal(err)
	}
	return server, client
}

// running is a link whose two ends run.
type running struct {
	out      *Outbound
	in       *Inbound
	acks     atomic.Pointer[Ack]
	outEnded chan error
	inEnded  chan error
	stop     context.CancelFunc
}

func run(t testing.TB, a, b net.Conn, ac AcceptConfig, dc DialConfig) *running {
	t.Helper()
	r := &running{outEnded: make(chan error, 1), inEnded: make(chan error, 1)}
	var err1, err2 error
	r.out, r.in, err1, err2 = meet(t, a, b, ac, dc)
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	ctx, stop := context.WithCancel(t.Context())
	r.stop = stop
	var wg sync.WaitGroup
	wg.Go(func() { r.outEnded <- r.out.Run(ctx, func(ack Ack) { r.acks.Store(&ack) }) })
	wg.Go(func() { r.inEnded <- r.in.Run(ctx) })
	t.Cleanup(func() { stop(); wg.Wait() })
	return r
}

var table = &change.Table{ID: 7, Schema: "public", Name: "t", Identity: 'd', Columns: []change.Column{{Name: "id", Type: 23, Key: true}, {Name: "v", Type: 25}}}

func tx(pos change.Position, value string) change.Tx {
	return change.Tx{Origin: "a", Position: pos, XID: uint64(pos), First: true, Last: true, Committed: time.UnixMicro(int64(pos)).UTC(),
		Rows: []change.Row{{Op: change.Insert, Table: table, New: []change.Value{
			{Kind: change.Text, Bytes: []byte(fmt.Sprint(pos))}, {Kind: change.Text, Bytes: []byte(value)}}}}}
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want one with %q", parts)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error %q lacks %q", err, part)
		}
	}
}

func TestInOrderThroughASmallWindow(t *testing.T) {
	t.Parallel()
	const window, count, biggest = 64 << 10, 5000, 100 << 10
	a, b := loopback(t)
	r := run(t, a, b, acceptConfig(t, Settings{}), dialConfig(t, Settings{Window: window}))
	sizes := rand.New(rand.NewPCG(1, 2))
	var sent sync.WaitGroup
	sent.Go(func() {
		for i := range count {
			size := sizes.IntN(200)
			if i%500 == 0 {
				size = biggest // larger than the window
			}
			if err := r.out.Send(t.Context(), tx(change.Position(101+i), strings.Repeat("x", size))); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer sent.Wait()
	var taken uint64
	for i := range count {
		got, err := r.in.NextTx(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if got.Position != change.Position(101+i) || string(got.Rows[0].New[0].Bytes) != fmt.Sprint(101+i) {
			t.Fatalf("transaction %d has position %d", i, got.Position)
		}
		r.in.mu.Lock()
		taken = r.in.mu.taken
		r.in.mu.Unlock()
		if ahead := r.out.Stats().Unpacked - min(r.out.Stats().Unpacked, taken); ahead > window+biggest+1000 {
			t.Fatalf("%d bytes are under way; the window is %d", ahead, window)
		}
		r.in.Ack(got.Position)
	}
	eventually(t, "the last acknowledgement", func() bool {
		ack := r.acks.Load()
		return ack != nil && ack.Flushed == 100+count && ack.Taken == taken
	})
}

// eventually waits for a condition that becomes true by itself.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	late := time.After(20 * time.Second)
	for !cond() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestSlowTakerHoldsTheSender(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		a, b := net.Pipe()
		r := run(t, a, b, acceptConfig(t, Settings{}), dialConfig(t, Settings{Window: 10_000}))
		var count atomic.Int64
		go func() {
			for pos := change.Position(101); r.out.Send(t.Context(), tx(pos, strings.Repeat("x", 1000))) == nil; pos++ {
				count.Add(1)
			}
		}()
		time.Sleep(time.Hour) // of the bubble's clock: heartbeats keep the link up however long nobody takes
		stuck := count.Load()
		if stuck < 8 || stuck > 11 {
			t.Errorf("%d messages of 1000 bytes went into a window of 10000", stuck)
		}
		for range 5 {
			if _, err := r.in.NextTx(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if more := count.Load() - stuck; more < 3 || more > 5 {
			t.Errorf("5 messages taken let %d more in", more)
		}
		r.stop()
		synctest.Wait()
	})
}

func TestSmallTransactionGoesOutAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		a, b := net.Pipe()
		r := run(t, a, b, acceptConfig(t, Settings{}), dialConfig(t, Settings{}))
		for i := range 3 {
			time.Sleep(1700 * time.Millisecond)
			began := time.Now()
			pos := change.Position(101 + i)
			if err := r.out.Send(t.Context(), tx(pos, "v")); err != nil {
				t.Fatal(err)
			}
			if _, err := r.in.NextTx(t.Context()); err != nil {
				t.Fatal(err)
			}
			r.in.Ack(pos)
			synctest.Wait()
			if ack := r.acks.Load(); ack.Flushed != pos {
				t.Errorf("position %d is acknowledged, want %d", ack.Flushed, pos)
			}
			if d := time.Since(began); d != 0 {
				t.Errorf("there and back took %s: a timer is in the way", d)
			}
		}
		r.stop()
		synctest.Wait()
	})
}

// muteConn swallows what is written once it is muted, as a path does that is cut silently in one direction.
type muteConn struct {
	net.Conn
	muted atomic.Bool
}

func (c *muteConn) Write(b []byte) (int, error) {
	if c.muted.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func TestSilentCutIsNoticed(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"origin", "target"} {
		t.Run(side+" falls silent", func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				rawA, rawB := net.Pipe()
				a, b := &muteConn{Conn: rawA}, &muteConn{Conn: rawB}
				r := run(t, a, b, acceptConfig(t, Settings{}), dialConfig(t, Settings{}))
				time.Sleep(time.Minute)
				began := time.Now()
				ended := r.inEnded
				if side == "origin" {
					a.muted.Store(true)
				} else {
					b.muted.Store(true)
					ended = r.outEnded
				}
				wantError(t, <-ended, "nothing came through for 5s")
				if d := time.Since(began); d < 4*time.Second || d > 5*time.Second {
					t.Errorf("noticed after %s", d)
				}
				<-r.otherEnd(side)
			})
		})
	}
}

// otherEnd is the end of the other side, which sees the connection closed.
func (r *running) otherEnd(side string) chan error {
	if side == "origin" {
		return r.outEnded
	}
	return r.inEnded
}

func TestHeartbeatCarriesTheStatement(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		ac, dc := acceptConfig(t, Settings{}), dialConfig(t, Settings{})
		ac.Beat = func() Heartbeat {
			return Heartbeat{End: 4711, Statement: Statement{Serving: true, RemainingMS: 900, Closed: "h1"}}
		}
		dc.Vector = func() topo.Vector { return topo.Vector{"a": 100, "c": 7} }
		a, b := net.Pipe()
		r := run(t, a, b, ac, dc)
		if err := r.out.Send(t.Context(), tx(101, "v")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3100 * time.Millisecond)
		beat, at := r.in.Heard()
		if time.Since(at) > time.Second || time.Since(beat.Time) > time.Second {
			t.Errorf("last heartbeat at %v, of %v", at, beat.Time)
		}
		if beat.Sent != 101 || beat.End != 4711 || beat.Statement != (Statement{Serving: true, RemainingMS: 900, Closed: "h1"}) {
			t.Errorf("heartbeat %+v", beat)
		}
		if ack := r.acks.Load(); ack == nil || ack.Vector["c"] != 7 || ack.Flushed != 100 {
			t.Errorf("acknowledgement %+v", ack)
		}
		r.stop()
		synctest.Wait()
	})
}

func TestReasonReachesTheOtherSide(t *testing.T) {
	t.Parallel()
	reason := Refusef(Failed, "the slot is gone: rebuild site b")
	for _, from := range []string{"origin", "target"} {
		t.Run("from the "+from, func(t *testing.T) {
			t.Parallel()
			a, b := loopback(t)
			r := run(t, a, b, acceptConfig(t, Settings{}), dialConfig(t, Settings{}))
			for i := range 50 { // unread data on the way must not lose the words
				if err := r.out.Send(t.Context(), tx(change.Position(101+i), strings.Repeat("x", 10_000))); err != nil {
					t.Fatal(err)
				}
			}
			said, heard, who := r.outEnded, r.inEnded, "site a"
			if from == "origin" {
				r.out.End(reason)
			} else {
				r.in.End(reason)
				said, heard, who = r.inEnded, r.outEnded, "site b"
			}
			if err := <-said; err != reason {
				t.Errorf("who says it ends with %v", err)
			}
			err := <-heard
			wantError(t, err, who, reason.Text)
			var r2 *Refusal
			if !errors.As(err, &r2) || r2.Reason != Failed || !r2.Remote {
				t.Errorf("who hears it ends with %#v", err)
			}
			if err := r.out.Send(t.Context(), tx(999, "late")); err == nil {
				t.Error("an ended link takes changes")
			}
		})
	}
}

func TestWhatArrivedCanBeTakenAfterTheEnd(t *testing.T) {
	t.Parallel()
	a, b := loopback(t)
	r := run(t, a, b, acceptConfig(t, Settings{}), dialConfig(t, Settings{}))
	for i := range 20 {
		if err := r.out.Send(t.Context(), tx(change.Position(101+i), "v")); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "arrival", func() bool { return r.in.Stats().Unpacked == r.out.Stats().Unpacked })
	a.Close()
	<-r.inEnded
	for i := range 20 {
		got, err := r.in.NextTx(t.Context())
		if err != nil || got.Position != change.Position(101+i) {
			t.Fatalf("transaction %d: %v %v", i, got.Position, err)
		}
	}
	_, err := r.in.NextTx(t.Context())
	wantError(t, err, "link with site a")
}

func TestCopy(t *testing.T) {
	t.Parallel()
	a, b := loopback(t)
	dc := dialConfig(t, Settings{})
	dc.Hello.Start, dc.Hello.Position = StartCopy, 0
	r := run(t, a, b, acceptConfig(t, Settings{}), dc)
	pieces := []change.Copy{
		{Table: table, Data: bytes.Repeat([]byte("1\tx\n"), 100_000)},
		{Table: table, Data: []byte("2\ty\n")},
		{Done: true, Position: 500, Epochs: change.Epochs{"users": {3: 9}}},
	}
	for _, p := range pieces {
		if err := r.out.SendCopy(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range pieces {
		got, err := r.in.NextCopy(t.Context())
		if err != nil || !bytes.Equal(got.Data, want.Data) || got.Done != want.Done || got.Position != want.Position {
			t.Fatal(got.Done, got.Position, err)
		}
	}
	if s := r.in.Stats(); s.BytesReceived >= s.Unpacked/4 {
		t.Errorf("%d bytes on the wire for %d that pack well", s.BytesReceived, s.Unpacked)
	}
	if _, err := r.in.NextTx(ctxSoon(t)); err == nil {
		t.Error("a transaction came out of a copy")
	}
}

func ctxSoon(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func TestRowBeyondTheBound(t *testing.T) {
	t.Parallel()
	a, b := loopback(t)
	r := run(t, a, b, acceptConfig(t, Settings{MaxFrame: 1 << 20}), dialConfig(t, Settings{Window: 1 << 19}))
	err := r.out.Send(t.Context(), tx(101, strings.Repeat("x", 1<<20)))
	wantError(t, err, "position 101", "too large")
}

func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	other, err := issue(t.TempDir(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	bank, err := issue(t.TempDir(), "bank")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change          func(*AcceptConfig, *DialConfig)
		atOrigin, atTgt string
	}{
		"certificate of another authority": {func(_ *AcceptConfig, dc *DialConfig) {
			dc.TLS = other["b"].ClientTLS("a")
			dc.TLS.VerifyConnection = nil
		}, "not issued by this deployment's authority", "refused this site's certificate"},
		"origin of another authority": {func(_ *AcceptConfig, dc *DialConfig) {
			dc.TLS = other["b"].ClientTLS("a")
		}, "", "not issued by this deployment's authority"},
		"certificate of another deployment": {func(_ *AcceptConfig, dc *DialConfig) {
			dc.TLS = bank["b"].ClientTLS("a")
			dc.TLS.VerifyConnection = nil
		}, `deployment "bank"`, "refused this site's certificate"},
		"another deployment": {func(_ *AcceptConfig, dc *DialConfig) { dc.Hello.Deployment = "bank" },
			`deployment "bank" asks`, `this is "shop"`},
		"another site's name": {func(_ *AcceptConfig, dc *DialConfig) { dc.Hello.Site = "c" },
			`certificate of site "b"`, `certificate of site "b"`},
		"another origin": {func(_ *AcceptConfig, dc *DialConfig) { dc.Hello.Origin = "c" },
			`asked for changes of site "c"`, `this is site "a"`},
		"newer only": {func(_ *AcceptConfig, dc *DialConfig) { dc.Hello.Format, dc.Hello.Oldest = Format+3, Format+1 },
			"upgrade this site", fmt.Sprintf("formats %d to %d", Format+1, Format+3)},
		"newer origin": {func(ac *AcceptConfig, dc *DialConfig) { ac.Deployment, dc.Hello.Deployment = "x", "x"; ac.Site = "b" },
			"asked for changes", "this is site"},
		"unknown start": {func(_ *AcceptConfig, dc *DialConfig) { dc.Hello.Start = "sideways" }, "sideways", "sideways"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ac, dc := acceptConfig(t, Settings{}), dialConfig(t, Settings{})
			c.change(&ac, &dc)
			a, b := loopback(t)
			_, _, outErr, inErr := meet(t, a, b, ac, dc)
			wantError(t, outErr, c.atOrigin)
			wantError(t, inErr, c.atTgt)
		})
	}
}

func BenchmarkThroughput(b *testing.B) {
	server, client := loopback(b)
	r := run(b, server, client, acceptConfig(b, Settings{}), dialConfig(b, Settings{}))
	value := strings.Repeat("some text ", 8)
	done := make(chan error, 1)
	n := 0
	go func() {
		for {
			got, err := r.in.NextTx(b.Context())
			if err != nil {
				done <- err
				return
			}
			r.in.Ack(got.Position)
		}
	}()
	for b.Loop() {
		if err := r.out.Send(b.Context(), tx(change.Position(101+n), value)); err != nil {
			b.Fatal(err)
		}
		n++
	}
	for {
		if ack := r.acks.Load(); ack != nil && ack.Flushed == change.Position(100+n) {
			break
		}
	}
	s := r.out.Stats()
	b.ReportMetric(float64(s.BytesSent)/float64(n), "wire-B/op")
	r.stop()
	<-done
}

func BenchmarkRoundTrip(b *testing.B) {
	server, client := loopback(b)
	r := run(b, server, client, acceptConfig(b, Settings{}), dialConfig(b, Settings{}))
	n := 0
	for b.Loop() {
		if err := r.out.Send(b.Context(), tx(change.Position(101+n), "v")); err != nil {
			b.Fatal(err)
		}
		if _, err := r.in.NextTx(b.Context()); err != nil {
			b.Fatal(err)
		}
		n++
	}
}

func TestChangesLeaveTogetherUnlessSomebodyWaits(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T) {
		a, b := net.Pipe()
		r := run(t, a, b, acceptConfig(t, Settings{}), dialConfig(t, Settings{}))
		pace := Settings{}.WithDefaults().Pace
		send := func(pos change.Position, markers ...change.Marker) {
			t.Helper()
			one := tx(pos, "x")
			one.Markers = markers
			if err := r.out.Send(t.Context(), one); err != nil {
				t.Fatal(err)
			}
		}
		began := time.Now()
		arrives := func(pos change.Position, after time.Duration) {
			t.Helper()
			got, err := r.in.NextTx(t.Context())
			if err != nil || got.Position != pos || time.Since(began) != after {
				t.Fatalf("position %d after %v, want %d after %v: %v", got.Position, time.Since(began), pos, after, err)
			}
		}
		send(101)
		arrives(101, 0) // nothing went lately
		send(102)
		time.Sleep(pace / 2)
		send(103)
		arrives(102, pace)
		arrives(103, pace)
		send(104)
		send(105, change.Marker{Site: "a", Handover: "h", Kind: change.MarkerClosed, Keyspace: "users", Buckets: []topo.EpochSpan{{First: 1, Last: 2, Epoch: 3}}})
		arrives(104, pace)
		arrives(105, pace) // a switch waits for it
		send(106)
		r.in.Want(106)
		arrives(106, pace)
		r.in.Want(107) // before it is there
		synctest.Wait()
		send(107)
		arrives(107, pace)

		time.Sleep(time.Minute + pace/2)
		r.in.Ack(106)
		synctest.Wait()
		first := r.acks.Load().Flushed
		r.in.Ack(107)
		synctest.Wait()
		if second := r.acks.Load().Flushed; second != first {
			t.Errorf("acknowledged %d at once behind %d", second, first)
		}
		time.Sleep(acksPerPace * pace)
		synctest.Wait()
		if last := r.acks.Load().Flushed; last != 107 {
			t.Errorf("acknowledged %d, want 107", last)
		}
	})
}
