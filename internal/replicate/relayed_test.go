package replicate

import (
	"context"
	"slices"
	"testing"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/topo"
)

func TestRelayKeepsWhatAnotherSiteLacks(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		others []topo.SiteID
		want   []change.Position
	}{
		{"two full sites", nil, nil},
		{"three full sites", []topo.SiteID{"c"}, []change.Position{40, 50}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			origin, target, relay := newOrigin("a"), newTarget(t, "b"), new(kept)
			target.mu.progress["a"] = change.Progress{Known: true, Position: 20}
			origin.mu.slots["b"] = 20
			applied, err := LoadApplied(t.Context(), "b", target)
			if err != nil {
				t.Fatal(err)
			}
			applied.heard("c", topo.Vector{"a": 30})
			origin.write(oneTx("a", 30, "c has it"), oneTx("a", 40, "c lacks it"), oneTx("a", 45), oneTx("a", 50, "and this"))
			follow(t, target, "a", serve(t, origin).addr, func(f *Follow) {
				f.Applied, f.Relay, f.Others = applied, relay, func() []topo.SiteID { return c.others }
			})
			eventually(t, "everything", func() bool { return target.at("a") == 50 })
			relay.mu.Lock()
			defer relay.mu.Unlock()
			target.mu.Lock()
			defer target.mu.Unlock()
			if !slices.Equal(target.mu.kept, c.want) || len(relay.pos) > 0 {
				t.Errorf("kept %v with what was applied and %v ahead, want %v and nothing", target.mu.kept, relay.pos, c.want)
			}
			if c.want != nil && relay.cut != 30 {
				t.Errorf("trimmed through %d", relay.cut)
			}
		})
	}
}

// What may have to wait for another site is kept before that, and with it all that comes before it and is not applied yet:
// whoever is served it must not miss anything.
func TestRelayKeepsAheadWhatWaits(t *testing.T) {
	t.Parallel()
	closing := oneTx("a", 50, "a closing")
	closing.Markers = []change.Marker{{Kind: change.MarkerClosed, Site: "a", Vector: topo.Vector{"c": 7}}}
	part, rest := oneTx("a", 50, "a part"), oneTx("a", 50, "the rest")
	part.Last, rest.First = false, false
	for _, c := range []struct {
		name string
		txs  []change.Tx
		tail []topo.SiteID
		want []change.Position
	}{
		{"a marker", []change.Tx{closing}, nil, []change.Position{30, 40, 50}},
		{"parts of a large transaction", []change.Tx{part, rest}, nil, []change.Position{30, 40, 50, 50}},
		{"what another site decides", []change.Tx{oneTx("a", 50, "beyond the cut")}, []topo.SiteID{"c"}, []change.Position{30, 40, 50}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			origin, target, relay := newOrigin("a"), newTarget(t, "b"), new(kept)
			target.mu.progress["a"] = change.Progress{Known: true, Position: 20}
			origin.mu.slots["b"] = 20
			wanted := make(chan change.Position, 100)
			gate := make(chan struct{})
			target.mu.gate = gate
			applied, err := LoadApplied(t.Context(), "b", target)
			if err != nil {
				t.Fatal(err)
			}
			origin.write(append([]change.Tx{oneTx("a", 30, "one"), oneTx("a", 40, "two")}, c.txs...)...)
			follow(t, target, "a", serve(t, origin).addr, func(f *Follow) {
				f.Applied, f.Relay, f.Others = applied, relay, func() []topo.SiteID { return []topo.SiteID{"c"} }
				f.Wants = func(of topo.SiteID, at change.Position) {
					if of == "c" {
						wanted <- at
					}
				}
				f.Tail = func(at change.Position) []topo.SiteID {
					if at < 50 {
						return nil
					}
					return c.tail
				}
			})
			eventually(t, "what waits is kept", func() bool {
				relay.mu.Lock()
				defer relay.mu.Unlock()
				return slices.Equal(relay.pos, c.want)
			})
			if at := target.at("a"); at != 20 {
				t.Errorf("applied up to %d", at)
			}
			if len(c.txs[0].Markers) > 0 {
				if at := <-wanted; at != 7 {
					t.Errorf("c is to come to %d, want 7", at)
				}
			}
			applied.heard("c", topo.Vector{"a": 50})
			applied.advance("c", 7, nil)
			close(gate)
			eventually(t, "everything", func() bool { return target.at("a") == 50 })
		})
	}
}

