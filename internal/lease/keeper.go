// Package lease keeps one site's permission to accept writes: the record site/NAME in the store, and the lease moment
// and ownership bits of the fence in the site's database. The main type is [Keeper]; being the site's active keeper is
// being inside one function of it.
//
// It guarantees its part of I2, I6 and I7 (docs of ownership, rules marked † under "Lease"): the lease is renewed by a
// committed compare-and-set, and only after the database completed a durable write since the last renewal; deadlines
// count from the start of a renewal; before the fence's moment is extended, its bits are a subset of the ownership; a
// keeper that starts, or whose lease has lapsed or was revoked, first clears every bit that its epoch rows do not bear
// out. Nothing that fails opens or extends anything: if the store is silent, the lease is simply not extended, and the
// database closes the fence at its own moment.
//
// A database that is not the one of the record, or has gone back in time, comes up closed and stays so while the site
// owns buckets; so does one whose clock was set back, until that has passed what it once said. Once the lease has
// lapsed, the applications' transactions are ended within W.
//
// A second keeper of the same site waits, touching nothing, until the record is released, revoked or silent for a
// whole lease.
package lease

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

var (
	// ErrNotActive: this keeper may not open anything now. What was observed is remembered; the next renewal opens it.
	ErrNotActive = errors.New("not the site's active keeper, or its lease has lapsed")
	// ErrDatabaseChanged: the database is not the one that the lease was kept for. Everything in it is closed.
	ErrDatabaseChanged = errors.New("the database is another one than the site's lease was kept for")
	errLost            = errors.New("another keeper of this site holds the lease")
)

// Store is what a keeper needs of the control store.
type Store interface {
	// Lease reads a site's record; store.ErrNotFound if there is none.
	Lease(context.Context, topo.SiteID) (store.Lease, store.Revision, error)
	// Ownership reads the document; store.ErrNotFound before there is one.
	Ownership(context.Context) (topo.Ownership, store.Revision, error)
	// RenewLease writes the record if it is at the revision, else store.ErrConflict.
	RenewLease(context.Context, topo.SiteID, store.Lease, store.Revision) (store.Renewal, error)
}

// Fence is what a keeper needs of the site's database; see postgres.Fence.
type Fence interface {
	Identity(context.Context) (topo.Identity, error)
	Heartbeat(ctx context.Context, after uint64) (postgres.Pulse, error)
	State(context.Context) (postgres.FenceState, error)
	Restrict(ctx context.Context, keep map[topo.KeyspaceID]topo.Spans) error
	RecordCuts(context.Context, []topo.CutRange) error
	OpenBuckets(context.Context, postgres.OpenOrder) error
	ExtendLease(ctx context.Context, deadline time.Time, margin time.Duration) error
	RecordOwners(context.Context, topo.Ownership) error
	DistrustClock(context.Context) error
	ForgetMoments(context.Context) error
	EndWriters(ctx context.Context, patience, bound time.Duration) ([]postgres.Blocker, error)
	RaiseGeneration(ctx context.Context, generation uint64) error
}

// Config describes a keeper.
type Config struct {
	Site     topo.SiteID
	Store    Store
	Fence    Fence
	Duration time.Duration // of the lease; 0 is 10 s
	Margin   time.Duration // the fence closes this much before the deadline; 0 is a tenth of Duration
	W        time.Duration // once the lease has lapsed, writers are ended within this time; 0 is a fifth of Duration
	// Without says what is done while the store does not answer. Peers are the other sites that could take over, and Ask
	// asks one of them for its promise; both are only for Promised.
	Without Without
	Peers   []topo.SiteID
	Ask     func(ctx context.Context, site topo.SiteID, holder string, long time.Duration) (time.Duration, error)
	// Incarnation is unique to this run; empty makes one. Previous is that of an earlier run of the same agent which
	// the caller knows to have ended (it holds the lock on the agent's state): its record is taken over at once.
	Incarnation, Previous string
	Logger                *slog.Logger // nil discards
}

// Keeper keeps one site's lease. It is safe for concurrent use; Run may be called once.
type Keeper struct {
	cfg Config
	t   timing
	log *slog.Logger

	clock clockWatch // of the goroutine that keeps the lease

	// fencing serialises everything that changes bits: a token, taken before k.mu.
	fencing chan struct{}

	mu struct {
		sync.Mutex
		newest topo.Ownership // by (generation, version); zero before the first
		from   moves          // of the ownership before newest
		opened topo.Ownership // the newest one whose buckets are open here
		change chan struct{}  // closed when opened changes
		until  time.Time      // the fence may be open until then; zero when not active, or closed before its time
		holder bool           // the record is this keeper's
		differ error          // the database is not the one of the lease, and the site owns buckets
		status Status

		cutsOf  [2]uint64 // generation and version of the ownership whose cuts the database has
		rebuild bool      // the database was adopted in the place of another, and is not settled
		anew    bool      // and the other sites let go of its former stream

		lapses       time.Time     // when the last extension ends, also if the fence was closed before; zero when not active
		lapsesChange chan struct{} // closed when lapses changes
	}
}

