package lab

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// The whole store is dead for two minutes. By promises of each other three sites go on writing, and nobody takes over
// from anybody. Then a site dies, too: the two that are left stop, because one that could take over from them promises
// nothing any more, and none of them takes over before the store answers again; then one does.
func TestStoreGoneForTwoMinutes(t *testing.T) {
	alone(t)
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	w := ownWorld(ctx, t, Options{Sites: []topo.SiteID{"a", "b", "c"}, NoWitness: true, reshape: func(s *spec.Spec) { s.Policies.Failover.OnQuorumLoss = spec.QuorumPromise }})
	stores := []string{"a/store", "b/store", "c/store"}
	w.must(w.startLoad(ctx))
	w.must(w.startRegisters(ctx))
	w.eventually(ctx, "the load is answered", func() bool { return w.answered() > 50 })

	w.eventually(ctx, "the others watch c", func() bool {
		said, err := w.d.Atoll(ctx, "explain", "--site", "c")
		return err == nil && strings.Count(string(said), "c is not lost") == 2
	})

	gone := time.Now()
	w.must(w.d.Processes.KillAll(stores))
	w.must(rest(ctx, 2*time.Minute))
	died := time.Now()
	ops, err := readHistoryOf(w.historyFile())
	w.must(err)
	for _, site := range w.opts.Sites {
		last, widest, n := gone, time.Duration(0), 0
		for _, o := range ops {
			at := time.UnixMicro(o.ReturnedUS)
			if o.Write && o.Outcome == OK && o.Site == site && at.After(gone) && at.Before(died) {
				widest, last, n = max(widest, at.Sub(last)), at, n+1
			}
		}
		widest = max(widest, died.Sub(last))
		t.Logf("%s: %d writes without the store; the longest time without one was %v", site, n, widest.Round(time.Millisecond))
		if widest > 20*time.Second { // a twelfth of the load's writes go there every second
			t.Errorf("writes at %s did not go on", site)
		}
	}

	w.must(w.d.killSite("c"))
	w.must(rest(ctx, w.leases(4)))
	said, err := w.d.Atoll(ctx, "explain", "--site", "c")
	w.must(err)
	t.Logf("explain --site c:\n%s", said)
	for _, taker := range []string{"a", "b"} {
		if want := taker + " cannot take over from c: the store does not answer"; !strings.Contains(string(said), want) {
			t.Errorf("it does not say: %s", want)
		}
	}
	back := time.Now()
	for _, name := range stores[:2] {
		w.must(w.d.Processes.Restart(name))
	}
	w.eventually(ctx, "c is taken over", func() bool {
		st, err := w.d.status(ctx, "a")
		if err != nil {
			return false
		}
		return slices.ContainsFunc(st.Ownership.Unsettled, func(u api.UnsettledStatus) bool { return u.Site == "c" })
	})
	st, err := w.d.status(ctx, "a")
	w.must(err)
	for _, h := range st.Handovers {
		if h.Kind != failoverKind {
			continue
		}
		if len(h.Steps) == 0 || h.Steps[0].At.Before(back) || h.From != "c" {
			t.Errorf("failover %s from %s at %v; the store was back at %v", h.ID, h.From, h.Steps, back)
		}
	}
	w.must(w.recover(ctx))
	w.must(w.stopLoad(ctx))
	w.must(w.quiesce(ctx))
	w.judge(ctx)
}
