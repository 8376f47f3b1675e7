package store

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"github.com/atollhq/atoll/topo"
)

// deafConn stops handing on what the server says while deaf is set: requests arrive, answers are lost.
type deafConn struct {
	net.Conn
	deaf *atomic.Bool
	hear chan struct{} // closed when it may hear again
}

func (c deafConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.deaf.Load() {
		<-c.hear
		c.Conn.Close()
		return 0, net.ErrClosed
	}
	return n, err
}

// deafClient reaches member a by connections that lose answers once deaf is set.
func deafClient(t *testing.T, deployment string) (*Client, *atomic.Bool) {
	t.Helper()
	deaf, hear := new(atomic.Bool), make(chan struct{})
	cfg := sharedCluster(t).config(t, deployment)
	cfg.Dial = func(ctx context.Context, site topo.SiteID, addr string) (net.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "tcp", addr)
		if err == nil && site == "a" {
			conn = deafConn{conn, deaf, hear}
		}
		return conn, err
	}
	c := open(t, cfg)
	t.Cleanup(func() { close(hear) }) // before Close
	return c, deaf
}

func TestLostAnswerOfACommitThatWasCarriedOut(t *testing.T) {
	t.Parallel()
	c, deaf := deafClient(t, "lost1")
	witness := sharedCluster(t).client(t, "lost1", "b", "w")
	ctx := within(t, 20*time.Second)
	if err := c.Bootstrap(ctx, firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	o, rev, err := c.Ownership(ctx)
	if err != nil {
		t.Fatal(err)
	}
	deaf.Store(true)
	got, err := c.Commit(ctx, Change{Ownership: &OwnershipChange{rev, moved(t, o, "h1", "b")}})
	if err != nil {
		t.Fatalf("carried out, but reported as: %v", err)
	}
	if _, now, err := witness.Ownership(ctx); err != nil || now != got {
		t.Errorf("reported revision %d, it is %d (%v)", got, now, err)
	}
}

func TestLostAnswerOfACommitThatWasOverwritten(t *testing.T) {
	t.Parallel()
	c, deaf := deafClient(t, "lost2")
	other := sharedCluster(t).client(t, "lost2", "b", "w")
	ctx := within(t, 20*time.Second)
	first, err := c.Commit(ctx, Change{Handover: &HandoverChange{"h", 0, []byte(`"0"`)}})
	if err != nil {
		t.Fatal(err)
	}
	hints := other.Watch(ctx)
	<-hints
	deaf.Store(true)
	done := make(chan error, 1)
	go func() { // twice over what the deaf client writes, while it still waits for the answer
		done <- func() error {
			for n := range 2 {
				for {
					body, rev, err := other.Handover(ctx, "h")
					if err != nil {
						return err
					}
					if n == 0 && string(body) != `"mine"` {
						continue // not there yet
					}
					if _, err = other.Commit(ctx, Change{Handover: &HandoverChange{"h", rev, fmt.Appendf(nil, `"over%d"`, n)}}); err != nil {
						return err
					}
					break
				}
			}
			return nil
		}()
	}()
	rev, err := c.Commit(ctx, Change{Handover: &HandoverChange{"h", first, []byte(`"mine"`)}})
	if err != nil || rev <= first {
		t.Errorf("carried out and overwritten, but reported as: %d, %v", rev, err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if body, now, err := other.Handover(ctx, "h"); err != nil || string(body) != `"over1"` || now <= rev {
		t.Errorf("now %s at %d, %v; ours was %d", body, now, err, rev)
	}
}

func TestLostAnswerOfARefusedCommit(t *testing.T) {
	t.Parallel()
	c, deaf := deafClient(t, "lost3")
	ctx := within(t, 20*time.Second)
	first, err := c.Commit(ctx, Change{Handover: &HandoverChange{"h", 0, []byte(`0`)}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Commit(ctx, Change{Handover: &HandoverChange{"h", first, []byte(`1`)}}); err != nil {
		t.Fatal(err)
	}
	deaf.Store(true)
	if _, err := c.Commit(ctx, Change{Handover: &HandoverChange{"h", first, []byte(`2`)}}); !errors.Is(err, ErrConflict) {
		t.Errorf("refused, but reported as: %v", err)
	}
	l := Lease{Holder: "i", Sequence: 1, Duration: time.Second}
	if err := c.Bootstrap(ctx, firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	if r, err := c.RenewLease(ctx, "a", l, 0); err != nil || r.Revision == 0 || r.Ownership.Version != 1 {
		t.Errorf("renewal by way of the others: %+v, %v", r, err)
	}
}

func TestOutcomeUnknownWhenNobodyAnswers(t *testing.T) {
	t.Parallel()
	cfg := sharedCluster(t).config(t, "silent")
	cfg.Dial = func(context.Context, topo.SiteID, string) (net.Conn, error) { return nil, errors.New("cut") }
	c := open(t, cfg)
	start := time.Now()
	_, err := c.Commit(within(t, 700*time.Millisecond), Change{Handover: &HandoverChange{"h", 0, []byte(`1`)}})
	if !errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("took %s", took)
	}
}

// Members are paused and killed in turn while three clients count up by compare-and-set: the count must be exact.
func TestCountingThroughFaults(t *testing.T) {
	t.Parallel()
	c := startCluster(t, false)
	t.Cleanup(c.stop)
	if t.Failed() {
		t.FailNow()
	}
	watcher := c.client(t, "shop")
	hints := watcher.Watch(t.Context())
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	start := c.client(t, "shop")
	if _, err := start.Commit(ctx, Change{Handover: &HandoverChange{"count", 0, []byte(`0`)}}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var counted, unknown, conflicts atomic.Int64
	for _, prefer := range sites {
		cfg := c.config(t, "shop")
		cfg.Prefer = prefer
		cl := open(t, cfg)
		wg.Go(func() {
			for ctx.Err() == nil {
				body, rev, err := cl.Handover(ctx, "count")
				if err != nil {
					continue
				}
				var n int
				fmt.Sscan(string(body), &n)
				_, err = cl.Commit(ctx, Change{Handover: &HandoverChange{"count", rev, fmt.Append(nil, n+1)}})
				switch {
				case err == nil:
					counted.Add(1)
				case errors.Is(err, ErrConflict):
					conflicts.Add(1)
				default: // the test has ended it
					unknown.Add(1)
				}
			}
		})
	}
	progress := func(what string) {
		before, begin := counted.Load(), time.Now()
		drain(hints)
		eventually(t, 15*time.Second, what, func() bool { return counted.Load() >= before+20 })
		t.Logf("%s: 20 more after %s", what, time.Since(begin).Round(time.Millisecond))
		select {
		case <-hints:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: no hint", what)
		}
	}
	progress("at first")
	for _, s := range sites {
		c.members[s].signal(syscall.SIGSTOP)
		progress(fmt.Sprintf("%s paused", s))
		c.members[s].signal(syscall.SIGCONT)
		progress(fmt.Sprintf("%s resumed", s))
	}
	for _, s := range sites {
		c.members[s].kill()
		progress(fmt.Sprintf("%s killed", s))
		c.members[s].start(t)
		progress(fmt.Sprintf("%s started again", s))
	}
	for _, s := range sites { // one of them leads
		begin := time.Now()
		if err := c.members[s].terminate(); err != nil {
			t.Errorf("%s asked to end: %v", s, err)
		}
		t.Logf("%s ended after %s", s, time.Since(begin).Round(time.Millisecond))
		c.members[s].start(t)
		progress(fmt.Sprintf("%s restarted", s))
	}
	stop()
	wg.Wait()
	body, _, err := start.Handover(within(t, 10*time.Second), "count")
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	fmt.Sscan(string(body), &total)
	t.Logf("%d counted, %d conflicts, %d unknown, total %d", counted.Load(), conflicts.Load(), unknown.Load(), total)
	if total < counted.Load() || total > counted.Load()+unknown.Load() {
		t.Errorf("the store counted %d; the clients %d, and at most %d more", total, counted.Load(), unknown.Load())
	}
}

func drain(hints <-chan struct{}) {
	for {
		select {
		case <-hints:
		default:
			return
		}
	}
}

func TestExternalEtcdWithoutTLS(t *testing.T) {
	t.Parallel()
	conf := embed.NewConfig()
	conf.Dir = filepath.Join(t.TempDir(), "etcd")
	client, peer := url.URL{Scheme: "http", Host: freeAddr(t)}, url.URL{Scheme: "http", Host: freeAddr(t)}
	conf.ListenClientUrls, conf.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	conf.ListenPeerUrls, conf.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	conf.InitialCluster = conf.InitialClusterFromName(conf.Name)
	conf.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	server, err := embed.StartEtcd(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	c := open(t, Config{Deployment: "shop", Endpoints: []Endpoint{{"", client.String()}}})
	ctx := within(t, 15*time.Second)
	if err := c.Bootstrap(ctx, firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Ownership(ctx); err != nil {
		t.Fatal(err)
	}
}