// Status is for people and their tools.
type Status struct {
	Incarnation string `json:"incarnation"`
	Holder      bool   `json:"holder"`            // the site's record is this keeper's
	Active      bool   `json:"active"`            // and its lease is in force
	Doing       string `json:"doing"`             // "starting", "standby", or the phase of an active keeper
	Problem     string `json:"problem,omitempty"` // why the lease is not extended or buckets are not open
	Generation  uint64 `json:"generation"`        // of the newest ownership known
	Version     uint64 `json:"version"`
	Rebuild     bool   `json:"rebuild,omitempty"` // the database was adopted in the place of another, and is not settled
	Clock       string `json:"clock,omitempty"`   // the last step of the database's clock
	// WritersEnded counts transactions that outlived a lease and were ended; WritersLeft says which were not, and why.
	WritersEnded int    `json:"writers_ended,omitempty"`
	WritersLeft  string `json:"writers_left,omitempty"`
}

// New makes a keeper; nothing happens before Run.
func New(cfg Config) (*Keeper, error) {
	if cfg.Duration == 0 {
		cfg.Duration = 10 * time.Second
	}
	if cfg.Margin == 0 {
		cfg.Margin = cfg.Duration / 10
	}
	if cfg.W == 0 {
		cfg.W = cfg.Duration / 5
	}
	if cfg.Incarnation == "" {
		cfg.Incarnation = uuid.NewString()
	}
	if cfg.Without == Promised && (len(cfg.Peers) == 0 || cfg.Ask == nil) {
		return nil, fmt.Errorf("lease of site %s: no other site could promise anything", cfg.Site)
	}
	if cfg.Duration < 100*time.Millisecond || cfg.Duration%time.Millisecond != 0 || cfg.Margin < cfg.Duration/100 || cfg.Margin > cfg.Duration/3 || cfg.W < 0 {
		return nil, fmt.Errorf("lease of site %s: duration %s with margin %s and W %s; want at least 100 ms, and a margin from 1 %% to a third of it",
			cfg.Site, cfg.Duration, cfg.Margin, cfg.W)
	}
	k := &Keeper{cfg: cfg, log: cfg.Logger, fencing: make(chan struct{}, 1)}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	k.t = timing{duration: cfg.Duration, margin: cfg.Margin, every: cfg.Duration / 3, retry: cfg.Duration / 20}
	k.mu.change, k.mu.lapsesChange = make(chan struct{}), make(chan struct{})
	k.mu.status = Status{Incarnation: cfg.Incarnation, Doing: "starting"}
	return k, nil
}

// Run keeps the lease until ctx ends: it stands by while another keeper of the site is active, and is active when it
// may. active (nil: nothing) is what else being active is: it runs exactly while the site's record is this keeper's,
// also while the store is silent, and has ended before the keeper stands by or Run returns. Run returns nil when ctx
// ends, and the error of an active that ends by itself.
func (k *Keeper) Run(ctx context.Context, active func(context.Context) error) error {
	if active == nil {
		active = func(ctx context.Context) error { <-ctx.Done(); return nil }
	}
	for {
		c, err := k.standBy(ctx)
		if err == nil {
			err = k.keep(ctx, c, active)
		}
		switch {
		case errors.Is(err, errActiveEnded):
			return fmt.Errorf("lease of site %s: %w", k.cfg.Site, err)
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errLost):
			k.log.Warn("lease lost to another keeper of this site; standing by", "site", k.cfg.Site)
		default:
			return fmt.Errorf("lease of site %s: %w", k.cfg.Site, err)
		}
	}
}

// standBy returns when the record may be taken. It touches no fence.
func (k *Keeper) standBy(ctx context.Context) (*cycle, error) {
	who := candidate{me: k.cfg.Incarnation, previous: k.cfg.Previous}
	told := ""
	for {
		l, rev, found, err := k.read(ctx)
		wait := k.t.retry
		if err == nil {
			v := who.look(l, found, time.Now())
			if v.take {
				k.log.Info("taking the site's lease", "site", k.cfg.Site, "because", v.why, "incarnation", k.cfg.Incarnation)
				return k.begin(ctx, l, rev)
			}
			wait = v.wait
			if told != l.Holder {
				k.log.Info("another keeper of this site is active; standing by", "site", k.cfg.Site, "holder", l.Holder)
				told = l.Holder
			}
			k.doing("standby", nil)
		} else {
			k.doing("starting", err)
		}
		if err := sleep(ctx, time.Now().Add(wait)); err != nil {
			return nil, err
		}
	}
}

