package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// TestMembersComeAndGo is the life of a store's members, with writes going on: one is added, one loses its disk and is
// replaced, one is lost and removed.
func TestMembersComeAndGo(t *testing.T) {
	t.Parallel()
	c := newCluster(t, false, "a", "b", "w", "d")
	t.Cleanup(c.stop)
	c.start(t, sites...)
	cl := c.client(t, "shop", "a", "b", "w", "d")
	if err := cl.Bootstrap(within(t, 10*time.Second), firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	load := startLoad(t, cl)

	d := c.members["d"]
	d.spawn(t)
	eventually(t, 20*time.Second, "d asks to be added", func() bool { return d.said.has("run `atoll store add d`") })
	c.addMember(t, cl, "d")
	d.await(t)
	if m := member(t, cl, "d"); m.Learner || m.Problem != "" || !m.Started {
		t.Errorf("d after it was added: %+v", m)
	}

	b := c.members["b"]
	b.kill()
	if err := os.RemoveAll(b.conf.Dir); err != nil {
		t.Fatal(err)
	}
	b.conf.InitialCluster = d.conf.InitialCluster
	b.spawn(t)
	for _, want := range []string{"its folder is empty", "atoll store remove b"} {
		if text := b.ended(t); !strings.Contains(text, want) {
			t.Fatalf("b on an empty folder does not say %q: %s", want, text)
		}
		b.spawn(t)
	}
	b.kill()
	if err := cl.RemoveMember(within(t, 20*time.Second), "b", false); err != nil {
		t.Fatal(err)
	}
	if err := cl.RemoveMember(within(t, 20*time.Second), "b", false); !errors.Is(err, ErrNoMember) {
		t.Errorf("removed twice: %v", err)
	}
	b.spawn(t)
	c.addMember(t, cl, "b")
	b.await(t)

	// Of four voters one is away: one that answers may still go, because the two others are a quorum of three.
	c.members["w"].kill()
	if err := cl.RemoveMember(within(t, 30*time.Second), "a", false); err != nil {
		t.Errorf("remove a while w is away: %v", err)
	}
	for try := range 2 { // and when it is started again
		if try > 0 {
			c.members["a"].spawn(t)
		}
		if text := c.members["a"].ended(t); !strings.Contains(text, "removed from the store") {
			t.Errorf("a does not say that it was removed: %s", text)
		}
	}
	load.stop(t)
	load.check(t, c.client(t, "shop", "b"))
	load.check(t, c.client(t, "shop", "d"))
}

// TestMemberRemovalKeepsTheQuorum: with one of three away, neither of the others may go; the one that is away may.
func TestMemberRemovalKeepsTheQuorum(t *testing.T) {
	t.Parallel()
	c := startCluster(t, false)
	t.Cleanup(c.stop)
	cl := c.client(t, "shop")
	if err := cl.Bootstrap(within(t, 10*time.Second), firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	c.members["w"].kill()
	if err := cl.RemoveMember(within(t, 20*time.Second), "b", false); !errors.Is(err, ErrWouldLoseQuorum) {
		t.Errorf("remove b while w is away: %v", err)
	}
	all, err := cl.Members(within(t, 10*time.Second))
	if err != nil || all.Healthy != 2 || all.Quorum != 2 || all.Voters != 3 {
		t.Errorf("members: %+v, %v", all, err)
	}
	if err := cl.RemoveMember(within(t, 20*time.Second), "w", false); err != nil {
		t.Errorf("remove w, which is away: %v", err)
	}
	c.members["b"].kill()
	all, err = cl.Members(within(t, 30*time.Second))
	if err != nil || all.Problem == "" || all.Healthy != 0 {
		t.Errorf("members without a quorum: %+v, %v", all, err)
	}
	if _, err := cl.AddMember(within(t, 30*time.Second), "w", c.members["w"].conf.AdvertisePeer); !errors.Is(err, ErrWouldLoseQuorum) && !errors.Is(err, ErrUnavailable) && err == nil {
		t.Errorf("add w without a quorum: %v", err)
	}
}

// addMember does what the command does, and gives up once in between.
func (c *cluster) addMember(t *testing.T, cl *Client, site topo.SiteID) {
	t.Helper()
	var seen []Standing
	eventually(t, 40*time.Second, fmt.Sprintf("%s has a vote", site), func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		s, err := cl.AddMember(ctx, site, c.members[site].conf.AdvertisePeer)
		if err != nil {
			t.Logf("add %s: %v", site, err)
			return false
		}
		if len(seen) == 0 || seen[len(seen)-1] != s {
			seen = append(seen, s)
		}
		return s == Voting
	})
	if seen[0] != Waiting {
		t.Errorf("%s began as %v", site, seen)
	}
	t.Logf("%s: %v", site, seen)
}

func member(t *testing.T, cl *Client, site topo.SiteID) Member {
	t.Helper()
	all, err := cl.Members(within(t, 10*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	m, found := all.find(site, "")
	if !found {
		t.Fatalf("no member %s in %+v", site, all)
	}
	return m
}

// load writes handover records one after the other; what was acknowledged has to stay.
type load struct {
	cl     *Client
	cancel context.CancelFunc
	wg     sync.WaitGroup
	acked  []topo.HandoverID
}

func startLoad(t *testing.T, cl *Client) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{cl: cl, cancel: cancel}
	l.wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			id := topo.HandoverID(fmt.Sprintf("h%06d", n))
			if _, err := cl.Commit(ctx, Change{Handover: &HandoverChange{ID: id, Body: []byte(`{"n":1}`)}}); err == nil {
				l.acked = append(l.acked, id)
			}
		}
	})
	t.Cleanup(func() { cancel(); l.wg.Wait() })
	return l
}

func (l *load) stop(t *testing.T) {
	l.cancel()
	l.wg.Wait()
	t.Logf("%d writes acknowledged", len(l.acked))
}

func (l *load) check(t *testing.T, cl *Client) {
	t.Helper()
	all, err := cl.Handovers(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	have := map[topo.HandoverID]bool{}
	for _, h := range all {
		have[h.ID] = true
	}
	for _, id := range l.acked {
		if !have[id] {
			t.Errorf("acknowledged write %s is gone", id)
		}
	}
}
