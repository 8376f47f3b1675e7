package control

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

func firstOwnership() topo.Ownership {
	return topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{"users": {Buckets: 64, Hash: topo.HashMD5,
		Ranges: []topo.Range{{First: 0, Last: 63, Owner: "a", Epoch: 1, State: topo.Open}}}})
}

func moving(t *testing.T, o topo.Ownership, id topo.HandoverID) topo.Ownership {
	t.Helper()
	next, err := o.StartMove("users", topo.Spans{{First: 0, Last: 3}}, id, "b")
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func TestHubStreamsEachNewerDocumentOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h, o := NewHub(), firstOwnership()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var mu sync.Mutex
		var lines []api.ViewUpdate
		seen := func() []api.ViewUpdate {
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			return slices.Clone(lines)
		}
		go func() {
			err := h.Stream(ctx, "g1", true, func(u api.ViewUpdate) error {
				mu.Lock()
				defer mu.Unlock()
				lines = append(lines, u)
				return nil
			})
			if !errors.Is(err, context.Canceled) {
				t.Errorf("stream ended with %v", err)
			}
		}()
		documents := func() (versions []uint64) {
			for _, u := range seen() {
				if len(u.Ownership) > 0 {
					got, err := topo.DecodeOwnership(u.Ownership)
					if err != nil {
						t.Fatal(err)
					}
					versions = append(versions, got.Version)
				}
			}
			return versions
		}
		if v := documents(); v != nil {
			t.Fatalf("documents %v before any was published", v)
		}
		next := moving(t, o, "h1")
		h.Publish(o)
		synctest.Wait()
		h.Publish(next)
		synctest.Wait()
		h.Publish(o) // older: never goes out (I8)
		h.SetOpened(2)
		if v := documents(); !slices.Equal(v, []uint64{1, 2}) {
			t.Errorf("documents %v; want 1, 2", v)
		}
		all := seen()
		if last := all[len(all)-1]; last.OpenedVersion != 2 {
			t.Errorf("last line says opened %d; want 2", last.OpenedVersion)
		}
		time.Sleep(10 * time.Second) // of the bubble: keepalive only
		if n := len(seen()) - len(all); n < 9 || n > 11 {
			t.Errorf("%d lines in 10 idle seconds; want one a second", n)
		}
	})
}

// settle asks in the background and returns a function that gives the answer, nil while there is none.
func settle(t *testing.T, h *Hub, r api.SettleRequest) func() *api.SettleAnswer {
	var answer atomic.Pointer[api.SettleAnswer]
	go func() {
		a, err := h.Settled(t.Context(), r)
		if err != nil {
			t.Error(err)
		}
		answer.Store(&a)
	}()
	return func() *api.SettleAnswer { synctest.Wait(); return answer.Load() }
}

func TestSettledWaitsForGateways(t *testing.T) {
	t.Parallel()
	request := api.SettleRequest{Handover: "h1", Generation: 1, Version: 2, BoundMS: 1000}
	acts := func(h *Hub, g string, version uint64, inFlight int) {
		h.Ack(api.ViewAck{Gateway: g, Generation: 1, Version: version, InFlight: map[topo.HandoverID]int{"h1": inFlight}})
	}
	for _, c := range []struct {
		name string
		play func(t *testing.T, h *Hub, answer func() *api.SettleAnswer)
	}{
		{"all have it and nothing in flight", func(t *testing.T, h *Hub, answer func() *api.SettleAnswer) {
			acts(h, "g1", 2, 0)
			if answer() != nil {
				t.Error("answered before g2 had it")
			}
			acts(h, "g2", 2, 3)
			if answer() != nil {
				t.Error("answered while g2 had 3 in flight")
			}
			acts(h, "g2", 2, 0)
			if a := answer(); a == nil || a.Gateways != 2 || len(a.Unsettled) != 0 {
				t.Errorf("answer %+v; want 2 gateways", a)
			}
		}},
		{"a later view is as good", func(t *testing.T, h *Hub, answer func() *api.SettleAnswer) {
			acts(h, "g1", 7, 0)
			acts(h, "g2", 2, 0)
			if answer() == nil {
				t.Error("no answer")
			}
		}},
		{"the bound passes", func(t *testing.T, h *Hub, answer func() *api.SettleAnswer) {
			acts(h, "g1", 2, 0)
			acts(h, "g2", 2, 1)
			time.Sleep(990 * time.Millisecond)
			if answer() != nil {
				t.Error("answered before the bound")
			}
			time.Sleep(20 * time.Millisecond)
			if a := answer(); a == nil || !slices.Equal(a.Unsettled, []string{"g2"}) {
				t.Errorf("answer %+v; want g2 unsettled", a)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				h := NewHub()
				acts(h, "g1", 1, 0)
				acts(h, "g2", 1, 0)
				c.play(t, h, settle(t, h, request))
			})
		})
	}
}

func TestSettledLeavesOutWhoIsGone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub()
		stream, end := context.WithCancel(t.Context())
		go func() { _ = h.Stream(stream, "g1", true, func(api.ViewUpdate) error { return nil }) }()
		synctest.Wait()
		time.Sleep(time.Minute) // connected and silent: it may act on what it has
		answer := settle(t, h, api.SettleRequest{Handover: "h1", Generation: 1, Version: 2, BoundMS: 60_000})
		time.Sleep(2 * goneAfter)
		if answer() != nil {
			t.Error("answered while g1 was connected")
		}
		end()
		time.Sleep(goneAfter / 2)
		if answer() != nil {
			t.Error("answered when g1 had just disconnected")
		}
		time.Sleep(goneAfter)
		if a := answer(); a == nil || !slices.Equal(a.Gone, []string{"g1"}) {
			t.Errorf("answer %+v; want g1 named as gone", a)
		}
		// A new process of that name has acknowledged nothing, whatever the old one did.
		h.Ack(api.ViewAck{Gateway: "g1", Generation: 1, Version: 9})
		stream, end = context.WithCancel(t.Context())
		defer end()
		go func() { _ = h.Stream(stream, "g1", true, func(api.ViewUpdate) error { return nil }) }()
		synctest.Wait()
		if a := settle(t, h, api.SettleRequest{Generation: 1, Version: 2, BoundMS: 1000})(); a != nil {
			t.Errorf("answer %+v for a gateway that has said nothing since it connected", a)
		}
		time.Sleep(2 * time.Second)
	})
}

// A successor's passing name counts while it is there, and is forgotten when it is not.
func TestPassingNames(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := NewHub()
		for _, name := range []string{"a/g1", "a/g1~2"} {
			h.Ack(api.ViewAck{Gateway: name, Generation: 1, Version: 2, InFlight: map[topo.HandoverID]int{"h1": len(name) - 4}})
		}
		request := api.SettleRequest{Handover: "h1", Generation: 1, Version: 2, BoundMS: 10}
		answer := settle(t, h, request)
		time.Sleep(20 * time.Millisecond)
		if a := answer(); a == nil || !slices.Equal(a.Unsettled, []string{"a/g1~2"}) {
			t.Errorf("answer %+v; want the successor's writes waited for", a)
		}
		time.Sleep(2 * goneAfter)
		answer = settle(t, h, request)
		if a := answer(); a == nil || !slices.Equal(a.Gone, []string{"a/g1"}) {
			t.Errorf("answer %+v; want g1 alone named as gone", a)
		}
		if list := h.Gateways(); len(list) != 1 || list[0].Gateway != "a/g1" {
			t.Errorf("gateways %+v", list)
		}
	})
}