// begin starts a cycle on a record that may be taken. It waits for the database to say which one it is; in that of a
// revoked site all bits are cleared and what writers the old epochs have left are ended before anything else.
func (k *Keeper) begin(ctx context.Context, l store.Lease, rev store.Revision) (*cycle, error) {
	k.clock = clockWatch{}
	k.cutsRecorded(topo.Ownership{}) // another agent, or another database
	for {
		ask, cancel := context.WithTimeout(ctx, k.t.every)
		id, err := k.cfg.Fence.Identity(ask)
		if err == nil && l.Revoked {
			err = k.cfg.Fence.Restrict(ask, nil)
		}
		cancel()
		var left *postgres.WritersLeftError
		if err == nil && l.Revoked {
			err = k.endWriters(ctx, 0, k.cfg.W)
		}
		if err == nil || errors.As(err, &left) { // those that cannot be ended are told in the status, and waited for when the buckets are closed
			k.rebuilds(l.Rebuild, l.Anew)
			return begin(k.t, k.cfg.Incarnation, l, rev, id), nil
		}
		k.doing("starting", err)
		if err := sleep(ctx, time.Now().Add(k.t.retry)); err != nil {
			return nil, err
		}
	}
}

// errActiveEnded: what runs while the keeper is active ended by itself.
var errActiveEnded = errors.New("what runs while the site's agent is active has ended")

// keep is what being active is: while it runs, and nowhere else, the lease is renewed and the fence opened and
// extended. However it ends, nothing is extended or opened by this keeper afterwards, and nothing that runs while the
// keeper is active runs any more; only then is the record released.
func (k *Keeper) keep(ctx context.Context, c *cycle, active func(context.Context) error) error {
	scope, end := context.WithCancelCause(ctx)
	var parts sync.WaitGroup
	parts.Go(func() { k.watchLapse(scope) })
	begun := false
	err := k.turn(scope, c, func() {
		if begun {
			return
		}
		begun = true
		k.holds(true)
		parts.Go(func() {
			if err := active(scope); scope.Err() == nil {
				end(errors.Join(errActiveEnded, err))
			}
		})
	})
	if cause := context.Cause(scope); errors.Is(cause, errActiveEnded) {
		err = cause
	}
	k.inactive()
	end(nil)
	parts.Wait()
	k.holds(false)
	if c.phase != lost && begun {
		k.release(ctx, c)
	}
	return err
}

// turn goes through the cycle until ctx ends or the record is another's. held is called whenever the record is known
// to be this keeper's.
func (k *Keeper) turn(ctx context.Context, c *cycle, held func()) error {
	for ctx.Err() == nil {
		now := time.Now()
		t := c.next(now)
		var problem error
		switch t.do {
		case resting:
			if err := sleep(ctx, t.until); err != nil {
				return err
			}
			continue
		case proving:
			problem = k.prove(ctx, c, t)
		case renewing:
			if problem = k.renew(ctx, c, t); c.phase == enforcing {
				held()
			} else if c.phase == doubting && !errors.Is(problem, store.ErrConflict) {
				problem = k.bridge(ctx, c, problem)
			}
		case enforcing:
			problem = k.enforce(ctx, c, t)
		case doubting:
			if problem = k.doubt(ctx, c); problem != nil {
				problem = k.bridge(ctx, c, problem)
			}
		case lost:
			return errLost
		}
		k.doing(c.phase.String(), problem)
	}
	return ctx.Err()
}

// release tells the next keeper of this site that it need not wait. The fence is left as it is: it closes at its
// moment, unless that next keeper extends it.
func (k *Keeper) release(ctx context.Context, c *cycle) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if c.phase == doubting { // the end met a renewal under way
		if err := k.doubt(ctx, c); err != nil || c.phase == lost {
			k.log.Info("the site's lease is not released: whose it is is not known", "site", k.cfg.Site, "error", err)
			return
		}
	}
	l := c.lease
	l.Sequence, l.Released = l.Sequence+1, true
	k.mu.Lock()
	l.Rebuild, l.Anew = k.mu.rebuild, k.mu.anew
	k.mu.Unlock()
	if _, err := k.cfg.Store.RenewLease(ctx, k.cfg.Site, l, c.revision); err != nil {
		k.log.Info("the site's lease is not released; it runs out by itself", "site", k.cfg.Site, "error", err)
	}
}

func (k *Keeper) read(ctx context.Context) (l store.Lease, rev store.Revision, found bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, k.t.every)
	defer cancel()
	l, rev, err = k.cfg.Store.Lease(ctx, k.cfg.Site)
	if errors.Is(err, store.ErrNotFound) {
		return store.Lease{}, 0, false, nil
	}
	return l, rev, err == nil, err
}

func sleep(ctx context.Context, until time.Time) error {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
