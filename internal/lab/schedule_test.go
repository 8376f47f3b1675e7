package lab

import (
	"fmt"
	"hash/crc32"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

var layouts = []layout{
	{sites: []topo.SiteID{"a", "b"}, witness: "w", gateways: 2},
	{sites: []topo.SiteID{"a", "b", "c"}, witness: "w", gateways: 1},
	{sites: []topo.SiteID{"a", "b", "c"}, gateways: 1},
	{sites: []topo.SiteID{"a", "b"}, witness: "w", gateways: 2, packets: true},
}

func TestDraw_IsAFunctionOfTheSeed(t *testing.T) {
	t.Parallel()
	for _, l := range layouts {
		seen := map[string]bool{}
		for n := range uint64(50) {
			seed := Seed{n, 1 + int(n%7)}
			s := draw(seed, l)
			if again := draw(seed, l); !reflect.DeepEqual(s, again) {
				t.Fatalf("seed %s gives two schedules:\n%s\n%s", seed, strings.Join(s.lines(), "\n"), strings.Join(again.lines(), "\n"))
			}
			seen[strings.Join(s.lines(), "\n")] = true
		}
		if len(seen) != 50 {
			t.Errorf("50 seeds give %d schedules", len(seen))
		}
	}
	// What a seed means must not change unnoticed: the track record names seeds.
	s := draw(Seed{1, 1}, layouts[0])
	if got, want := s.Steps[0].String(), goldenStep; got != want {
		t.Errorf("the first step of seed 1/1 is %q, was %q: the seeds in docs/lab.md mean something else now", got, want)
	}
}

// Late links came to the schedules last. All else that a seed means is what it was: the sum is from before them.
func TestDraw_LateLinksChangeNothingElse(t *testing.T) {
	t.Parallel()
	sum := crc32.NewIEEE()
	late := 0
	for _, l := range layouts {
		for n := range uint64(500) {
			s := draw(Seed{n, 1 + int(n%5)}, l)
			for i := range s.Steps {
				if p := &s.Steps[i]; p.Do != actLagLink {
					fmt.Fprintln(sum, p)
				} else if late++; p.Extra < 1500*time.Millisecond || p.Extra > 4*time.Second || p.Site == p.Other || !slices.Contains(l.sites, p.Site) || !slices.Contains(l.sites, p.Other) {
					t.Errorf("%s: %s", s.Seed, p)
				}
			}
		}
	}
	if sum.Sum32() != goldenSum {
		t.Errorf("the other steps of 2000 schedules sum up to %#x, before there were late links to %#x", sum.Sum32(), goldenSum)
	}
	if late < 200 {
		t.Errorf("%d late links in 2000 schedules", late)
	}
}

const (
	goldenSum  = 0xc89c8627
	goldenStep = "  3.2 s  SIGSTOP of b/agent for 8.9 s"
)

// Every schedule keeps its promises, checked instant by instant: single failure domains, targets of their own, healed in
// time.
func TestDraw_Promises(t *testing.T) {
	t.Parallel()
	acts, doubles, losses, together := map[act]int{}, 0, 0, 0
	for _, l := range layouts {
		for n := range uint64(700) {
			s := draw(Seed{n, 3}, l)
			if s.Double {
				doubles++
			}
			for i := range s.Steps {
				p := &s.Steps[i]
				acts[p.Do]++
				if p.At < 0 || p.At+p.Lasts > playTime || i > 0 && p.At < s.Steps[i-1].At {
					t.Errorf("%s: %s", s.Seed, p)
				}
				if p.Alone {
					losses++
					checkAlone(t, &s, p)
				}
				var active []*planned // when this step begins
				for j := range s.Steps {
					if o := &s.Steps[j]; o.isFault() && o.At <= p.At && p.At < o.At+max(o.Lasts, 1) {
						active = append(active, o)
					}
				}
				together = max(together, len(active))
				checkTogether(t, &s, active, l)
			}
		}
	}
	for _, f := range slices.Concat(faultWeights, namespaceWeights) {
		if acts[f.do] < 20 {
			t.Errorf("%s was drawn %d times", f.do, acts[f.do])
		}
	}
	for _, a := range []act{actSwitch, actCatalog, actLongTransaction, actPrepared, actLagLink} {
		if acts[a] < 100 {
			t.Errorf("%s was drawn %d times", a, acts[a])
		}
	}
	if doubles < 100 || losses < 300 || together != maxOverlap {
		t.Errorf("%d doubles, %d losses, at most %d faults together", doubles, losses, together)
	}
}

// checkAlone: a loss of which a takeover is expected lasts for long enough, and no other fault is near it.
func checkAlone(t *testing.T, s *schedule, p *planned) {
	t.Helper()
	if p.Lasts < expectTakeover || s.Double {
		t.Errorf("%s: %s", s.Seed, p)
	}
	for i := range s.Steps {
		if o := &s.Steps[i]; o != p && o.isFault() && o.At < p.At+p.Lasts && o.At+o.Lasts > p.At-quietBefore {
			t.Errorf("%s: %s beside %s", s.Seed, o, p)
		}
	}
}

// checkTogether is admits by brute force.
func checkTogether(t *testing.T, s *schedule, active []*planned, l layout) {
	t.Helper()
	if len(active) < 2 {
		return
	}
	one, two := false, false
	for _, x := range l.everywhere() {
		for _, y := range l.everywhere() {
			all := true
			for _, p := range active {
				all = all && p.Do != actStopLeader && (slices.Contains(p.domains(), x) || slices.Contains(p.domains(), y))
			}
			one, two = one || all && x == y, two || all
		}
	}
	if !one && (!s.Double || !two) {
		t.Errorf("%s: too many failure domains at once: %v", s.Seed, active)
	}
	for i, p := range active {
		for _, o := range active[:i] {
			if p.sameTarget(o) {
				t.Errorf("%s: %s and %s", s.Seed, p, o)
			}
		}
	}
}

func TestParseSeeds(t *testing.T) {
	t.Parallel()
	got, err := ParseSeeds("7, 8/3,18446744073709551615")
	if err != nil || !slices.Equal(got, []Seed{{7, 0}, {8, 3}, {1<<64 - 1, 0}}) || got[0].String() != "7" || got[1].String() != "8/3" {
		t.Errorf("%v %v", got, err)
	}
	for _, bad := range []string{"", "x", "7/", "7/0", "7/x", "-1", "7,,8", "7/99999999999"} {
		if got, err := ParseSeeds(bad); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}
