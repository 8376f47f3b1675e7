package model

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

// The state is hashed as it lies in memory, so nothing may lie between its fields.
func TestNoPadding(t *testing.T) {
	t.Parallel()
	var walk func(path string, ty reflect.Type)
	walk = func(path string, ty reflect.Type) {
		switch ty.Kind() {
		case reflect.Array:
			walk(path+"[]", ty.Elem())
		case reflect.Struct:
			at := uintptr(0)
			for i := range ty.NumField() {
				f := ty.Field(i)
				if f.Offset != at {
					t.Errorf("padding before %s.%s", path, f.Name)
				}
				walk(path+"."+f.Name, f.Type)
				at = f.Offset + f.Type.Size()
			}
			if at != ty.Size() {
				t.Errorf("padding at the end of %s: %d of %d bytes", path, at, ty.Size())
			}
		}
	}
	walk("world", reflect.TypeFor[world]())
}

func (r Result) story() string {
	var b strings.Builder
	for i, st := range r.Way {
		fmt.Fprintf(&b, "%3d  %s  %s\n", i+1, seconds(st.At), st.Text)
	}
	fmt.Fprintf(&b, "broken: %s", r.Bad)
	return b.String()
}

// TestWorldsHold goes a few steps into each world; make explore goes through all of them.
func TestWorldsHold(t *testing.T) {
	t.Parallel()
	for _, c := range Worlds() {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			r := New(c).Search(Limits{States: 4_000})
			if r.Bad != "" {
				t.Errorf("%s\n%s", c, r.story())
			}
			t.Logf("%s: %s", c, r)
		})
	}
}

// TestAFailoverWithoutOtherFaults goes through a whole small world in every run of the tests: a lost agent, nothing else.
func TestAFailoverWithoutOtherFaults(t *testing.T) {
	t.Parallel()
	c := Failover()
	c.Faults, c.May, c.Horizon = 1, CrashAgents, 6000
	r := New(c).Search(Limits{})
	if r.Bad != "" {
		t.Errorf("%s\n%s", c, r.story())
	}
	if !r.Whole || r.States < 10_000 {
		t.Errorf("%s: %s; want the whole of a world that is not small", c, r)
	}
}

// TestPlantsAreSeen plants each bug: the search must find a way to a state that breaks what it is there to protect.
func TestPlantsAreSeen(t *testing.T) {
	t.Parallel()
	breaks := map[Plant]string{TakeoverUnconditional: "I4", LeaseRelative: "I4", WaitOutRemoved: "I3", OpenBeforeApplierIdle: "I5", MarkerSkipped: "I4 I3",
		FenceRemoved: "K1", EpochKept: "I1", AttemptIgnored: "I3", OpenUnconditional: "I6 I4 I3", BitsUnchecked: "I6", DeadlineFromAnswer: "I4", GapIgnored: "I4",
		RateIgnored: "I4", RestrictSkipped: "I4", CutIgnored: "I5", EpochIgnored: "I5"}
	for _, p := range Plants() {
		t.Run(string(p), func(t *testing.T) {
			t.Parallel()
			if p == BitsUnchecked && os.Getenv("ATOLL_EXPLORE") == "" {
				t.Skip("150 000 states: make explore looks for it")
			}
			r := New(Planted(p)).Search(Limits{States: 300_000})
			invariant, _, _ := strings.Cut(r.Bad, ":")
			if r.Bad == "" || !strings.Contains(breaks[p], invariant) {
				t.Fatalf("%s: %q, want a breach of %s", r, r.Bad, breaks[p])
			}
			t.Logf("%s: %d steps, %s", r.Bad, len(r.Way), r)
		})
	}
}

// TestAPausedClock finds what the claim on failovers excludes: a database's clock that stands still with nobody watching.
func TestAPausedClock(t *testing.T) {
	t.Parallel()
	for _, c := range []Config{Paused(), PausedAlive()} {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			r := New(c).Search(Limits{States: 1_000_000})
			if !strings.HasPrefix(r.Bad, "K1: a commits a write to bucket 0 at epoch 1; b has opened it at epoch 2") {
				t.Fatalf("%s: %q; want two sites that commit for one bucket", r, r.Bad)
			}
			t.Logf("%s\n%s", r, r.story())
		})
	}
}

// TestExplore goes through every world whole. It takes long: make explore.
func TestExplore(t *testing.T) {
	if os.Getenv("ATOLL_EXPLORE") == "" {
		t.Skip("ATOLL_EXPLORE is not set: make explore goes through the worlds whole")
	}
	for _, c := range Worlds() {
		if only := os.Getenv("ATOLL_WORLD"); only != "" && only != c.Name {
			continue
		}
		last := time.Now()
		m := New(c)
		r := m.Search(Limits{States: 60_000_000, Progress: func(r Result) {
			if time.Since(last) > 10*time.Second {
				last = time.Now()
				fmt.Printf("  … %s\n", r)
			}
		}})
		fmt.Printf("%s\n  %s\n", c, r)
		if r.Bad != "" {
			t.Errorf("%s\n%s", c, r.story())
		}
		if !r.Whole && r.Bad == "" {
			t.Errorf("%s: not the whole world was searched: %s", c, r)
		}
	}
}
