package replicate

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// Applied is how far this site has applied every origin's changes, durably, and what the other sites say of
// themselves. It is safe for concurrent use.
type Applied struct {
	site     topo.SiteID
	recorded Recorded

	mu struct {
		sync.Mutex
		vector  topo.Vector
		peers   map[topo.SiteID]topo.Vector
		moved   chan struct{}        // closed and replaced whenever vector grows
		waived  map[topo.SiteID]bool // origins whose positions in markers are of a stream that is no more
		waiting map[arrival]map[*waiter]bool
		recent  map[arrival]come // some of those that have come; the database has all
	}
}

// mostRecent bounds the markers that are remembered.
const mostRecent = 1024

// arrival names the closing markers that a handover leaves in a site's stream: one of a switch, one per keyspace of a
// failover.
type arrival struct {
	site     topo.SiteID
	handover topo.HandoverID
}

// come are the markers of an arrival that are here.
type come map[topo.KeyspaceID]change.Marker

// covers tells whether the marker of every keyspace is here; of any, if none is named.
func (c come) covers(keyspaces []topo.KeyspaceID) bool {
	for _, ks := range keyspaces {
		if _, here := c[ks]; !here {
			return false
		}
	}
	return len(c) > 0
}

// waiter waits for markers of one arrival. Whoever tells it holds the lock; it reads have only behind done.
type waiter struct {
	keyspaces []topo.KeyspaceID
	have      come
	done      chan struct{} // closed when have covers keyspaces
}

func (w *waiter) told(m change.Marker) {
	if w.have.covers(w.keyspaces) {
		return
	}
	w.have[m.Keyspace] = m
	if w.have.covers(w.keyspaces) {
		close(w.done)
	}
}

// LoadApplied starts from what the site's database has recorded.
func LoadApplied(ctx context.Context, site topo.SiteID, recorded Recorded) (*Applied, error) {
	vector, err := recorded.Vector(ctx)
	if err != nil {
		return nil, fmt.Errorf("progress of site %s: %w", site, err)
	}
	a := &Applied{site: site, recorded: recorded}
	a.mu.vector = make(topo.Vector)
	maps.Copy(a.mu.vector, vector)
	a.mu.peers = make(map[topo.SiteID]topo.Vector)
	a.mu.waived = make(map[topo.SiteID]bool)
	a.mu.moved = make(chan struct{})
	a.mu.waiting = make(map[arrival]map[*waiter]bool)
	a.mu.recent = make(map[arrival]come)
	return a, nil
}

// Vector is this site's progress per origin.
func (a *Applied) Vector() topo.Vector {
	a.mu.Lock()
	defer a.mu.Unlock()
	return maps.Clone(a.mu.vector)
}

// WaitMarker waits until the closing marker that a switch left in a site's stream is durably here. With it everything
// is here that stands before it, and what its vector asks for.
func (a *Applied) WaitMarker(ctx context.Context, site topo.SiteID, id topo.HandoverID) (change.Marker, error) {
	have, err := a.wait(ctx, site, id, nil)
	for _, m := range have {
		return m, err
	}
	return change.Marker{}, err
}

// WaitMarkers waits until the closing markers of a handover for all of the keyspaces are durably here.
func (a *Applied) WaitMarkers(ctx context.Context, site topo.SiteID, id topo.HandoverID, keyspaces []topo.KeyspaceID) error {
	_, err := a.wait(ctx, site, id, keyspaces)
	return err
}

func (a *Applied) wait(ctx context.Context, site topo.SiteID, id topo.HandoverID, keyspaces []topo.KeyspaceID) (come, error) {
	key, w := arrival{site, id}, &waiter{keyspaces: keyspaces, have: come{}, done: make(chan struct{})}
	a.mu.Lock()
	for _, m := range a.mu.recent[key] {
		w.told(m)
	}
	if w.have.covers(keyspaces) {
		a.mu.Unlock()
		return w.have, nil
	}
	if a.mu.waiting[key] == nil {
		a.mu.waiting[key] = make(map[*waiter]bool)
	}
	a.mu.waiting[key][w] = true
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.mu.waiting[key], w)
		if len(a.mu.waiting[key]) == 0 {
			delete(a.mu.waiting, key)
		}
	}()
	// The database may have them from before. Waiting began before this look, so a marker that comes meanwhile is seen
	// by one of the two, and whoever waits for it does not also wait for the look.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	looked := make(chan error, 1)
	go func() { looked <- a.look(ctx, key) }() // ends with ctx at the latest; nobody needs it any more then
	for {
		select {
		case <-w.done:
			return w.have, nil
		case err := <-looked:
			if err != nil && ctx.Err() == nil {
				return nil, err
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("the marker of handover %s from site %s has not come: %w", id, site, context.Cause(ctx))
		}
	}
}

