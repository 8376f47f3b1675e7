package assess

import (
	"math"
	"strings"
	"testing"
)

// A component of which the file says how much it is down: that is the input which is named and varied, and another time
// to repair changes how often it fails, not for how long in all.
func TestDownIsAnInputOfItsOwn(t *testing.T) {
	t.Parallel()
	e := estate(t, pair(rich, "x: {kind: power, every: 120d, lasts: 12h}", "x: {kind: power, down: ~2%, lasts: ~12h}"))
	v := newEvaluator(e)
	knobs := v.knobs()
	k, known := knobs["components.x.down"]
	if _, other := knobs["components.x.every"]; !known || other {
		t.Fatalf("down %v, every %v can be varied", known, other)
	}
	k.set(scaled(k.get(), 2))
	if x := e.event("x"); math.Abs(x.Probability-.04) > 1e-12 {
		t.Errorf("at twice its value it is down %v of the time", x.Probability)
	}
	k = knobs["components.x.lasts"]
	often := e.event("x").Frequency
	k.set(scaled(k.get(), 2))
	if x := e.event("x"); math.Abs(x.Probability-.04) > 1e-12 || math.Abs(x.Frequency/often-.5) > 1e-12 {
		t.Errorf("with repairs twice as long: down %v, %v times as often", x.Probability, x.Frequency/often)
	}
	r := assessed(t, pair(rich, "x: {kind: power, every: 120d, lasts: 12h}", "x: {kind: power, down: ~2%, lasts: ~12h}"))
	for _, in := range r.Book["shop.structural"].Inputs {
		if in.Path == "components.x.down" && in.Text == "~2%" && in.Line > 0 {
			return
		}
	}
	t.Errorf("down is not named: %+v", r.Book["shop.structural"].Inputs)
}

// A line that is too thin for the changes leaves behind what it did not carry, an hour of writes at most.
func TestBacklogOfAThinLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		bandwidth string
		want      float64
	}{{"200KB/s", 0}, {"100KB/s", 0}, {"50KB/s", hour / 2}, {"1KB/s", hour * .99}} {
		e := estate(t, strings.Replace(pair(rich), "rtt: 30ms", "rtt: 30ms, bandwidth: "+c.bandwidth, 1))
		v := newEvaluator(e)
		if got := v.backlog(v.spotFor(Placement{Pattern: OneWriter, Sites: []string{"a", "b"}}), e.Services["shop"]); math.Abs(got-c.want) > 1e-9 {
			t.Errorf("changes of 100 KB/s over %s: %v s behind; want %v", c.bandwidth, got, c.want)
		}
	}
}
