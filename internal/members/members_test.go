package members

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// ground is a store that compares and sets, and sites that say what they are told to.
type ground struct {
	o       topo.Ownership
	rev     store.Revision
	leases  map[topo.SiteID]store.Lease
	revs    map[topo.SiteID]store.Revision
	renews  bool                                   // c's lease, at every look
	slow    topo.SiteID                            // acknowledges nothing
	unknown topo.SiteID                            // does not know the site that is asked about
	applied map[topo.SiteID]map[topo.SiteID]uint64 // by site, by origin
	grows   topo.SiteID                            // has one more at every look, up to 9
	calls   []string
	broken  map[string]error
	audit   []string
}

func newGround(members ...topo.SiteID) *ground {
	g := &ground{rev: 7, revs: map[topo.SiteID]store.Revision{}, leases: map[topo.SiteID]store.Lease{}, applied: map[topo.SiteID]map[topo.SiteID]uint64{}, broken: map[string]error{}}
	g.o = topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 4, Hash: "md5", Ranges: []topo.Range{
		{First: 0, Last: 1, Owner: "a", Epoch: 1, State: topo.Open}, {First: 2, Last: 3, Owner: "b", Epoch: 1, State: topo.Open}}}}).WithMembers(members)
	for i, m := range []topo.SiteID{"a", "b", "c", "d"} {
		g.leases[m], g.revs[m], g.applied[m] = store.Lease{Duration: time.Second}, store.Revision(i+1), map[topo.SiteID]uint64{}
	}
	return g
}

func (g *ground) members(site topo.SiteID) *Members {
	return New(Config{Site: site, Listed: []topo.SiteID{"a", "b", "c", "d"}, Store: g, Sites: g, W: time.Second,
		Rebuild: func(_ context.Context, _ string, r api.RebuildRequest) (api.RebuildAnswer, error) {
			g.calls = append(g.calls, fmt.Sprintf("rebuild %s, dry %v", r.Site, r.DryRun))
			return api.RebuildAnswer{From: "b"}, g.broken["rebuild"]
		}})
}

func (g *ground) Ownership(context.Context) (topo.Ownership, store.Revision, error) {
	return g.o, g.rev, nil
}

// Lease is of a site that has acknowledged the newest document, unless it is slow.
func (g *ground) Lease(_ context.Context, site topo.SiteID) (store.Lease, store.Revision, error) {
	l, exists := g.leases[site]
	if !exists {
		return l, 0, store.ErrNotFound
	}
	if site == "c" && g.renews {
		g.revs[site] += 10
	}
	if l.Generation = g.o.Generation; site != g.slow {
		l.Version = g.o.Version
	}
	return l, g.revs[site], nil
}

func (g *ground) Commit(_ context.Context, ch store.Change) (store.Revision, error) {
	if ch.Ownership != nil && ch.Ownership.Expect != g.rev || ch.Lease != nil && ch.Lease.Expect != g.revs[ch.Lease.Site] {
		return 0, store.ErrConflict
	}
	if ch.Ownership != nil {
		g.o = ch.Ownership.Next
		g.rev++
		g.calls = append(g.calls, fmt.Sprintf("members %v", g.o.Members))
	}
	if ch.Lease != nil && ch.Lease.Gone {
		delete(g.leases, ch.Lease.Site)
		g.calls = append(g.calls, "no lease of "+string(ch.Lease.Site))
	}
	g.audit = append(g.audit, ch.Audit)
	return g.rev, nil
}

func (g *ground) Standing(_ context.Context, at, of topo.SiteID) (api.Standing, error) {
	if at == g.unknown {
		return api.Standing{}, fmt.Errorf("site %s is not in this agent's spec", of)
	}
	if at == g.grows && g.applied[at][of] < 9 {
		g.applied[at][of]++
	}
	return api.Standing{Applied: g.applied[at][of]}, nil
}

func (g *ground) Point(_ context.Context, at topo.SiteID) (uint64, error) {
	g.calls = append(g.calls, "point at "+string(at))
	return 9, g.broken["point"]
}

func (g *ground) Dismiss(_ context.Context, at, gone topo.SiteID) error {
	g.calls = append(g.calls, fmt.Sprintf("%s dismisses %s", at, gone))
	return g.broken["dismiss "+string(at)]
}

func (g *ground) expect(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(g.calls, want) {
		t.Errorf("calls\n%s\nwant\n%s", strings.Join(g.calls, "\n"), strings.Join(want, "\n"))
	}
	g.calls = nil
}

func refused(t *testing.T, err error, check string) {
	t.Helper()
	var e *api.Error
	if !errors.As(err, &e) || e.Code != api.CodeRefused || len(e.Problems) != 1 || e.Problems[0].Check != check {
		t.Errorf("got %v; want a refusal by %s", err, check)
	}
}

