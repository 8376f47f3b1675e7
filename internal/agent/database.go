package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/dns"
	"github.com/atollhq/atoll/internal/lease"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/rejoin"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/topo"
)

const databaseRetry = time.Second

// kept is what an agent has while its database is there, also while it stands by.
type kept struct {
	fence  *postgres.Fence
	keeper *lease.Keeper
}

// database is what the active agent has besides.
type database struct {
	fence    *postgres.Fence
	recorded *recorded
	keeper   *lease.Keeper
	applied  *replicate.Applied
	relay    *postgres.Relay // used only where a third full site may lack changes
	serve    *replicate.Serve
	follows  map[topo.SiteID]*replicate.Follow
	applying rejoin.Gate // what follows runs in
	site     topo.SiteID
	document func() topo.Ownership // the newest that this agent knows
	admitted func() bool           // this run has rebuilt the database, so that the site may join
	halted   halts
	returns  *rejoin.Rejoin
}

// keepDatabase works with the database until ctx ends. A database that is away, not prepared or the wrong one is tried
// again: the agent never ends because of it, and the lease is not renewed meanwhile. ln is for links; it is closed at
// the end. Whoever wants a link while this agent is not active is told so.
func (a *agent) keepDatabase(ctx context.Context, ln net.Listener) {
	d := &door{agent: a, ln: ln}
	d.refuse(ctx)
	defer d.close()
	said := ""
	for {
		err := a.withDatabase(ctx, d)
		if ctx.Err() != nil {
			return
		}
		text := err.Error()
		a.why.Store(&text)
		if text != said {
			a.log.Warn("the database is not usable; trying again", "error", err)
			said = text
		}
		select {
		case <-time.After(databaseRetry):
		case <-ctx.Done():
		}
	}
}

// withDatabase is the scope of everything that has the database. It returns when ctx ends or a part fails; nothing of
// it runs any more then.
func (a *agent) withDatabase(ctx context.Context, d *door) error {
	fence, err := postgres.OpenFence(ctx, a.cfg.DSN, a.site)
	if err != nil {
		return err
	}
	defer fence.Close()
	policy := a.cfg.Spec.Policies.Lease
	keeper, err := lease.New(lease.Config{Site: a.site, Store: a.store, Fence: fence, Duration: policy.Duration, Margin: policy.Margin, W: policy.W,
		Incarnation: a.incarnation, Previous: a.previous, Logger: a.cfg.Log,
		Without: without(a.cfg.Spec.Policies.Failover.OnQuorumLoss), Peers: a.listed(), Ask: a.askPromise})
	if err != nil {
		return err
	}
	k := &kept{fence, keeper}
	a.kept.Store(k)
	defer a.kept.Store(nil)
	a.log.Info("the database is there")
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error {
		return keeper.Run(ctx, func(active context.Context) error {
			ln, err := d.open(ctx)
			if err != nil {
				return err
			}
			defer d.refuse(ctx)
			return a.active(active, k, ln)
		})
	})
	parts.Go(func() error { return a.passOpened(ctx, keeper) })
	if err := parts.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// active is what this agent does while it has the site's lease, and nowhere else: it drives handovers, hands its
