package registry

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/atollhq/atoll/internal/api"
)

func (p phase) String() string { return []string{"deaf", "gathering", "settled", "sparing"}[p] }

func instance(name string) api.Instance { return api.Instance{Address: name + ":9000"} }

// story plays lines such as "5s +a +b" (at that moment a and b renew, by 10 s), "7s -a" (a leaves), "9s" (time goes by), each with
// what is known then: the phase and who is there, a goodbye that gateways are to hear of in brackets.
func story(t *testing.T, lines ...string) {
	t.Helper()
	s, begin := newService(10*time.Second), time.Unix(1000, 0)
	for _, line := range lines {
		what, want, _ := strings.Cut(line, " => ")
		words := strings.Fields(what)
		at, err := time.ParseDuration(words[0])
		if err != nil {
			t.Fatal(err)
		}
		now := begin.Add(at)
		for _, w := range words[1:] {
			if w[0] == '+' {
				s.register(instance(w[1:]), 10*time.Second, now)
			} else {
				s.leave(instance(w[1:]).Address, now)
			}
		}
		s.pass(now)
		got := s.phase.String()
		for _, i := range s.list(now) {
			got += " " + strings.TrimSuffix(i.Address, ":9000")
		}
		for _, address := range s.gone() {
			got += " (" + strings.TrimSuffix(address, ":9000") + ")"
		}
		if got != want {
			t.Errorf("%s: %s; want %s", what, got, want)
		}
	}
}

func TestService(t *testing.T) {
	t.Parallel()
	for name, lines := range map[string][]string{
		"an agent begins": {
			"0s => deaf",
			"1h => deaf", // it has heard nobody, and knows nothing
			"1h1s +a => gathering a",
			"1h8s +b => gathering a b",
			"1h9s +a => gathering a b",
			"1h11s => settled a b",
		},
		"one ends without a word": {
			"0s +a +b +c => gathering a b c",
			"9s +a +b => gathering a b c",
			"10s => settled a b", // c has had its time
		},
		"one leaves": {
			"0s +a +b => gathering a b",
			"9s +a +b => gathering a b",
			"10s => settled a b",
			"11s -a => settled b",
			"12s -b => settled", // all have said so: nobody is there
			"13s -b => settled",
			"50s +c => settled c",
		},
		"one leaves whom a new agent does not know": {
			"0s -a => gathering (a)",
			"1s +b => gathering b (a)",
			"2s +a => gathering a b",
			"3s -a => gathering b (a)",
			"10s +b => settled b", // whoever is there has said so
		},
		"nobody is heard any more": {
			"0s +a +b => gathering a b",
			"9s +a +b => gathering a b",
			"10s => settled a b",
			"30s => deaf a b",
			"3h => deaf a b",
			"3h1s +a => gathering a b",
			"3h9s +a => gathering a b",
			"3h11s +a => settled a", // b has had the time to come back
		},
		"one after the other comes back": {
			"0s +a +b +c +d => gathering a b c d",
			"9s +a +b +c +d => gathering a b c d",
			"10s => settled a b c d",
			"21s +a => gathering a b c d",
			"24s +b => gathering a b c d",
			"29s +c +d => gathering a b c d",
			"30s +a => gathering a b c d",
			"31s => settled a b c d",
		},
		"most fall silent at once": {
			"0s +a +b +c => gathering a b c",
			"9s +a +b +c => gathering a b c",
			"18s +a => settled a b c",
			"19s => sparing a b c",
			"27s +a => sparing a b c",
			"36s +a +b => sparing a b c",
			"45s +a +b +c => settled a b c", // it was the path
		},
		"most are gone, and the last is silent for a while": {
			"0s +a +b +c => gathering a b c",
			"9s +a +b +c => gathering a b c",
			"18s +a => settled a b c",
			"19s => sparing a b c",
			"5m +a => gathering a b c", // nobody was heard; that begins anew
			"5m9s +a => gathering a b c",
			"5m10s => sparing a b c",
			"5m18s +a => sparing a b c",
		},
		"everybody is another one after an update": {
			"0s +a +b => gathering a b",
			"9s +a +b => gathering a b",
			"12s +c +d => settled a b c d",
			"19s => settled c d",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			story(t, lines...)
		})
	}
}