// A site that lacks changes of an origin that is gone takes them from another one that keeps them, and goes back to the
// origin when that is there again. What the relay says of itself is no word of the origin's.
func TestRelayServesWhatTheOriginCannot(t *testing.T) {
	t.Parallel()
	a, kept, b := newOrigin("a"), newOrigin("c"), newTarget(t, "b")
	b.mu.progress["a"] = change.Progress{Known: true, Position: 20}
	a.mu.slots["b"], kept.mu.slots["b"] = 20, 20
	a.write(oneTx("a", 30, "from the origin"), oneTx("a", 40, "and this"))
	origin := serve(t, a)
	relayed := make(chan topo.SiteID, 1000)
	atC, err := LoadApplied(t.Context(), "c", newTarget(t, "c"))
	if err != nil {
		t.Fatal(err)
	}
	relay := serve(t, kept, func(s *Serve) {
		s.Applied = atC
		s.Says = func() link.Statement { return link.Statement{Serving: true, RemainingMS: 1000} }
		s.OpenRelay = func(ctx context.Context, target, of topo.SiteID) (Source, error) {
			relayed <- of
			return kept.open(ctx, target)
		}
	})
	f := follow(t, b, "a", origin.addr, func(f *Follow) {
		f.Relays = []Via{{Site: "c", Addrs: []string{relay.addr}}}
		f.Others = func() []topo.SiteID { return []topo.SiteID{"c"} }
	})
	eventually(t, "what the origin has", func() bool { return b.at("a") == 40 })
	origin.stop()
	kept.write(oneTx("a", 30, "from the relay"), oneTx("a", 40, "from the relay"), oneTx("a", 50, "from the relay"))
	if len(relayed) > 0 {
		t.Error("the relay was asked before it had more")
	}
	f.Applied.heard("c", topo.Vector{"a": 50})
	eventually(t, "what the relay has", func() bool { return b.at("a") == 50 })
	if st := f.State(); st.Via != "c" || st.Says.Serving {
		t.Errorf("state %+v", st)
	}
	if got := b.valuesOf("a"); !slices.Equal(got, []string{"from the origin", "and this", "from the relay"}) {
		t.Errorf("values %q", got)
	}
	if of := <-relayed; of != "a" {
		t.Errorf("the relay was asked for changes of %q", of)
	}
	for _, st := range relay.State() {
		t.Errorf("the relay takes it for a target of its own changes: %+v", st)
	}

	f.stop()
	// The origin seems to be there, and is not heard any more: whoever waits does not wait for it.
	again := serve(t, newOrigin("a"), func(s *Serve) {
		s.Open = func(context.Context, topo.SiteID) (Source, error) { return new(mute), nil }
	})
	kept.write(oneTx("a", 60, "from the relay again"))
	g := follow(t, b2(t, b), "a", again.addr, func(f *Follow) {
		f.Relays = []Via{{Site: "c", Addrs: []string{relay.addr}}}
	})
	eventually(t, "the mute origin", func() bool { return g.State().Phase == Streaming })
	g.Applied.Told("c", "a", 60)
	g.Pull(60)
	eventually(t, "what the relay has", func() bool { return g.State().Position == 60 })
}

// The connection that ends with the beginning on disk has reached the origin: what follows is asked for there, however
// much more another site says that it has.
func TestTheBeginningIsNoMiss(t *testing.T) {
	t.Parallel()
	a, kept, b := newOrigin("a"), newOrigin("c"), newTarget(t, "b")
	atC, err := LoadApplied(t.Context(), "c", newTarget(t, "c"))
	if err != nil {
		t.Fatal(err)
	}
	atB, err := LoadApplied(t.Context(), "b", b)
	if err != nil {
		t.Fatal(err)
	}
	atB.heard("c", topo.Vector{"a": 1 << 40})
	relayed := make(chan topo.SiteID, 1000)
	relay := serve(t, kept, func(s *Serve) {
		s.Applied = atC
		s.OpenRelay = func(ctx context.Context, target, of topo.SiteID) (Source, error) {
			relayed <- of
			return kept.open(ctx, target)
		}
	})
	f := follow(t, b, "a", serve(t, a).addr, func(f *Follow) {
		f.Relays = []Via{{Site: "c", Addrs: []string{relay.addr}}}
		f.Others = func() []topo.SiteID { return []topo.SiteID{"c"} }
		f.Applied = atB
	})
	eventually(t, "the beginning", func() bool { return f.State().Phase == Streaming })
	if st := f.State(); st.Via != "" || len(relayed) > 0 {
		t.Errorf("it went to a relay: %+v", st)
	}
	at := b.at("a")
	a.write(oneTx("a", at+10, "what follows"))
	eventually(t, "what follows", func() bool { return b.at("a") == at+10 })
}

// What another site has to decide is not passed over before it has.
func TestTailWaitsForItsOwner(t *testing.T) {
	t.Parallel()
	a, c := newOrigin("a"), newTarget(t, "c")
	c.mu.progress["a"] = change.Progress{Known: true, Position: 20}
	a.mu.slots["c"] = 20
	a.write(oneTx("a", 30, "before the cut"), oneTx("a", 40), oneTx("a", 50, "beyond"), oneTx("a", 60, "and beyond"))
	f := follow(t, c, "a", serve(t, a).addr, func(f *Follow) {
		f.Tail = func(at change.Position) []topo.SiteID {
			if at > 30 {
				return []topo.SiteID{"b"}
			}
			return nil
		}
	})
	eventually(t, "what is before the cut", func() bool { return c.at("a") == 40 && f.State().WaitsFor == "b" })
	f.Applied.heard("b", topo.Vector{"a": 50})
	eventually(t, "what b has decided", func() bool { return c.at("a") == 50 })
	f.Applied.heard("b", topo.Vector{"a": 60})
	eventually(t, "the rest", func() bool { return c.at("a") == 60 })
}
