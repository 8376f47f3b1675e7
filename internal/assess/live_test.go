package assess

import (
	"slices"
	"strings"
	"testing"
)

// Living through years agrees with the expected downtime, under every pattern: recoveries, failed and needless ones,
// shared causes, restores from backup; servers that queue for a crew and stop each other.
func TestLivingAgreesWithTheExpectedDowntime(t *testing.T) {
	withoutDetector(t)
	t.Parallel()
	shared := "shared: [{name: release, every: 60d, lasts: 40m, hits: {services: [all]}}, {name: deletion, every: 5y, lasts: 1h, data: true, hits: {services: [shop]}}]\nservices:\n"
	text := pair(rich+`
  stock:
    now: {pattern: single, sites: [a]}
    demand: {peak: 100, cores: 10}
`, "services:\n", shared, "    servers: {count: 3, need: 1}", "    calls: [{to: stock}]\n    servers: {count: 4, need: 2, every: 20d, lasts: 8h, crews: 1, coverage: 90%}", "y: {kind: power, every: 120d, lasts: 12h}", "y: {kind: power, every: 40d, lasts: 4h}")
	e := estate(t, text)
	v := newEvaluator(e)
	for _, p := range v.placements(v.service["shop"]) {
		plan := v.plan(v.along(v.today, v.service["shop"], p))
		for _, service := range v.services {
			a := v.arrange(plan)
			b, err := v.brief(a, v.service[service])
			if err != nil {
				t.Fatal(err)
			}
			est, err := Live(e, plan, service, 10_000)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s as %s: %.0f s a year expected, %.0f lived (%.0f to %.0f, %d interruptions)", service, p.Placement, b.downtime, est.Mean, est.Low, est.High, est.Hits)
			// The expectation counts interruptions that overlap twice: below 2 % in estates as poor as this one.
			if b.downtime < .98*est.Low || b.downtime > 1.02*est.High {
				t.Errorf("%s as %s: %.0f s a year expected; %+v", service, p.Placement, b.downtime, est)
			}
		}
	}
}

// The same on a whole estate; few interruptions claim nothing.
func TestLivingOnExamples(t *testing.T) {
	t.Parallel()
	e := small(t)
	v := newEvaluator(e)
	for _, service := range v.services {
		b, err := v.brief(v.today, v.service[service])
		if err != nil {
			t.Fatal(err)
		}
		est, err := Live(e, e.Today(), service, 2000)
		if err != nil {
			t.Fatal(err)
		}
		if !est.Holds(b.downtime) {
			t.Errorf("%s: %.0f s a year expected; %+v", service, b.downtime, est)
		}
	}
	est, err := Live(e, e.Today(), "shop", 2)
	if err != nil || est.Refused == "" && est.Hits < fewHits || est.Refused != "" && est.High != 0 {
		t.Errorf("two years: %+v, %v", est, err)
	}
	if _, err := Live(e, e.Today(), "shop", 1); err == nil || !strings.Contains(err.Error(), "years") {
		t.Errorf("one year: %v", err)
	}
}

// A service is back when what it needs at every answer is back: with a caller in one pattern and its callee in another,
// living agrees with what is expected.
func TestLivingAgreesThroughWhatIsNeeded(t *testing.T) {
	withoutDetector(t)
	t.Parallel()
	e := estate(t, pair(rich+`
  stock:
    now: {pattern: single, sites: [a]}
    servers: {count: 2, need: 1}
    demand: {peak: 100, cores: 10}
    data: {size: 300GB, changes: 100KB/s, by_user: 95%}
`, "    servers: {count: 3, need: 1}", "    calls: [{to: stock, times: 2, writes: 20%}]\n    servers: {count: 3, need: 1}"))
	v := newEvaluator(e)
	shop, stock := v.service["shop"], v.service["stock"]
	p := func(pattern Pattern, sites ...string) Placement {
		out := Placement{Pattern: pattern, Sites: sites}
		if active(pattern) {
			out.Quorum = "w"
		}
		return out
	}
	for _, c := range []struct {
		shop, stock Placement
		waits       Pattern // whose recovery the loss of a waits for
		share       float64
	}{
		{p(Partitioned, "a", "b"), p(WarmStandby, "a", "b"), WarmStandby, 1},
		{p(PilotLight, "a", "b"), p(BackupRestore, "a", "b"), BackupRestore, 1},
		{p(Single, "b"), p(WarmStandby, "a", "b"), WarmStandby, 1},
		{p(WarmStandby, "b", "a"), p(PilotLight, "a", "b"), PilotLight, 1},
		{p(Single, "b"), p(OneWriter, "a", "b"), OneWriter, .4},
		{p(Partitioned, "a", "b"), p(Partitioned, "b", "a"), Partitioned, .5},
		{p(WarmStandby, "a", "b"), p(Partitioned, "a", "b"), WarmStandby, 1},
	} {
		plan := Plan{"shop": c.shop, "stock": c.stock}
		a := v.arrange(plan)
		found := v.losses(a, shop)
		at := slices.IndexFunc(found, func(f felt) bool { return f.site == "a" })
		if at < 0 || found[at].share != c.share || v.spot(a, v.slowest(a, found[at].waits)).Pattern != c.waits {
			t.Errorf("%s, stock as %s: the loss of a is felt as %+v", c.shop, c.stock, found)
			continue
		}
		b, err := v.brief(a, shop)
		if err != nil {
			t.Fatal(err)
		}
		est, err := Live(e, plan, "shop", 20_000)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s, stock as %s: %.0f s a year expected, %.0f lived (%.0f to %.0f)", c.shop, c.stock, b.downtime, est.Mean, est.Low, est.High)
		if b.downtime < .98*est.Low || b.downtime > 1.02*est.High {
			t.Errorf("%s, stock as %s: %.0f s a year expected; %+v", c.shop, c.stock, b.downtime, est)
		}
	}
	slow := v.arrange(Plan{"shop": p(PilotLight, "a", "b"), "stock": p(BackupRestore, "a", "b")})
	if v.rto(slow, shop).P95 < .98*v.rto(slow, stock).P95 { // both are drawn
		t.Errorf("shop is back in %v, and what it needs in %v", v.rto(slow, shop), v.rto(slow, stock))
	}
}
