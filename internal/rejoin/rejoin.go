// Package rejoin brings a site back whose buckets were taken over by a failover. The main type is [Rejoin]; both sides
// run it while their agent is active.
//
// The returning side closes its fence at the epochs that the cuts name: writers of the old epochs are waited out or
// ended, and the closing marker, one per keyspace, is the last word of its tail. The owner's side waits until it has
// applied those markers, so that every change of the tail is decided (I5), and until the returning site has its
// decisions on disk; then it takes the cuts out of the ownership, and the site may own again.
//
// A site whose database is another one than before (a promoted standby, a restored copy, an empty one) has no stream
// to go on with. [Rejoin.Rebuild] brings it to another site's content, and begins its stream anew everywhere; of every
// third site it goes on where the copied one was. It settles as above.
//
// It guarantees that cuts stay until both is known: nothing here is concluded from a time-out, every step is repeated
// until it is known to be done, and the decision is one compare-and-set. It refuses to rebuild a site that owns
// buckets, or whose tail can still be settled in the ordinary way, and to begin without every other full site.
package rejoin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

const (
	lookEvery  = 200 * time.Millisecond // at the newest document, which is in memory
	retryEvery = time.Second
	closeBound = 2 * time.Second // for writers to end by themselves
)

// Store is what is needed of the control store.
type Store interface {
	Ownership(context.Context) (topo.Ownership, store.Revision, error)
	Handover(context.Context, topo.HandoverID) (json.RawMessage, store.Revision, error)
	Lease(context.Context, topo.SiteID) (store.Lease, store.Revision, error)
	Commit(context.Context, store.Change) (store.Revision, error)
}

// Fence is what is needed of this site's database; see postgres.Fence.
type Fence interface {
	CloseBuckets(context.Context, postgres.CloseOrder) (change.Marker, error)
	Remark(context.Context, postgres.CloseOrder) error
	Point(context.Context) (change.Position, error)
	Tail(context.Context, topo.HandoverID) (applied, kept int, err error)
}

// Config is what a Rejoin works with.
type Config struct {
	Site      topo.SiteID
	Sites     []topo.SiteID // the other full sites of the spec
	Store     Store
	Ownership func() (topo.Ownership, bool) // the newest that is known; must not block
	Fence     Fence
	// WaitMarkers waits until this site has applied the closing markers of a handover from a site.
	WaitMarkers func(ctx context.Context, from topo.SiteID, id topo.HandoverID, keyspaces []topo.KeyspaceID) error
	Flushed     func(target topo.SiteID) change.Position // what a target has of this site's changes, on disk; must not block
	Rebuilding  Rebuilding
	// BeginAnew is postgres.Fence's, and nothing that was heard of the former stream counts behind it. Until it is called
	// with last, nothing waits for what a marker asks of the origin.
	BeginAnew func(ctx context.Context, a postgres.Anew, last bool) error
	// Place makes a target's place in this site's stream anew, and answers a position behind it.
	Place func(ctx context.Context, target topo.SiteID) (change.Position, error)
	// WaitVector waits until this site has applied so much of other origins.
	WaitVector func(context.Context, topo.Vector) error
	Logger     *slog.Logger // nil discards
}

// Rejoin is one site's part in returns, its own and others'. It is safe for concurrent use; Run may be called once.
type Rejoin struct {
	cfg Config
	log *slog.Logger

	mu struct {
		sync.Mutex
		run   context.Context // nil: Run is not active
		notes map[string]*note
	}
	rebuilding sync.Mutex // one at a time
}

// note is what something waits for.
type note struct {
	what  string // "returning from failover H"
	since time.Time
	waits string
}

// New makes a Rejoin; nothing happens before Run.
func New(cfg Config) *Rejoin {
	r := &Rejoin{cfg: cfg, log: cfg.Logger}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.mu.notes = map[string]*note{}
	return r
}

// peers are the other members, those that are joining included.
func (r *Rejoin) peers() []topo.SiteID {
	o, _ := r.cfg.Ownership()
	return slices.DeleteFunc(o.TakingPart(r.cfg.Sites, true), func(s topo.SiteID) bool { return s == r.cfg.Site })
}

// Run closes what this site has lost and settles what it took, until ctx ends.
func (r *Rejoin) Run(ctx context.Context) error {
	parts, ctx := errgroup.WithContext(ctx)
	r.mu.Lock()
	r.mu.run = ctx
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.mu.run = nil
		r.mu.Unlock()
		r.rebuilding.Lock() // one that is under way ends with ctx
		defer r.rebuilding.Unlock()
	}()
	parts.Go(func() error { return r.returning(ctx) })
	parts.Go(func() error { return r.receiving(ctx) })
	return parts.Wait()
}

// Status says what is under way and what it waits for, for people.
func (r *Rejoin) Status() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]string, 0, len(r.mu.notes))
	for _, n := range r.mu.notes {
		out = append(out, fmt.Sprintf("%s: %d s, waits for %s", n.what, int(time.Since(n.since).Seconds()), n.waits))
	}
	slices.Sort(out)
	return out
}

// waits notes what something waits for. It is logged when it changes.
func (r *Rejoin) waits(what, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	r.mu.Lock()
	n := r.mu.notes[what]
	if n == nil {
		n = &note{what: what, since: time.Now()}
		r.mu.notes[what] = n
	}
	news := n.waits != text
	n.waits = text
	r.mu.Unlock()
	if news {
		r.log.Info(what, "site", r.cfg.Site, "waits_for", text)
	}
}

// over ends a note.
func (r *Rejoin) over(what string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mu.notes, what)
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func join[T ~string](names []T) string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = string(n)
	}
	return strings.Join(out, ", ")
}
