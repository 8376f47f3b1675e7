package compare

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func differ(fields ...string) (out []Difference) {
	for _, f := range fields {
		out = append(out, Difference{f, OtherValue, "text", "text"})
	}
	return out
}

// What the primary does not agree upon with itself does not count; what else differs does, also in a field that is noise at times.
func TestNoiseIsRemoved(t *testing.T) {
	t.Parallel()
	var r Report
	rng := rand.New(rand.NewPCG(3, 4))
	different := 0
	for i := range 2000 {
		found := differ("/at") // always noise
		if rng.Float64() < 0.3 {
			found = append(found, differ("/stock")...) // noise at times, as often
		}
		if i%2 == 0 {
			found = append(found, differ("/cache")...) // hardly ever noise, and often other
		}
		if i%100 == 0 {
			found = append(found, differ("/price")...) // never noise
		}
		if i%5 == 0 {
			repeat := differ("/at")
			if rng.Float64() < 0.3 {
				repeat = append(repeat, differ("/stock")...)
			}
			if i%500 == 0 {
				repeat = append(repeat, differ("/cache")...)
			}
			r.Repeat(repeat)
		}
		if r.Add(found) == Different {
			different++
		}
	}
	want := []struct {
		field string
		noise bool
	}{{"/cache", false}, {"/price", false}, {"/at", true}, {"/stock", true}}
	got := r.Fields()
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, w := range want {
		if got[i].Field != w.field || got[i].Noise != w.noise {
			t.Errorf("%d: %+v, want %+v", i, got[i], w)
		}
	}
	if different < 950 || different > 1100 {
		t.Errorf("%d answers were different", different)
	}
	if r.Totals() != (Totals{Compared: 2000, Repeated: 400}) {
		t.Errorf("%+v", r.Totals())
	}
}

func TestResults(t *testing.T) {
	t.Parallel()
	var r Report
	if got := r.Add(nil); got != Same {
		t.Error(got)
	}
	if got := r.Add(differ("/at")); got != Different { // nothing is known of noise yet
		t.Error(got)
	}
	r.Repeat(differ("/at"))
	if got := r.Add(differ("/at")); got != Noise {
		t.Error(got)
	}
	if got := r.Add(differ("/at", "status")); got != Different {
		t.Error(got)
	}
}

// However many fields differ, so many are kept; fields that are noise do not crowd others out.
func TestReportIsBounded(t *testing.T) {
	t.Parallel()
	var r Report
	for i := range 3 * MaxFields {
		r.Repeat(differ(fmt.Sprint("/noise", i)))
	}
	for i := range 3 * MaxFields {
		if got := r.Add(differ(fmt.Sprint("/field", i))); got != Different {
			t.Fatal(got)
		}
	}
	if len(r.fields) != MaxFields || len(r.noise) != MaxFields {
		t.Errorf("%d fields, %d of noise", len(r.fields), len(r.noise))
	}
	if got := r.Totals(); got.Beyond != 2*MaxFields {
		t.Errorf("%+v", got)
	}
	for range 10 {
		r.Add(differ("/field0"))
	}
	if got := r.Fields()[0]; got.Field != "/field0" || got.Answers != 11 || len(got.Samples) != maxSamples {
		t.Errorf("%+v", got)
	}
}