// changes to other sites and takes theirs. A part that fails ends them all; the scope is entered again.
func (a *agent) active(ctx context.Context, k *kept, ln net.Listener) error {
	defer ln.Close()
	rec := &recorded{dsn: a.cfg.DSN}
	defer rec.close()
	applied, err := replicate.LoadApplied(ctx, a.site, rec) // only now: another agent may have applied until a moment ago
	if err != nil {
		return err
	}
	relay, err := postgres.OpenRelay(a.cfg.DSN, a.site)
	if err != nil {
		return err
	}
	defer relay.Close()
	db := &database{fence: k.fence, recorded: rec, keeper: k.keeper, applied: applied, relay: relay, site: a.site, document: a.document, admitted: a.rebuilt.Load, follows: map[topo.SiteID]*replicate.Follow{}}
	db.serve = a.serving(db)
	for _, origin := range a.listed() {
		db.follows[origin] = a.following(db, origin)
	}
	db.returns = a.returning(db)
	a.database.Store(db)
	defer a.database.Store(nil)
	a.log.Info("active: this agent has the site's lease")
	defer a.log.Info("not active any more")

	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return a.controller.Run(ctx) })
	parts.Go(func() error { return db.serve.Run(ctx, ln) })
	parts.Go(func() error { return db.returns.Run(ctx) })
	for _, f := range db.follows {
		parts.Go(func() error {
			return db.applying.Run(ctx, func(ctx context.Context) error { return a.followMember(ctx, f) })
		})
	}
	parts.Go(func() error { return a.keepOut(ctx, db) })
	defer a.fresh.forget()
	if a.boundsAge() {
		for site := range db.follows {
			parts.Go(func() error { return a.keepFresh(ctx, db, site) })
		}
	}
	if a.cfg.Publish != nil && a.cfg.Spec.DNS != nil {
		p := &dns.Publisher{Spec: a.cfg.Spec, Site: a.site, Health: a.health, Publish: a.cfg.Publish, Log: a.log}
		parts.Go(func() error { return p.Run(ctx) })
	}
	if err := parts.Wait(); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// listed are the other full sites of the spec, members or not.
func (a *agent) listed() []topo.SiteID {
	return slices.DeleteFunc(a.cfg.Spec.FullSites(), func(s topo.SiteID) bool { return s == a.site })
}

func (a *agent) serving(db *database) *replicate.Serve {
	return &replicate.Serve{
		Site: a.site, Deployment: a.cfg.Spec.Deployment, Identity: a.cfg.Identity, Applied: db.applied, Logger: a.log,
		Open: func(ctx context.Context, target topo.SiteID) (replicate.Source, error) {
			if err := db.whole(); err != nil {
				return nil, fmt.Errorf("nothing is handed on: %w", err)
			}
			if !slices.Contains(a.listed(), target) {
				return nil, fmt.Errorf("site %s is not in the spec of site %s, or has no database", target, a.site)
			}
			return opened(a.capture(ctx, target))
		},
		OpenRelay: func(ctx context.Context, target, origin topo.SiteID) (replicate.Source, error) {
			if err := db.whole(); err != nil {
				return nil, fmt.Errorf("nothing is handed on: %w", err)
			}
			others := a.listed()
			if !slices.Contains(others, target) || !slices.Contains(others, origin) {
				return nil, fmt.Errorf("site %s or site %s is not in the spec of site %s, or has no database", target, origin, a.site)
			}
			source, err := postgres.OpenRelaySource(ctx, a.cfg.DSN, a.site, origin)
			if err != nil {
				return nil, err
			}
			return source, nil
		},
		Says: func() link.Statement {
			deadline, live := db.keeper.Deadline()
			if !live {
				return link.Statement{}
			}
			return link.Statement{Serving: true, RemainingMS: time.Until(deadline).Milliseconds()}
		},
	}
}

