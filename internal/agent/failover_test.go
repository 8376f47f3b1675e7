package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/internal/spec"
)

// TestLinkStanding: what another site said over a link counts as long as the link lives, and ages meanwhile.
func TestLinkStanding(t *testing.T) {
	t.Parallel()
	serving := link.Statement{Serving: true, RemainingMS: 1500}
	for _, c := range []struct {
		name    string
		known   bool
		state   replicate.OriginState
		heard   time.Duration // ago; 0: never
		silence time.Duration // as the database says
		want    api.Standing
	}{
		{"live", true, replicate.OriginState{Phase: replicate.Streaming, Says: serving, Lag: 30 * time.Millisecond}, 400 * time.Millisecond, time.Hour,
			api.Standing{Linked: true, Serving: true, HeardMS: 400, RemainingMS: 1100, LossMS: 400}},
		{"behind", true, replicate.OriginState{Phase: replicate.Streaming, Says: serving, Lag: 5 * time.Second}, 400 * time.Millisecond, 0,
			api.Standing{Linked: true, Serving: true, HeardMS: 400, RemainingMS: 1100, LossMS: 5000}},
		{"silent", true, replicate.OriginState{Phase: replicate.Streaming, Says: serving}, 4 * time.Second, 0, api.Standing{HeardMS: 4000, LossMS: 4000}},
		{"broken", true, replicate.OriginState{Phase: replicate.Retrying, Says: serving}, 600 * time.Millisecond, 0,
			api.Standing{HeardMS: 600, RemainingMS: 900, LossMS: 600}},
		{"closed", true, replicate.OriginState{Phase: replicate.Streaming, Says: link.Statement{Closed: "h1"}}, 600 * time.Millisecond, 0,
			api.Standing{Linked: true, HeardMS: 600, Closed: "h1", LossMS: 600}},
		{"not heard since this agent started", true, replicate.OriginState{Phase: replicate.Retrying}, 0, 9 * time.Second, api.Standing{HeardMS: -1, LossMS: 9000}},
		{"never had anything of it", false, replicate.OriginState{Phase: replicate.Connecting}, 0, 0, api.Standing{HeardMS: -1, LossMS: -1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if c.heard > 0 {
				c.state.Heard = time.Now().Add(-c.heard)
			}
			got := api.Standing{Known: c.known, HeardMS: -1, WroteMS: -1, LossMS: -1}
			linkStanding(&got, c.state, c.silence)
			near := func(got, want int64) bool { return want <= 0 && got == want || got-want < 200 && want-got < 200 }
			if got.Linked != c.want.Linked || got.Serving != c.want.Serving || got.Closed != c.want.Closed || got.WroteMS != -1 ||
				!near(got.HeardMS, c.want.HeardMS) || !near(got.RemainingMS, c.want.RemainingMS) || !near(got.LossMS, c.want.LossMS) {
				t.Errorf("got %+v; want %+v", got, c.want)
			}
		})
	}
}

// TestTakesOverFromADeadSite: a's agent ends and does not come back; b's takes its buckets over by itself, with
// everything that had come, and accepts writes for them.
func TestTakesOverFromADeadSite(t *testing.T) {
	w := newWorld(t)
	w.spec.Policies.Failover.Mode = spec.FailoverAutomatic
	w.start2()
	w.open("b")
	keys := w.keysIn(0, 63, 3)
	w.exec(w.sites["a"].app, insert(keys[0], 1), insert(keys[1], 1))
	w.eventually("b has what a wrote", func() bool { return w.value("b", "SELECT count(*) FROM item WHERE n = 1") == 2 })
	atB := w.client("b")
	w.eventually("b sees that a is well", func() bool {
		e, err := atB.Explain(t.Context(), "a")
		return err == nil && len(e.Sites) == 1 && strings.HasPrefix(e.Sites[0].Verdict, "a is not lost") && e.Sites[0].Standing.Linked && e.Sites[0].Standing.WroteMS >= 0
	})
	w.stop("a")
	stopped := time.Now()
	w.eventually("b accepts a write for what was a's", func() bool { return w.try(w.sites["b"].app, insert(keys[2], 2)) == nil })
	t.Logf("b accepted a write %s after a's agent had ended; D %s, W %s", time.Since(stopped), w.spec.Policies.Lease.Duration, w.spec.Policies.Lease.W)
	var h api.Handover
	w.eventually("the failover is done", func() bool {
		list, err := atB.Handovers(t.Context(), 5)
		if err == nil && len(list) == 1 {
			h = list[0]
		}
		return h.Over()
	})
	if f := h.Failover; h.Kind != "failover" || h.Outcome != "done" || h.Count != 64 || f == nil || !f.Automatic || f.LossMS < 0 || f.OpenMS < f.WaitedMS {
		t.Errorf("failover %+v, %+v", h, h.Failover)
	}
	if n := w.value("b", "SELECT count(*) FROM atoll.progress WHERE halted <> ''"); n > 0 {
		t.Error("left halted")
	}
	w.eventually("the verdict is that it is done", func() bool {
		e, err := atB.Explain(t.Context(), "")
		return err == nil && e.Sites[0].Last != nil && e.Sites[0].Last.ID == h.ID && strings.Contains(e.Sites[0].Verdict, "took over from a")
	})
}