// Those who do not come back are let go, though they are most.
func TestSparingEnds(t *testing.T) {
	t.Parallel()
	s, now := newService(10*time.Second), time.Unix(0, 0)
	for _, name := range []string{"a", "b", "c"} {
		s.register(instance(name), 10*time.Second, now)
	}
	spared := false
	for until := now.Add(10*time.Second + spareFor + 10*time.Second); now.Before(until); now = now.Add(3 * time.Second) {
		s.register(instance("a"), 10*time.Second, now)
		spared = spared || s.phase == sparing
	}
	if got := s.list(now); !spared || s.phase != settled || len(got) != 1 || got[0].Address != "a:9000" {
		t.Errorf("spared %v, %s: %+v", spared, s.phase, got)
	}
}

// Memory is bounded: an instance that is silent makes room, and none that is heard.
func TestFull(t *testing.T) {
	t.Parallel()
	s, now := newService(10*time.Second), time.Unix(0, 0)
	take := func(name string, ttl time.Duration) bool { return s.register(instance(name), ttl, now) }
	for n := range api.MaxInstances {
		if ttl := time.Duration(max(10-n, 6)) * time.Second; !take(fmt.Sprint("h", api.MaxInstances-n), ttl) {
			t.Fatalf("%d are too many", n)
		}
	}
	now = now.Add(5 * time.Second)
	if take("new", 10*time.Second) {
		t.Error("one too many was taken")
	}
	if !take("h1", 10*time.Second) {
		t.Error("a renewal was not taken")
	}
	now = now.Add(time.Second) // many are silent, since the same moment: one of them makes room
	if !take("new", 10*time.Second) || s.at["new:9000"] == nil || s.at["h1:9000"] == nil || len(s.at) != api.MaxInstances {
		t.Errorf("%d instances: %v", len(s.at), s.at["new:9000"])
	}
	for n := range 2 * api.MaxInstances {
		s.leave(fmt.Sprintf("l%d:1", n), now)
	}
	if len(s.left) > api.MaxInstances {
		t.Errorf("%d goodbyes are remembered", len(s.left))
	}
}

// Whatever happens: who is heard is listed, who has left is not, silence alone never empties the list, and the same version
// names the same instances.
func TestService_Always(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s, now := newService(10*time.Second), time.Unix(0, 0)
		until := map[string]time.Time{} // the dumb twin: who is heard
		said := map[uint64]string{}
		for range rapid.IntRange(1, 60).Draw(t, "events") {
			now = now.Add(time.Duration(rapid.IntRange(0, 6000).Draw(t, "ms")) * time.Millisecond)
			in := instance(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "who"))
			was := len(s.at)
			if s.pass(now); was > 0 && len(s.at) == 0 {
				t.Fatalf("silence took away %d", was)
			}
			leaves := ""
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0:
				s.leave(in.Address, now)
				delete(until, in.Address)
				leaves = in.Address
			case 1:
				s.pass(now)
			default:
				ttl := time.Duration(rapid.IntRange(2, 10).Draw(t, "ttl")) * time.Second
				in.Weight = rapid.IntRange(0, 1).Draw(t, "weight")
				s.register(in, ttl, now)
				until[in.Address] = now.Add(ttl)
			}
			s.pass(now)
			var names []string
			for _, i := range s.list(now) {
				names = append(names, fmt.Sprint(i.Instance))
			}
			for address, at := range until {
				if now.Before(at) && s.at[address] == nil {
					t.Fatalf("%s is heard and not listed: %v", address, names)
				}
			}
			if s.at[leaves] != nil {
				t.Fatalf("%s has left and is listed", leaves)
			}
			all := fmt.Sprint(s.complete(), names, s.gone())
			if was, known := said[s.version]; known && was != all {
				t.Fatalf("version %d was %s, and is %s", s.version, was, all)
			}
			said[s.version] = all
			if s.complete() && len(s.left) > 0 {
				t.Fatalf("a complete list with goodbyes: %v", s.gone())
			}
			if !s.next(now).After(now) {
				t.Fatalf("next is %s, now %s", s.next(now), now)
			}
		}
	})
}
