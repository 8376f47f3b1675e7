package assess

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

func estate(t *testing.T, text string) *Estate {
	t.Helper()
	e, err := Read("test.yaml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

const twoSites = `
estate: 1
prices: {cloud_core_month: 25, cloud_gb_month: .1, cross_city_gb: .02, same_city_gb: .01, person_month: 9k}
components:
  x: {every: %s, lasts: %s}
  y: {every: %s, lasts: %s}
  feed: {every: %s, lasts: 4h}
sites:
  a: {kind: cloud, city: north, needs: x%s}
  b: {kind: cloud, city: north, needs: y%s}
links: [{between: [a, b], rtt: 1ms}]
services:
  shop:
    now: {pattern: same-city, sites: [a, b], automatic: false}
    servers: {count: 1, need: 1, every: 1000000y, lasts: 1s}
`

// Two sites of 99 % each: four nines, until a feed that both hang on turns them into two and a half; the answer names
// it first.
func TestASharedFeedUndoesTwoSites(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		shared       bool
		structural   float64
		first        string
		singlesCount int
	}{
		{false, 1e-4, "", 0},
		{true, 1 - (1-1e-4)*(1-.003), "feed", 1},
	} {
		needs := ""
		if c.shared {
			needs = " and feed"
		}
		e := estate(t, fmt.Sprintf(twoSites, "99h", "1h", "99h", "1h", "1329.3333333h", needs, needs))
		v := newEvaluator(e)
		a, err := v.availability(v.today, v.service["shop"], "shop", Book{})
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(a.Structural.V-c.structural) > 1e-7 || len(a.Singles) != c.singlesCount {
			t.Errorf("shared %v: unavailable %.6g, single points %v; want %.6g", c.shared, a.Structural.V, a.Singles, c.structural)
		}
		if c.shared && (a.Singles[0].Event != c.first || !slices.Contains(a.Singles[0].Path, "site a")) {
			t.Errorf("the first thing to fix is %+v", a.Singles[0])
		}
	}
}

// Coverage dominates: the downtime of a standby pair is that of failed recoveries.
func TestExpectedInterruption(t *testing.T) {
	t.Parallel()
	i := interruption{outage: 4 * hour}
	for _, c := range []struct{ recovery, coverage, want float64 }{
		{0, 1, 0}, {math.Inf(1), 1, 4 * hour}, {hour, 1, 4 * hour * (1 - math.Exp(-.25))}, {0, .95, .05 * 4 * hour},
	} {
		if got := i.expected(&recoveryTimes{few: []float64{c.recovery}, coverage: c.coverage}); math.Abs(got-c.want) > 1e-6 {
			t.Errorf("recovery %v, coverage %v: %v; want %v", c.recovery, c.coverage, got, c.want)
		}
	}
}

// A service gains nothing alone from a second site when what it calls has one.
func TestACalleeAtOneSiteHoldsItsCallersDown(t *testing.T) {
	t.Parallel()
	e := small(t)
	book := Book{}
	both := Placement{Pattern: Partitioned, Sites: []string{"dc1", "cloud1"}, Quorum: "w"}
	v := newEvaluator(e)
	of := func(p Plan) Availability {
		a, err := v.availability(v.arrange(p), v.service["shop"], "shop", book)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	today, alone, along := of(e.Today()), of(e.Today().With("shop", both)), of(e.Today().With("shop", both).With("stock", both))
	if alone.Structural.V < .5*today.Structural.V {
		t.Errorf("alone: %v of %v; want hardly better", alone.Structural.V, today.Structural.V)
	}
	if along.Structural.V > .8*alone.Structural.V { // the release that strikes both is left
		t.Errorf("with its callee: %v of %v", along.Structural.V, alone.Structural.V)
	}
	for _, id := range []string{"shop.structural", "shop.downtime", "shop.availability", "shop.losses"} {
		if d := book[id]; d.Method == "" || d.What == "" || len(d.Inputs)+len(d.Parts) == 0 {
			t.Errorf("%s has no derivation: %+v", id, d)
		}
	}
}

// What is found without sorting is what sorting would have found, repeated values among it.
func TestWorst(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	for range 500 {
		values := make([]float64, 1+r.IntN(300))
		for i := range values {
			if values[i] = r.Float64(); r.IntN(3) == 0 {
				values[i] = float64(r.IntN(3))
			}
		}
		want := quantiles(slices.Clone(values), Duration).P95
		if got := worst(values); got != want {
			t.Fatalf("seed %d: %v; want %v of %d", seed, got, want, len(values))
		}
	}
}
