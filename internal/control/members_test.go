package control

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// withMembers commits a document with members, and those of joining after them.
func (w *flood) withMembers(members []topo.SiteID, joining ...topo.SiteID) topo.Ownership {
	w.t.Helper()
	o, rev, err := w.store.Ownership(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	o = o.WithMembers(members)
	o.Version++
	for _, s := range joining {
		if o, err = o.Join(s); err != nil {
			w.t.Fatal(err)
		}
	}
	if _, err := w.store.Commit(w.t.Context(), store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: o}}); err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *flood) taken() bool {
	o, _, err := w.store.Ownership(w.t.Context())
	return err == nil && o.Unsettled("a") != ""
}

// A site that came in between the halt and the takeover was not asked to stop, and may stand beyond the cut: a takeover by
// other members than those of the document is given up, until this site knows of them.
func TestTakeoverComparesWhomItAsked(t *testing.T) {
	t.Parallel()
	w := newFlood(t)
	old, _, err := w.store.Ownership(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var known atomic.Pointer[topo.Ownership]
	former := old.WithMembers([]topo.SiteID{"a", "b"})
	known.Store(&former)
	now := w.withMembers([]topo.SiteID{"a", "b"}, "c")
	c := w.controller("1", w.store)
	c.cfg.Ownership = func() (topo.Ownership, bool) { return *known.Load(), true }
	w.run(c)
	w.kill()
	w.eventually("it has tried", 30*time.Second, func() bool {
		w.b.mu.Lock()
		defer w.b.mu.Unlock()
		return w.b.halts > 0
	})
	w.eventually("it is given up", 30*time.Second, func() bool {
		s, _ := c.lookout("a").snapshot()
		return w.taken() || !s.UnderWay()
	})
	if w.taken() {
		t.Fatal("taken over without the one that is joining")
	}
	known.Store(&now)
	w.eventually("it takes over", 30*time.Second, w.taken)
	if h, err := c.Handovers(t.Context(), 1); err != nil || len(h) != 1 || h[0].Failover == nil || len(h[0].Failover.Silent) != 1 || h[0].Failover.Silent[0] != "c" {
		t.Errorf("%+v, %v", h, err) // it is not waited for
	}
}

// A site that is no member, or only joining, takes over nothing, and says so.
func TestOnlyMembersTakeOver(t *testing.T) {
	t.Parallel()
	w := newFlood(t)
	now := w.withMembers([]topo.SiteID{"a"}, "b")
	c := w.controller("1", w.store)
	var known atomic.Pointer[topo.Ownership]
	known.Store(&now)
	c.cfg.Ownership = func() (topo.Ownership, bool) { return *known.Load(), true }
	w.run(c)
	w.kill()
	w.eventually("it says why", 30*time.Second, func() bool {
		s, _ := c.lookout("a").snapshot()
		for _, rule := range handover.Unmet(s.Conditions(handover.Ask{}, time.Now())) {
			if rule.Rule == handover.RuleStanding && strings.Contains(rule.Text, "no member") {
				return s.Lease.Exists && time.Since(s.Facts.Began) < time.Minute
			}
		}
		return false
	})
	o, rev, err := w.store.Ownership(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if w.taken() {
		t.Fatal("taken over by one that is joining")
	}
	if o, err = o.Join("b"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.store.Commit(t.Context(), store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: o}}); err != nil {
		t.Fatal(err)
	}
	known.Store(&o)
	w.eventually("it takes over as a member", 30*time.Second, w.taken)
}
