package lease

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// promisers stand for the agents of the other sites: they promise unless told otherwise.
type promisers struct {
	mu     sync.Mutex // synctest.Wait orders nothing for the race detector when a goroutine merely sleeps
	refuse map[topo.SiteID]error
	long   time.Duration // at most
	asked  int           // of b
	until  time.Time     // what b has promised last
}

func (p *promisers) set(change func(*promisers)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p)
}

func (p *promisers) of() (asked int, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked, p.until
}

func (p *promisers) ask(_ context.Context, site topo.SiteID, _ string, long time.Duration) (time.Duration, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.refuse[site]; err != nil {
		return 0, err
	}
	if p.long > 0 {
		long = min(long, p.long)
	}
	if site == "b" {
		p.asked++
		p.until = time.Now().Add(long)
	}
	return long, nil
}

func promised(p *promisers) func(*Config) {
	return func(c *Config) { c.Without, c.Peers, c.Ask = Promised, []topo.SiteID{"c", "b"}, p.ask }
}

// While the store is gone, a site accepts writes exactly as long as every other one promises not to take over, and never
// beyond what was promised.
func TestBridge(t *testing.T) {
	t.Parallel()
	bubble(t, "promises carry the lease", func(t *testing.T) {
		s, f, p := &memStore{}, newMemFence("a"), &promisers{}
		s.own(users())
		x := start(t, s, f, promised(p))
		if l := s.record(); l.Asks != "b,c" || l.Keeps {
			t.Errorf("the record says %+v", l)
		}
		s.set(func(s *memStore) { s.down = true })
		for range 600 {
			after(d / 10)
			x.wantAccepts(0, true)
			until, live := x.keeper.Deadline()
			if asked, promised := p.of(); asked > 0 && (!live || until.After(promised)) {
				t.Fatalf("open until %v; promised until %v", until, promised)
			}
		}
		if st := x.keeper.Status(); !st.Active || !strings.Contains(st.Problem, "promises of b,c") {
			t.Errorf("status %+v", st)
		}
		before, _ := p.of()
		s.set(func(s *memStore) { s.down = false })
		after(2 * d)
		x.wantAccepts(0, true)
		asked, _ := p.of()
		if now, _ := s.renewed(); now < 3 || asked > before+1 {
			t.Errorf("%d renewals, %d pleas after the store's return", now, asked-before)
		}
	})
	bubble(t, "who is asked follows the members", func(t *testing.T) {
		s, f, p := &memStore{}, newMemFence("a"), &promisers{refuse: map[topo.SiteID]error{}}
		joining, err := users().WithMembers([]topo.SiteID{"a", "b"}).Join("c")
		if err != nil {
			t.Fatal(err)
		}
		s.own(joining)
		x := start(t, s, f, promised(p))
		after(2 * d)                        // with its first renewal it reads who is a member
		if l := s.record(); l.Asks != "b" { // c may not take over, and is asked for nothing
			t.Errorf("the record says %+v", l)
		}
		joined, err := joining.Join("c")
		if err != nil {
			t.Fatal(err)
		}
		s.own(joined)
		after(2 * d)
		if l := s.record(); l.Asks != "b,c" {
			t.Errorf("the record says %+v", l)
		}
		p.set(func(p *promisers) { p.refuse["c"] = errors.New("not in this agent's spec") }) // an older file: it cannot be asked
		s.set(func(s *memStore) { s.down = true })
		after(2 * d)
		x.wantAccepts(0, false)
	})
	bubble(t, "one that does not promise is enough", func(t *testing.T) {
		s, f, p := &memStore{}, newMemFence("a"), &promisers{refuse: map[topo.SiteID]error{}}
		s.own(users())
		x := start(t, s, f, promised(p))
		s.set(func(s *memStore) { s.down = true })
		after(3 * d)
		x.wantAccepts(0, true)
		p.set(func(p *promisers) { p.refuse["c"] = errors.New("connection refused") })
		after(d)
		x.wantAccepts(0, false)
		if st := x.keeper.Status(); st.Active || !strings.Contains(st.Problem, "site c promises nothing") {
			t.Errorf("status %+v", st)
		}
		p.set(func(p *promisers) { delete(p.refuse, "c") }) // it is back, and has not taken over: it promises again
		after(d)
		x.wantAccepts(0, true)
	})
	bubble(t, "short promises are not stretched", func(t *testing.T) {
		s, f, p := &memStore{}, newMemFence("a"), &promisers{long: d / 100}
		s.own(users())
		x := start(t, s, f, promised(p))
		s.set(func(s *memStore) { s.down = true })
		after(2 * d)
		x.wantAccepts(0, false)
	})
	bubble(t, "a store that answers is not bridged", func(t *testing.T) {
		s, f, p := &memStore{}, newMemFence("a"), &promisers{}
		s.own(users())
		x := start(t, s, f, promised(p))
		s.set(func(s *memStore) { // another site took over
			l := *s.lease
			l.Sequence, l.Revoked, l.RevokedBy = l.Sequence+1, true, "f1"
			s.rev++
			s.lease, s.leaseRev = &l, s.rev
		})
		after(3 * d)
		if asked, _ := p.of(); asked > 0 {
			t.Errorf("asked %d times", asked)
		}
		_ = x
	})
	bubble(t, "a dead database has no leave", func(t *testing.T) {
		s, f, p := &memStore{}, newMemFence("a"), &promisers{}
		s.own(users())
		x := start(t, s, f, promised(p))
		s.set(func(s *memStore) { s.down = true })
		after(2 * d)
		before, _ := p.of()
		f.set(func(f *memFence) { f.refuse["heartbeat"] = errors.New("no answer") })
		after(2 * d)
		asked, _ := p.of()
		if _, live := x.keeper.Deadline(); live || asked > before+1 {
			t.Errorf("live %v, asked %d times more", live, asked-before)
		}
	})
	bubble(t, "kept without anybody", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f, func(c *Config) { c.Without = Kept })
		if !s.record().Keeps {
			t.Error("the record does not say so")
		}
		s.set(func(s *memStore) { s.down = true })
		after(20 * d)
		x.wantAccepts(0, true)
	})
	bubble(t, "stopped unless told otherwise", func(t *testing.T) {
		s, f := &memStore{}, newMemFence("a")
		s.own(users())
		x := start(t, s, f)
		if l := s.record(); l.Asks != "" || l.Keeps {
			t.Errorf("%+v", l)
		}
		s.set(func(s *memStore) { s.down = true })
		after(2 * d)
		x.wantAccepts(0, false)
	})
	if _, err := New(Config{Site: "a", Without: Promised}); err == nil {
		t.Error("promises of nobody")
	}
}