// look tells those who wait what the database has.
func (a *Applied) look(ctx context.Context, key arrival) error {
	markers, err := a.recorded.Markers(ctx, key.site, key.handover)
	if err != nil {
		return fmt.Errorf("marker of handover %s from site %s: %w", key.handover, key.site, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range markers {
		a.tellLocked(m)
	}
	return nil
}

// WaitVector waits until this site has applied what need asks for. This site's own changes are always here.
func (a *Applied) WaitVector(ctx context.Context, need topo.Vector) error {
	need = maps.Clone(need)
	delete(need, a.site)
	return a.until(ctx, func() bool {
		covered := true
		for origin, pos := range need {
			covered = covered && (a.mu.waived[origin] || a.mu.vector[origin] >= pos)
		}
		return covered
	})
}

// WaitApplied waits until an origin's changes are applied here up to a position. Nothing is waived: it is for readers, who
// are to see them.
func (a *Applied) WaitApplied(ctx context.Context, origin topo.SiteID, pos change.Position) error {
	return a.until(ctx, func() bool { return a.mu.vector[origin] >= uint64(pos) })
}

// until waits until covered, which is called with the lock held, holds.
func (a *Applied) until(ctx context.Context, covered func() bool) error {
	for {
		a.mu.Lock()
		ok, moved := covered(), a.mu.moved
		a.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lacks names an origin whose changes need asks for and this site lacks; "" if there is none.
func (a *Applied) lacks(need topo.Vector) topo.SiteID {
	a.mu.Lock()
	defer a.mu.Unlock()
	var lacking topo.SiteID
	for origin, pos := range need {
		if origin != a.site && !a.mu.waived[origin] && a.mu.vector[origin] < pos && (lacking == "" || origin < lacking) {
			lacking = origin
		}
	}
	return lacking
}

// advance notes what is durably applied. It is called after the commit, never before.
func (a *Applied) advance(origin topo.SiteID, pos change.Position, markers []change.Marker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.vector[origin] < uint64(pos) {
		a.mu.vector[origin] = uint64(pos)
		close(a.mu.moved)
		a.mu.moved = make(chan struct{})
	}
	for _, m := range markers {
		if m.Kind == change.MarkerClosed {
			a.tellLocked(m)
		}
	}
}

func (a *Applied) tellLocked(m change.Marker) {
	key := arrival{m.Site, m.Handover}
	if a.mu.recent[key] == nil {
		if len(a.mu.recent) >= mostRecent {
			clear(a.mu.recent)
		}
		a.mu.recent[key] = come{}
	}
	a.mu.recent[key][m.Keyspace] = m
	for w := range a.mu.waiting[key] {
		w.told(m)
	}
}

// reload takes what the database has recorded of an origin. A commit whose answer was lost may have brought markers
// that nobody was told of. A database that went back, to a standby that lagged or to a backup, takes its markers along.
func (a *Applied) reload(ctx context.Context, origin topo.SiteID, pos change.Position) error {
	a.advance(origin, pos, nil)
	a.mu.Lock()
	if a.mu.vector[origin] > uint64(pos) {
		a.mu.vector[origin] = uint64(pos)
		maps.DeleteFunc(a.mu.recent, func(key arrival, _ come) bool { return key.site == origin })
	}
	var waiting []arrival
	for key := range a.mu.waiting {
		if key.site == origin {
			waiting = append(waiting, key)
		}
	}
	a.mu.Unlock()
	for _, key := range waiting {
		if err := a.look(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// Anew takes a place in a stream of an origin that has nothing to do with the one before: what anybody had applied of
// that is void. Until it is called with last, markers of others may still speak of that one: what they ask of the origin
// is here, and is not waited for.
func (a *Applied) Anew(origin topo.SiteID, pos change.Position, last bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.vector[origin] = uint64(pos)
	a.mu.waived[origin] = !last
	maps.DeleteFunc(a.mu.recent, func(key arrival, _ come) bool { return key.site == origin })
	for site, vector := range a.mu.peers {
		vector = maps.Clone(vector) // it was handed over
		delete(vector, origin)
		a.mu.peers[site] = vector
	}
	close(a.mu.moved)
	a.mu.moved = make(chan struct{})
}

// Drop forgets an origin that is no member any more, and what it has said.
func (a *Applied) Drop(origin topo.SiteID) {
	a.Anew(origin, 0, true)
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.mu.vector, origin)
	delete(a.mu.peers, origin)
}

// heard notes what another site says it has applied.
func (a *Applied) heard(site topo.SiteID, vector topo.Vector) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.peers[site] = vector
}

// said is how far another site has applied an origin's changes, as it last said.
func (a *Applied) said(site, origin topo.SiteID) change.Position {
	a.mu.Lock()
	defer a.mu.Unlock()
	return change.Position(a.mu.peers[site][origin])
}

// Told notes that another site has applied an origin's changes up to a position, as it said in another way than on a link.
func (a *Applied) Told(site, origin topo.SiteID, pos change.Position) {
	a.mu.Lock()
	defer a.mu.Unlock()
	v := maps.Clone(a.mu.peers[site])
	if v == nil {
		v = topo.Vector{}
	}
	v[origin] = max(v[origin], uint64(pos))
	a.mu.peers[site] = v
}

// everywhere is how far all of the given sites have applied an origin's changes, as far as they have said.
func (a *Applied) everywhere(origin topo.SiteID, sites []topo.SiteID) change.Position {
	a.mu.Lock()
	defer a.mu.Unlock()
	least := ^uint64(0)
	for _, s := range sites {
		least = min(least, a.mu.peers[s][origin])
	}
	return change.Position(least)
}
