package assess

import (
	"math"
	"slices"
	"strings"
	"testing"
)

// Convolution against closed forms and against drawing.
func TestSpectra(t *testing.T) {
	t.Parallel()
	g := grid{.0005}
	ten := g.constant(.010)
	if got := g.quantile(ten.spectrum().times(20).spread(), .5); math.Abs(got-.2) > 1e-9 {
		t.Errorf("20 times 10 ms is %v", got)
	}
	// 100 calls side by side, each slow in 1 of 100: one is slow in 63.4 % of answers.
	slow := g.constant(.01)
	for i, late := range g.constant(1) {
		slow[i] = .99*slow[i] + .01*late
	}
	many := make([]*spread, 100)
	for i := range many {
		many[i] = slow
	}
	share := 0.0
	for i, v := range slowest(many) {
		if float64(i)*g.step > .5 {
			share += v
		}
	}
	if math.Abs(share-.633968) > 1e-6 {
		t.Errorf("%v of answers wait for a slow one; want .633968", share)
	}
	l := g.lognormal(.02, .08)
	if p50, p99 := g.quantile(l, .5), g.quantile(l, .99); math.Abs(p50-.02) > g.step || math.Abs(p99-.08) > g.step {
		t.Errorf("lognormal through 20 ms and 80 ms: %v and %v", p50, p99)
	}
	rng := (&Estate{Seed: 1}).rng("draws")
	sigma := math.Log(4) / 2.3263478740408408
	draws := make([]float64, 40000)
	for i := range draws {
		for range 3 {
			draws[i] += .02 * math.Exp(sigma*rng.NormFloat64())
		}
	}
	drawn := quantiles(draws, Duration)
	if p95 := g.quantile(l.spectrum().times(3).spread(), .95); math.Abs(p95/drawn.P95-1) > .03 {
		t.Errorf("three in a row: p95 %v; drawn %v", p95, drawn.P95)
	}
}

// Twenty chatty calls: nothing within a site, half a second across 28 ms.
func TestChattyAcrossCities(t *testing.T) {
	t.Parallel()
	e := small(t)
	e.Services["shop"].Calls[0].Times = Number{Low: 20, Mode: 20, High: 20, Set: true}
	v := newEvaluator(e)
	near := v.latency(v.today, v.service["shop"], "shop", Book{})
	far := v.latency(v.arrange(e.Today().With("stock", Placement{Pattern: Single, Sites: []string{"cloud1"}})), v.service["shop"], "shop", Book{})
	if more := far.P50.V - near.P50.V; math.Abs(more-20*(.028-within)) > .01 {
		t.Errorf("20 calls across 28 ms add %v", more)
	}
	if far.CrossCalls != 21 || near.CrossCalls != 1 || *far.Budget {
		t.Errorf("cross calls %v and %v, within budget %v", near.CrossCalls, far.CrossCalls, *far.Budget)
	}
	if far.P99.V > far.UpperP99.V {
		t.Errorf("p99 %v above its bound %v", far.P99.V, far.UpperP99.V)
	}
}

// Of ten calls side by side, one in ten answers waits for a slow one: their 99th percentile is beyond that of each, and
// nothing that is known without convolving may say otherwise.
func TestCallsSideBySideAreSlowMoreOften(t *testing.T) {
	t.Parallel()
	var calls []string
	others := ""
	for _, name := range strings.Fields("c d e f g h i j k l") {
		calls = append(calls, "{to: "+name+", parallel: true}")
		others += "  " + name + ":\n    now: {pattern: single, sites: [a]}\n    latency: {p50: 5ms, p99: 200ms}\n"
	}
	e := estate(t, pair(strings.Replace(rich, "    servers:", "    calls: ["+strings.Join(calls, ", ")+"]\n    servers:", 1)+others))
	v := newEvaluator(e)
	shop := v.service["shop"]
	rng := e.rng("draws")
	draw := func(p50, p99 float64) float64 { return p50 * math.Exp(spreadOf(p50, p99)*rng.NormFloat64()) }
	draws := make([]float64, 100_000)
	for i := range draws {
		for range calls {
			draws[i] = max(draws[i], within+draw(.005, .2))
		}
		draws[i] += draw(.02, .06)
	}
	slices.Sort(draws)
	want := draws[len(draws)*99/100]
	got := v.latency(v.today, shop, "shop", Book{})
	if math.Abs(got.P99.V/want-1) > .06 || got.UpperP99.V < got.P99.V {
		t.Errorf("p99 %v, at most %v; drawn %v", got.P99.V, got.UpperP99.V, want)
	}
	for _, budget := range []float64{.01, .21, .27, .5, .9 * want, 1.1 * want, 2, 5} {
		if ok := v.withinBudget(v.today, shop, budget); ok != (got.P99.V <= budget) {
			t.Errorf("within %v: %v; p99 is %v", budget, ok, got.P99.V)
		}
	}
}
