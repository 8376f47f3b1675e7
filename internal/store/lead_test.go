package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

func leaderOf(t *testing.T, c *Client) topo.SiteID {
	t.Helper()
	all, err := c.Members(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all.Members, func(m Member) bool { return m.Leader })
	if i < 0 {
		t.Fatalf("nobody leads: %+v", all)
	}
	return all.Members[i].Site
}

// suspicions counts what a client logs of members that do not answer.
type suspicions struct {
	slog.Handler
	count *atomic.Int64
}

func (s suspicions) Handle(_ context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "does not answer") {
		s.count.Add(1)
	}
	return nil
}

// While the leader moves around, the sites' leases are renewed and what they wrote is read: nothing waits for the end of
// a try, and no member is suspect for it. The next leader would be left out of the first commits that it is there for.
func TestLeadMovesUnderRenewals(t *testing.T) {
	t.Parallel()
	c := newCluster(t, true, sites...)
	t.Cleanup(c.stop)
	for _, p := range c.proxies {
		p.late.Store(int64(15 * time.Millisecond))
	}
	c.start(t, sites...)
	clients, suspected := map[topo.SiteID]*Client{}, new(atomic.Int64)
	for _, s := range sites {
		cfg := c.config(t, "lead")
		cfg.Logger = slog.New(suspicions{slog.Default().Handler(), suspected})
		cfg.Prefer, cfg.Try = s, 5*time.Second // whoever waits for the end of it is seen
		clients[s] = open(t, cfg)
	}
	ctx, stop := context.WithCancel(within(t, 2*time.Minute))
	defer stop()
	took := make(chan time.Duration)
	var wg sync.WaitGroup
	for _, s := range sites {
		for n := range 4 {
			wg.Go(func() {
				site := topo.SiteID(fmt.Sprintf("%s%d", s, n))
				l, rev := Lease{Holder: "h", Duration: 3 * time.Second}, Revision(0)
				for ctx.Err() == nil {
					l.Sequence++
					began := time.Now()
					r, err := clients[s].RenewLease(ctx, site, l, rev)
					if ctx.Err() != nil {
						return
					}
					if err != nil {
						t.Errorf("lease of %s: %v", site, err)
						return
					}
					rev = r.Revision
					if _, _, err := clients[s].Lease(ctx, site); err != nil && ctx.Err() == nil {
						t.Errorf("lease of %s is read: %v", site, err)
						return
					}
					select {
					case took <- time.Since(began):
					case <-ctx.Done():
					}
				}
			})
		}
	}
	var all []time.Duration
	moves := make(chan error, 1)
	for n := range 9 {
		to := sites[n%len(sites)]
		clients[to].askedForLead(time.Time{})
		go func() {
			_, err := clients[to].Lead(ctx, to)
			moves <- err
		}()
		for after := -1; after < 5*len(sites)*4; { // all of them renew a few times under this leader
			select {
			case err := <-moves:
				if err != nil {
					t.Error(err)
				}
				after = 0
			case d := <-took:
				all = append(all, d)
				if after >= 0 {
					after++
				}
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			}
		}
		if now := leaderOf(t, clients[to]); now != to {
			t.Errorf("%s leads, want %s", now, to)
		}
	}
	stop()
	wg.Wait()
	slices.Sort(all)
	t.Logf("%d renewals: half within %v, 99 %% within %v, the longest took %v", len(all), all[len(all)/2], all[len(all)*99/100], all[len(all)-1])
	if longest := all[len(all)-1]; longest > 4*time.Second {
		t.Errorf("a renewal took %v: it waited for the end of a try", longest)
	}
	if n := suspected.Load(); n > 0 {
		t.Errorf("members were suspect %d times because the leader moved", n)
	}
}

func TestLeadIsLeftAlone(t *testing.T) {
	t.Parallel()
	c := startCluster(t, false)
	t.Cleanup(c.stop)
	cl := c.client(t, "stays")
	ctx := within(t, 60*time.Second)
	first := leaderOf(t, cl)
	if was, err := cl.Lead(ctx, first); err != nil || was != first {
		t.Errorf("it leads already: %q, %v", was, err)
	}
	if _, err := cl.Lead(ctx, "z"); !errors.Is(err, ErrNoMember) || !errors.Is(err, ErrLeaderStays) {
		t.Errorf("no such member: %v", err)
	}
	others := slices.DeleteFunc(slices.Clone(sites), func(s topo.SiteID) bool { return s == first })
	if was, err := cl.Lead(ctx, others[0]); err != nil || was != first {
		t.Fatalf("handed over by %q, want %q: %v", was, first, err)
	}
	if _, err := cl.Lead(ctx, others[1]); !errors.Is(err, ErrLeaderStays) {
		t.Errorf("again at once: %v", err)
	}
	cl.askedForLead(time.Time{})
	c.members[first].signal(syscall.SIGSTOP)
	_, err := cl.Lead(ctx, others[1])
	c.members[first].signal(syscall.SIGCONT)
	if !errors.Is(err, ErrLeaderStays) {
		t.Errorf("while a member does not answer: %v", err)
	}
	if now := leaderOf(t, cl); now != others[0] {
		t.Errorf("%s leads, want %s", now, others[0])
	}
}

// A leader that cannot reach the next one takes nothing new until it gives up, an election time-out later, and leads on.
func TestLeadIsNotReached(t *testing.T) {
	t.Parallel()
	c := startCluster(t, true)
	t.Cleanup(c.stop)
	cl, other := c.client(t, "unreached"), c.client(t, "unreached")
	ctx := within(t, 60*time.Second)
	first := leaderOf(t, cl)
	next := sites[(slices.Index(sites, first)+1)%len(sites)]
	renewed := make(chan time.Duration)
	go func() {
		defer close(renewed)
		l, rev := Lease{Holder: "h", Duration: 3 * time.Second}, Revision(0)
		for {
			l.Sequence++
			began := time.Now()
			r, err := other.RenewLease(ctx, "a", l, rev)
			if err != nil {
				t.Error(err)
				return
			}
			rev = r.Revision
			select {
			case renewed <- time.Since(began):
			case <-ctx.Done():
				return
			}
		}
	}()
	<-renewed
	for _, of := range sites { // the next leader still answers clients, and has missed little yet
		c.proxies[of].setCut(c.members[next].conf.AdvertisePeer, true)
		c.proxies[next].setCut(c.members[of].conf.AdvertisePeer, true)
	}
	failed := make(chan error, 1)
	go func() {
		_, err := cl.Lead(ctx, next)
		failed <- err
	}()
	longest := time.Duration(0)
	for done := false; !done; {
		select {
		case d, ok := <-renewed:
			if !ok {
				t.FailNow()
			}
			longest = max(longest, d)
		case err := <-failed:
			done = true
			if err == nil {
				t.Error("it leads, though nobody reached it")
			} else {
				t.Log(err)
			}
		}
	}
	longest = max(longest, <-renewed)
	t.Logf("the longest renewal took %v", longest)
	if longest > 2500*time.Millisecond {
		t.Errorf("a renewal took %v: far more than an election time-out", longest)
	}
	if now := leaderOf(t, other); now != first {
		t.Errorf("%s leads, want %s", now, first)
	}
	if _, err := cl.Lead(ctx, next); !errors.Is(err, ErrLeaderStays) {
		t.Errorf("asked again at once: %v", err)
	}
}
