package split

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// Gateways of different builds have to agree: these never change.
func TestPointVectors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		route, key string
		want       float64
	}{
		{"basket", "", 0.1498862353846493},
		{"basket", "kanna", 0.744683588310213},
		{"basket", "kbert", 0.5257245192572582},
		{"orders", "kanna", 0.37310134791513294},
	} {
		if got := Point(c.route, c.key); got != c.want {
			t.Errorf("Point(%q, %q) = %v, want %v", c.route, c.key, got, c.want)
		}
	}
	if Point("ab", "c") == Point("a", "bc") {
		t.Error("route and key run into each other")
	}
}

// Whoever is in a share is in every larger one, and nobody but chance decides who is.
func TestShareIsMonotone(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		route, key := rapid.String().Draw(t, "route"), rapid.String().Draw(t, "key")
		less, more := rapid.Float64Range(0, 1).Draw(t, "less"), rapid.Float64Range(0, 1).Draw(t, "more")
		if less > more {
			less, more = more, less
		}
		if Within(less, route, key) && !Within(more, route, key) {
			t.Fatal("a larger share lost a key")
		}
		if Within(0, route, key) || !Within(1, route, key) {
			t.Fatal("nothing is not nothing, or all is not all")
		}
	})
}

func TestShareIsEven(t *testing.T) {
	t.Parallel()
	const keys = 20000
	for _, share := range []float64{0.01, 0.1, 0.5, 0.99} {
		n, both := 0, 0
		for i := range keys {
			key := fmt.Sprint("customer-", i)
			if Within(share, "basket", key) {
				n++
				if Within(share, "orders", key) {
					both++
				}
			}
		}
		sd := math.Sqrt(keys * share * (1 - share))
		if math.Abs(float64(n)-keys*share) > 4*sd {
			t.Errorf("share %v took %d of %d keys", share, n, keys)
		}
		p := share * share
		if sd := math.Sqrt(keys * p * (1 - p)); math.Abs(float64(both)-keys*p) > 4*sd {
			t.Errorf("share %v took %d keys of two routes: not independent", share, both)
		}
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		old, new Count
		want     bool
	}{
		"nothing yet":                   {Count{}, Count{}, false},
		"too few to say":                {Count{100, 0}, Count{4, 4}, false},
		"dead from the start":           {Count{100, 0}, Count{5, 5}, true},
		"dead, and nothing to compare":  {Count{}, Count{5, 5}, true},
		"dead, and little to compare":   {Count{5, 0}, Count{5, 5}, false},
		"dead for a little longer":      {Count{10, 0}, Count{10, 10}, true},
		"both are dead":                 {Count{50, 50}, Count{50, 50}, false},
		"both fail alike":               {Count{1000, 100}, Count{1000, 100}, false},
		"the new one is better":         {Count{1000, 100}, Count{1000, 50}, false},
		"worse within the budget":       {Count{1000, 10}, Count{1000, 29}, false},
		"beyond it, as chance may have": {Count{10000, 0}, Count{100, 5}, false},
		"beyond it":                     {Count{10000, 0}, Count{100, 10}, true},
		"a little beyond it for long":   {Count{100000, 0}, Count{10000, 300}, true},
		"hardly anything to compare":    {Count{2, 1}, Count{20, 12}, false},
	} {
		if got := (Budget{}).withDefaults().exceeded(Tally{c.old, c.new}); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// A service that fails as often as the old one is let alone, for hours; one that fails more often than allowed is not.
func TestBudgetOverTime(t *testing.T) {
	t.Parallel()
	stops := func(old, new float64) (after int) {
		rng := rand.New(rand.NewPCG(1, 2))
		now := time.Unix(0, 0)
		w := NewWatch(Budget{}, now)
		for i := range 200_000 { // 20 a second
			now = now.Add(50 * time.Millisecond)
			w.Add(Old, rng.Float64() < old, now)
			if w.Add(New, rng.Float64() < new, now) {
				return i
			}
		}
		return -1
	}
	for _, c := range []struct{ old, new float64 }{{0, 0}, {0, 0.005}, {0.01, 0.015}, {0.1, 0.1}, {0.5, 0.5}, {1, 1}} {
		if n := stops(c.old, c.new); n >= 0 {
			t.Errorf("%v against %v: stopped after %d", c.new, c.old, n)
		}
	}
	for _, c := range []struct {
		old, new float64
		within   int
	}{{0, 1, 12}, {0, 0.2, 150}, {0.05, 0.3, 400}, {0.01, 0.1, 1000}} {
		if n := stops(c.old, c.new); n < 0 || n > c.within {
			t.Errorf("%v against %v: stopped after %d, want within %d", c.new, c.old, n, c.within)
		}
	}
}

// The window against a list of everything.
func TestWindow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const width = time.Second
		start := time.Unix(100, 0)
		w := NewWatch(Budget{Window: slots * width}, start)
		var all []struct {
			turn int64
			way  Way
			bad  bool
		}
		now := start
		for range rapid.IntRange(1, 100).Draw(t, "answers") {
			now = now.Add(time.Duration(rapid.IntRange(0, 5000).Draw(t, "ms")) * time.Millisecond)
			way, bad := Way(rapid.IntRange(0, 1).Draw(t, "way")), rapid.Bool().Draw(t, "bad")
			w.Add(way, bad, now)
			turn := int64(now.Sub(start) / width)
			all = append(all, struct {
				turn int64
				way  Way
				bad  bool
			}{turn, way, bad})
			var want Tally
			for _, one := range all {
				if turn-one.turn >= slots {
					continue
				}
				c := Count{All: 1}
				if one.bad {
					c.Failed = 1
				}
				if one.way == Old {
					want.Old.add(c)
				} else {
					want.New.add(c)
				}
			}
			if got := w.Tally(now); got != want {
				t.Fatalf("%+v, want %+v", got, want)
			}
		}
	})
}
