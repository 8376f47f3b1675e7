package discover

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/balance"
)

// listOf is a list as agents send it: of "a b !c", a and b are there, and c has left; with a "…" it is not complete.
func listOf(version, text string) api.InstanceList {
	l := api.InstanceList{Service: "shop", Version: version, Complete: true}
	for word := range strings.FieldsSeq(text) {
		switch {
		case word == "…":
			l.Complete = false
		case word[0] == '!':
			l.Left = append(l.Left, word[1:]+":1")
		default:
			l.Instances = append(l.Instances, api.Registered{Instance: api.Instance{Address: word + ":1"}})
		}
	}
	return l
}

func names(in []balance.Instance) string {
	var out []string
	for _, i := range in {
		out = append(out, strings.TrimSuffix(i.Address, ":1"))
	}
	return strings.Join(out, " ")
}

func TestMerge(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, known, list, want string }{
		{"the first list", "", "b a", "a b"},
		{"a complete one is all there is", "a b c", "b d", "b d"},
		{"everybody has left", "a b", "", ""},
		{"an agent that begins", "a b c", "…", "a b c"},
		{"it hears of some", "a b c", "… b d", "a b c d"},
		{"one has left whom it did not know", "a b c", "… b !a", "b c"},
		{"one that left has come back", "a b", "… a", "a b"},
	} {
		if got := names(merge(merge(nil, listOf("1", c.known)), listOf("2", c.list))); got != c.want {
			t.Errorf("%s: %s; want %s", c.name, got, c.want)
		}
	}
	var many []string
	for n := range api.MaxInstances {
		many = append(many, fmt.Sprint("h", n))
	}
	known := merge(nil, listOf("1", strings.Join(many, " ")))
	if got := merge(known, listOf("2", "… new newer")); len(got) != api.MaxInstances || !strings.Contains(names(got), "new newer") {
		t.Errorf("%d instances are remembered; want those that are known now, and no more than there may be", len(got))
	}
}

// agentLists is an agent whose lists a test sets.
type agentLists struct {
	mu      sync.Mutex
	list    api.InstanceList
	err     error
	changed chan struct{}
	asked   int
}

func (a *agentLists) set(list api.InstanceList, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list, a.err = list, err
	close(a.changed)
	a.changed = make(chan struct{})
}

func (a *agentLists) ask(ctx context.Context, service, after string, wait time.Duration) (api.InstanceList, error) {
	over := time.NewTimer(wait)
	defer over.Stop()
	for waiting := true; ; {
		a.mu.Lock()
		list, err, changed := a.list, a.err, a.changed
		a.asked++
		a.mu.Unlock()
		if err != nil || list.Version != after || !waiting {
			return list, err
		}
		select {
		case <-changed:
		case <-over.C:
			waiting = false
		case <-ctx.Done():
			return api.InstanceList{}, ctx.Err()
		}
	}
}

// What was known last stays while the agent is away, is new, or says what no agent says; a gateway that starts meanwhile takes what
// the one before has kept.
func TestRegistered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := &agentLists{changed: make(chan struct{}), err: errors.New("away")}
		file := filepath.Join(t.TempDir(), "instances.json")
		start := func() (now func() string, calls func() int, stop func()) {
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			var mu sync.Mutex
			last, n := "nobody was found", 0
			go func() {
				ended <- Registered{Service: "shop", Ask: a.ask, KeepIn: file, Log: slog.New(slog.DiscardHandler)}.Find(ctx, func(in []balance.Instance) {
					mu.Lock()
					defer mu.Unlock()
					last, n = names(in), n+1
				})
			}()
			now = func() string {
				time.Sleep(10 * time.Second) // of the bubble: any pause is over
				synctest.Wait()
				mu.Lock()
				defer mu.Unlock()
				return last
			}
			calls = func() int { mu.Lock(); defer mu.Unlock(); return n }
			return now, calls, func() {
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Errorf("ended with %v", err)
				}
			}
		}
		now, calls, stop := start()
		is := func(want string) {
			t.Helper()
			if got := now(); got != want {
				t.Errorf("%s; want %s", got, want)
			}
		}
		is("nobody was found")
		a.set(listOf("a.1", "a b c"), nil)
		is("a b c")
		a.set(api.InstanceList{}, errors.New("away"))
		is("a b c")
		a.set(listOf("b.0", "…"), nil) // another agent, or another run
		is("a b c")
		a.set(listOf("b.1", "… d !a"), nil)
		is("b c d")
		bad := listOf("b.2", "b")
		bad.Instances[0].Weight = -1
		a.set(bad, nil)
		is("b c d")
		a.set(listOf("b.3", "d"), nil)
		is("d")
		n := calls()
		time.Sleep(time.Minute)
		if calls() != n {
			t.Error("the same list was found again")
		}
		a.mu.Lock()
		asked := a.asked
		a.mu.Unlock()
		time.Sleep(time.Hour)
		a.mu.Lock()
		if asked = a.asked - asked; asked > 2*180+2 { // twice for each question: before the wait and behind it
			t.Errorf("asked %d times in an idle hour", asked)
		}
		a.mu.Unlock()
		stop()

		a.set(api.InstanceList{}, errors.New("away"))
		now, _, stop = start()
		is("d")
		a.set(listOf("c.5", ""), nil)
		is("")
		stop()
		if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		a.set(listOf("d.0", "e"), nil)
		now, _, stop = start()
		is("e")
		stop()
	})
}

// Whatever a list holds, it is refused as a whole, or what is made of it can be reached, is bounded, and has every address once.
func FuzzList(f *testing.F) {
	f.Add([]byte(`{"service":"shop","version":"one.7","complete":true,"instances":[{"address":"10.0.0.5:9000","zone":"z1","weight":2,"remaining_ms":9000}],"left":["h:1"]}`))
	f.Add([]byte(`{"version":"x","instances":[{"address":"h:1"},{"address":"h:1","weight":7}],"left":[""]}`))
	f.Add([]byte(`{"version":"x","instances":null,"left":["a:1"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := decodeList(data)
		if err != nil {
			return
		}
		known := []balance.Instance{{Address: "a:1"}, {Address: "b:1"}}
		next := merge(known, list)
		if len(next) > api.MaxInstances {
			t.Errorf("%d instances", len(next))
		}
		for n, i := range next {
			if err := api.Instance(i).Check(); err != nil || n > 0 && next[n-1].Address >= i.Address {
				t.Errorf("%+v: %v", next, err)
			}
		}
		if again := merge(next, list); len(again) != len(next) {
			t.Errorf("the same list again makes %+v of %+v", again, next)
		}
	})
}