func TestAdd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		g := newGround("a", "b")
		add := api.MemberRequest{Do: api.MemberAdd, Site: "d", Why: "more room"}
		if _, err := g.members("a").Change(ctx, "ann", add); err == nil {
			t.Error("another site's agent adds it")
		}
		g.unknown = "b" // it has the old spec
		_, err := g.members("d").Change(ctx, "ann", add)
		refused(t, err, "every-site")
		g.unknown = ""
		dry := add
		dry.DryRun = true
		if a, err := g.members("d").Change(ctx, "ann", dry); err != nil || a.From != "b" {
			t.Errorf("%+v, %v", a, err)
		}
		g.expect(t, "rebuild d, dry true")
		g.broken["rebuild"] = errors.New("no space left")
		if _, err := g.members("d").Change(ctx, "ann", add); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Error(err)
		}
		g.broken["rebuild"] = nil
		g.expect(t, "rebuild d, dry false")

		// One that does not acknowledge that it is joining: it is no member, and the next try goes on from there.
		g.slow = "b"
		_, err = g.members("d").Change(ctx, "ann", add)
		if err == nil || !strings.Contains(err.Error(), "site b has not acknowledged") || g.o.Full("d") {
			t.Errorf("%v, %v", err, g.o.Members)
		}
		g.expect(t, "rebuild d, dry false", "members [{a false} {b false} {d true}]")
		g.slow = ""
		g.applied["d"]["a"] = 9
		_, err = g.members("d").Change(ctx, "ann", add) // and one whose changes it does not have yet
		if err == nil || !strings.Contains(err.Error(), "changes of site b up to 0, and not yet up to 9") || g.o.Full("d") {
			t.Errorf("%v, %v", err, g.o.Members)
		}
		g.expect(t, "point at a", "point at b")
		g.grows = "d"
		if _, err = g.members("d").Change(ctx, "ann", add); err != nil || !g.o.Full("d") {
			t.Errorf("%v, %v", err, g.o.Members)
		}
		g.expect(t, "point at a", "point at b", "members [{a false} {b false} {d false}]")
		if got := g.audit[len(g.audit)-1]; got != "site d is a member (by ann: more room)" {
			t.Errorf("audit %q", got)
		}
		if _, err = g.members("d").Change(ctx, "ann", add); err != nil {
			t.Error(err)
		}
		g.expect(t)
	})
}

func TestRemove(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		g := newGround("a", "b", "c")
		remove := func(site topo.SiteID) (api.MemberAnswer, error) {
			return g.members("a").Change(ctx, "ann", api.MemberRequest{Do: api.MemberRemove, Site: site})
		}
		_, err := remove("b")
		refused(t, err, "owns-nothing")
		if _, err := remove("a"); err == nil {
			t.Error("an agent removes its own site")
		}
		g.broken["point"] = errors.New("no route")
		_, err = remove("c")
		refused(t, err, "answers")
		g.broken["point"] = nil
		g.calls = nil
		g.applied["a"]["c"] = 9
		if _, err = remove("c"); err == nil || !strings.Contains(err.Error(), "site b has the changes of site c up to 0") || !g.o.Takes("c") {
			t.Errorf("%v, %v", err, g.o.Members)
		}
		g.expect(t, "point at c")
		g.applied["b"]["c"], g.renews, g.broken["dismiss b"] = 9, true, errors.New("no route")
		if _, err = remove("c"); err == nil || !strings.Contains(err.Error(), "site b does not let go") || g.o.Takes("c") {
			t.Errorf("%v, %v", err, g.o.Members)
		}
		g.expect(t, "point at c", "members [{a false} {b false}]", "a dismisses c", "b dismisses c")
		delete(g.broken, "dismiss b")
		if a, err := remove("c"); err != nil || a.Left == "" { // its agent still runs
			t.Errorf("%+v, %v", a, err)
		}
		g.expect(t, "a dismisses c", "b dismisses c")
		g.renews = false
		if a, err := remove("c"); err != nil || a.Left != "" {
			t.Errorf("%+v, %v", a, err)
		}
		g.expect(t, "a dismisses c", "b dismisses c", "no lease of c")
	})
}

func TestForget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx := t.Context()
		g := newGround("a", "b", "c")
		forget := func(dry bool) (api.MemberAnswer, error) {
			return g.members("a").Change(ctx, "ann", api.MemberRequest{Do: api.MemberForget, Site: "c", DryRun: dry})
		}
		for _, step := range []func() (topo.Ownership, error){
			func() (topo.Ownership, error) {
				return g.o.StartMove("users", topo.Spans{{First: 0, Last: 0}}, "s1", "c")
			},
			func() (topo.Ownership, error) { return g.o.CommitMove("users", topo.Spans{{First: 0, Last: 0}}, "s1") },
		} {
			var err error
			if g.o, err = step(); err != nil {
				t.Fatal(err)
			}
		}
		_, err := forget(false)
		refused(t, err, "owns-nothing")
		if g.o, _, err = g.o.TakeOver("c", "b", "f1", 5); err != nil {
			t.Fatal(err)
		}
		_, err = g.members("a").Change(ctx, "ann", api.MemberRequest{Do: api.MemberRemove, Site: "c"})
		refused(t, err, "settled")
		g.renews = true
		_, err = forget(false)
		refused(t, err, "lease")
		g.renews = false
		began := time.Now()
		if a, err := forget(true); err != nil || a.Handover != "f1" || time.Since(began) < 2*time.Second {
			t.Errorf("%+v, %v after %s", a, err, time.Since(began))
		}
		g.applied["a"]["c"], g.applied["b"]["c"] = 9, 5 // a, which was silent at the cut, stands beyond it
		if _, err = forget(false); err == nil || !strings.Contains(err.Error(), "site a has the changes of site c up to 9, site b up to 5") || !g.o.Takes("c") {
			t.Error(err)
		}
		g.expect(t)
		g.grows = "b"
		if _, err = forget(false); err != nil || len(g.o.Cuts()) != 0 || g.o.Takes("c") {
			t.Errorf("%v, cuts %v", err, g.o.Cuts())
		}
		g.expect(t, "members [{a false} {b false}]", "no lease of c", "a dismisses c", "b dismisses c")
	})
}
