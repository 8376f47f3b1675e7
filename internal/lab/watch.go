package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// lag is how far a site is behind the others, from the databases' own witnesses.
type lag struct {
	rows int
	age  time.Duration // of the oldest change that is not here yet
}

// lags measures every site. What a site has of another is told by the commit time of what it took last; a count of
// rows would stay wrong for ever where a stale change was decided and not applied.
func (d *Deployment) lags(ctx context.Context) (map[topo.SiteID]lag, error) {
	d.watch.Lock()
	defer d.watch.Unlock()
	if d.watch.conns == nil {
		d.watch.conns = map[topo.SiteID]*pgx.Conn{}
	}
	has := map[Way]time.Time{} // From's changes at To
	for _, site := range d.opts.Sites {
		err := d.onWatched(ctx, site, func(db *pgx.Conn) error {
			var origin topo.SiteID
			var at *time.Time
			return eachRow(ctx, db, `SELECT origin, committed_at FROM atoll.progress`, []any{&origin, &at}, func() error {
				if at != nil {
					has[Way{origin, site}] = *at
				}
				return nil
			})
		})
		if err != nil {
			return nil, err
		}
	}
	out := map[topo.SiteID]lag{}
	for _, site := range d.opts.Sites {
		err := d.onWatched(ctx, site, func(db *pgx.Conn) error {
			if err := sumUp(ctx, db); err != nil {
				return err
			}
			for _, other := range d.opts.Sites {
				if other == site {
					continue
				}
				rows, oldest, err := bornAfter(ctx, db, has[Way{site, other}])
				if err != nil {
					return err
				}
				l := out[other]
				l.rows += rows
				if rows > 0 {
					l.age = max(l.age, time.Since(oldest))
				}
				out[other] = l
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// onWatched is onDatabase for what looks again and again: the connection is kept. The caller holds d.watch.
func (d *Deployment) onWatched(ctx context.Context, site topo.SiteID, f func(*pgx.Conn) error) error {
	db := d.watch.conns[site]
	if db == nil || db.Ping(ctx) != nil {
		var err error
		if db, err = pgx.Connect(ctx, d.databases[site].CallerDSN(pgserver.Superuser, database)); err != nil {
			return fmt.Errorf("database of site %s: %w", site, err)
		}
		d.watch.conns[site] = db
	}
	if err := f(db); err != nil {
		return fmt.Errorf("database of site %s: %w", site, err)
	}
	return nil
}

// bornAfter counts the row changes that a database has committed itself after a moment, and says when the first of
// them was committed. One that was written a few seconds before may have been committed behind it.
func bornAfter(ctx context.Context, db querier, t time.Time) (n int, oldest time.Time, err error) {
	rows, err := db.Query(ctx, `SELECT count(*), coalesce(min(committed), now()) FROM lab.change
		WHERE NOT applied AND at > $1::timestamptz - interval '5 seconds' AND committed > $1`, t)
	if err != nil {
		return 0, time.Time{}, err
	}
	_, err = pgx.ForEachRow(rows, []any{&n, &oldest}, func() error { return nil })
	return n, oldest, err
}

// display shows requests, errors and lag per site, once a second where somebody watches.
func (m *demo) display(ctx context.Context) error {
	tail := historyTail{path: m.historyFile(), bySite: map[topo.SiteID]*Counts{}}
	before := map[topo.SiteID]Counts{}
	last := time.Now()
	interval := time.Second
	if !m.screen.tty {
		interval = plainEvery
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := tail.poll(); err != nil {
			return fmt.Errorf("lab: history: %w", err)
		}
		lags, lagErr := m.d.lags(ctx)
		since := time.Since(last).Seconds()
		last = time.Now()
		var lines []string
		for _, site := range m.opts.Sites {
			now := Counts{}
			if c := tail.bySite[site]; c != nil {
				now = *c
			}
			rate := float64(now.Total()-before[site].Total()) / since
			before[site] = now
			failed := fmt.Sprintf("%d failed", now.Failed)
			if now.Failed > 0 {
				failed = m.screen.paint(yellow, failed)
			}
			behind := "lag unknown" // a database does not answer
			if l := lags[site]; lagErr == nil {
				behind = fmt.Sprintf("%d rows (%d ms) behind", l.rows, l.age.Milliseconds())
			}
			if m.isLost(site) {
				behind = m.screen.paint(red, "dead")
			}
			lines = append(lines, fmt.Sprintf("site %s  %5.0f requests/s  %s  %d held  %s", site, rate, failed, now.Held, behind))
		}
		m.screen.live(lines)
	}
}

// stallStep is how often watchStalls looks at the clock.
const stallStep = 50 * time.Millisecond

// watchStalls measures for how long this process was not run although it wanted to be: on an overloaded machine
// everything else stood still then, too, and time-outs and leases ran on.
func (m *demo) watchStalls(ctx context.Context) {
	tick := time.NewTicker(stallStep)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		m.mu.Lock()
		m.stall = max(m.stall, now.Sub(last)-stallStep)
		m.mu.Unlock()
		last = now
	}
}
