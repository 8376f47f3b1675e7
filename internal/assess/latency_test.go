package assess

import (
	"math"
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
