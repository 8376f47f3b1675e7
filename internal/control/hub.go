package control

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

const (
	keepalive = time.Second // gateways expect a line every two seconds
	// A gateway that has neither a stream nor said anything for this long is left out of the waits: it acts on no
	// view of this site's agent any more, and what it still lets through, the fence refuses.
	goneAfter = 3 * time.Second
	// Gateways that are gone are reported for this long.
	forgetAfter = 10 * time.Minute
)

// Hub passes the ownership document on to gateways, and knows what this site's gateways act on. It is safe for
// concurrent use.
type Hub struct {
	mu struct {
		sync.Mutex
		ownership topo.Ownership
		doc       json.RawMessage // nil: none yet
		opened    uint64
		gateways  map[string]*gatewayState // of this site, by name
		changed   chan struct{}            // closed and replaced when document or opened change
		heard     chan struct{}            // closed and replaced when a gateway says something
	}
}

type gatewayState struct {
	streams    int
	seen       time.Time // its last word, or the end of its stream
	generation uint64
	version    uint64
	inFlight   map[topo.HandoverID]int
}

// NewHub makes a hub without a document.
func NewHub() *Hub {
	h := &Hub{}
	h.mu.gateways = map[string]*gatewayState{}
	h.mu.changed = make(chan struct{})
	h.mu.heard = make(chan struct{})
	return h
}

// Publish passes a document on if it is newer than the last one (I8).
func (h *Hub) Publish(o topo.Ownership) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.doc != nil && !o.Newer(h.mu.ownership) {
		return
	}
	h.mu.ownership, h.mu.doc = o, o.Encode()
	h.changedLocked()
}

// SetOpened says up to which version this site's fence has opened what the document gives it.
func (h *Hub) SetOpened(version uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.opened != version {
		h.mu.opened = version
		h.changedLocked()
	}
}

// Ownership is the newest document; false: none yet.
func (h *Hub) Ownership() (topo.Ownership, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.ownership, h.mu.doc != nil
}

func (h *Hub) changedLocked() {
	close(h.mu.changed)
	h.mu.changed = make(chan struct{})
}

// Stream sends every newer document and every opened version until ctx ends or send fails. own says that the gateway
// is one of this site's, which waits depend on.
func (h *Hub) Stream(ctx context.Context, gateway string, own bool, send func(api.ViewUpdate) error) error {
	if own {
		h.attach(gateway)
		defer h.detach(gateway)
	}
	beat := time.NewTicker(keepalive)
	defer beat.Stop()
	var sent topo.Ownership
	var sentAny bool
	for {
		h.mu.Lock()
		u := api.ViewUpdate{Format: api.ViewFormat, OpenedVersion: h.mu.opened}
		if h.mu.doc != nil && (!sentAny || h.mu.ownership.Newer(sent)) {
			u.Ownership, sent, sentAny = h.mu.doc, h.mu.ownership, true
		}
		changed := h.mu.changed
		h.mu.Unlock()
		if err := send(u); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-beat.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (h *Hub) gatewayLocked(name string) *gatewayState {
	g := h.mu.gateways[name]
	if g == nil {
		g = &gatewayState{}
		h.mu.gateways[name] = g
	}
	g.seen = time.Now()
	return g
}

// attach begins a stream. What the gateway acts on is unknown until it says so: it may be a new process of that name.
func (h *Hub) attach(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.gatewayLocked(name)
	if g.streams == 0 {
		g.generation, g.version, g.inFlight = 0, 0, nil
	}
	g.streams++
}

func (h *Hub) detach(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gatewayLocked(name).streams--
}

// Ack notes what a gateway of this site acts on.
func (h *Hub) Ack(a api.ViewAck) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.gatewayLocked(a.Gateway)
	g.generation, g.version, g.inFlight = a.Generation, a.Version, a.InFlight
	close(h.mu.heard)
	h.mu.heard = make(chan struct{})
}

// gone tells whether a gateway can be left out of a wait.
func (g *gatewayState) gone(now time.Time) bool {
	return g.streams == 0 && now.Sub(g.seen) >= goneAfter
}

// passing tells whether a name is one under which a gateway's successor goes until the gateway has ended.
func passing(name string) bool { return strings.Contains(name, "~") }

func (g *gatewayState) settled(r api.SettleRequest) bool {
	newEnough := g.generation > r.Generation || g.generation == r.Generation && g.version >= r.Version
	return newEnough && g.inFlight[r.Handover] == 0
}

// Settled waits until every gateway of this site acts on the version or a later one and has nothing in flight for the
// handover, or until the bound passes. Gateways that are gone are left out and named.
func (h *Hub) Settled(ctx context.Context, r api.SettleRequest) (api.SettleAnswer, error) {
	start := time.Now()
	bound := time.NewTimer(time.Duration(r.BoundMS) * time.Millisecond)
	defer bound.Stop()
	look := time.NewTicker(goneAfter / 10) // a gateway goes without a word
	defer look.Stop()
	for past := false; ; {
		answer, heard := h.look(r)
		answer.WaitedUS = time.Since(start).Microseconds()
		if past || len(answer.Unsettled) == 0 {
			return answer, nil
		}
		select {
		case <-heard:
		case <-look.C:
		case <-bound.C:
			past = true
		case <-ctx.Done():
			return api.SettleAnswer{}, context.Cause(ctx)
		}
	}
}

func (h *Hub) look(r api.SettleRequest) (api.SettleAnswer, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var a api.SettleAnswer
	now := time.Now()
	for name, g := range h.mu.gateways {
		switch {
		case g.gone(now) && passing(name):
			delete(h.mu.gateways, name)
		case g.gone(now):
			a.Gone = append(a.Gone, name)
			if now.Sub(g.seen) >= forgetAfter {
				delete(h.mu.gateways, name)
			}
		case g.settled(r):
			a.Gateways++
		default:
			a.Unsettled = append(a.Unsettled, name)
		}
	}
	slices.Sort(a.Gone)
	slices.Sort(a.Unsettled)
	return a, h.mu.heard
}

// Gateways lists this site's gateways by name.
func (h *Hub) Gateways() []api.GatewayStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]api.GatewayStatus, 0, len(h.mu.gateways))
	now := time.Now()
	for name, g := range h.mu.gateways {
		if g.gone(now) && passing(name) {
			continue
		}
		out = append(out, api.GatewayStatus{Gateway: name, Connected: g.streams > 0, Version: g.version, InFlight: g.inFlight,
			SeenMS: now.Sub(g.seen).Milliseconds()})
	}
	slices.SortFunc(out, func(a, b api.GatewayStatus) int { return cmp.Compare(a.Gateway, b.Gateway) })
	return out
}