// opened keeps a nil pointer from becoming an interface that is not nil.
func opened(c *postgres.Capture, err error) (replicate.Source, error) {
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (a *agent) following(db *database, origin topo.SiteID) *replicate.Follow {
	addrs := append(LinkAddrs(a.cfg.Spec, a.site, origin), "")
	others := slices.DeleteFunc(a.listed(), func(s topo.SiteID) bool { return s == origin })
	var relays []replicate.Via
	for _, s := range others {
		relays = append(relays, replicate.Via{Site: s, Addrs: LinkAddrs(a.cfg.Spec, a.site, s)})
	}
	return &replicate.Follow{
		Relays: relays, Tail: tailOf(a.site, origin, a.hub.Ownership),
		Site: a.site, Origin: origin, Deployment: a.cfg.Spec.Deployment, Addr: addrs[0], Standby: addrs[1], Identity: a.cfg.Identity,
		CopyFrom: origin == a.cfg.Spec.Seed, Applied: db.applied, Relay: db.relay, Logger: a.log,
		Others: func() []topo.SiteID {
			return slices.DeleteFunc(a.peers(), func(s topo.SiteID) bool { return s == origin })
		},
		Gone: func(s topo.SiteID) bool { o := a.document(); return !o.Takes(s) },
		Wants: func(s topo.SiteID, at change.Position) {
			if other := db.follows[s]; other != nil {
				other.Want(at)
			}
		},
		Open: func(ctx context.Context) (replicate.Sink, error) {
			if err := db.whole(); err != nil {
				return nil, fmt.Errorf("nothing is applied: %w", err)
			}
			sink, err := postgres.OpenApply(ctx, postgres.ApplyConfig{DSN: a.cfg.DSN, Site: a.site, Origin: origin, Tables: a.tables, Logger: a.log})
			if err != nil {
				return nil, err
			}
			return sink, nil
		},
	}
}

// passOpened tells gateways up to which version the fence is open.
func (a *agent) passOpened(ctx context.Context, keeper *lease.Keeper) error {
	for {
		change := keeper.Opened()
		if v := keeper.OpenedVersion(); v > 0 {
			a.hub.SetOpened(v)
		}
		select {
		case <-change:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// deadline is until when this site may accept writes, by this agent's leave. The document under which the lease was
// renewed is passed on before the lease is: gateways must not take a new lease for a leave under an old document.
func (a *agent) deadline() (time.Time, bool) {
	k := a.kept.Load()
	if k == nil {
		return time.Time{}, false
	}
	until, live := k.keeper.Deadline()
	if o := k.keeper.Ownership(); live && o.Version > 0 {
		a.hub.Publish(o)
	}
	return until, live
}

// standby says why this agent is not the site's active one; nil if it is.
func (a *agent) standby() error {
	if a.database.Load() != nil {
		return nil
	}
	k := a.kept.Load()
	if k == nil {
		return errors.New("the database is away: " + a.whyAway())
	}
	st := k.keeper.Status()
	if st.Doing == "standby" {
		return errors.New("this agent stands by: another agent of the site has its lease")
	}
	return fmt.Errorf("this agent does not have the site's lease yet (%s): %s", st.Doing, orNone(st.Problem))
}

// recorded is what the database says of its own progress, over one connection that is made anew when it breaks.
type recorded struct {
	dsn string
	mu  sync.Mutex
	db  *pgx.Conn
}

func (r *recorded) with(ctx context.Context, f func(*pgx.Conn) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for fresh := false; ; {
		if r.db == nil || r.db.IsClosed() {
			conf, err := pgx.ParseConfig(r.dsn)
			if err != nil {
				return err
			}
			conf.RuntimeParams["application_name"] = "atoll"
			if r.db, err = pgx.ConnectConfig(ctx, conf); err != nil {
				r.db = nil
				return fmt.Errorf("connect: %w", err)
			}
			fresh = true
		}
		err := f(r.db)
		if err == nil || !r.db.IsClosed() || fresh || ctx.Err() != nil {
			return err
		}
	}
}

// Vector is how far each origin's changes are applied.
func (r *recorded) Vector(ctx context.Context) (v topo.Vector, err error) {
	err = r.with(ctx, func(c *pgx.Conn) (err error) {
		v, err = postgres.Vector(ctx, c)
		return err
	})
	return v, err
}

// Marker looks for a closing marker.
func (r *recorded) Marker(ctx context.Context, site topo.SiteID, id topo.HandoverID) (m change.Marker, found bool, err error) {
	err = r.with(ctx, func(c *pgx.Conn) (err error) {
		m, found, err = postgres.Marker(ctx, c, site, id)
		return err
	})
	return m, found, err
}

func (r *recorded) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.db != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = r.db.Close(ctx)
	}
}
