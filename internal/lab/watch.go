package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// lag is how far a site is behind the others, from the databases' own witnesses.
type lag struct {
	rows int
	age  time.Duration // of the oldest change that is not here yet; only with two sites
}

// lags measures every site.
func (d *Deployment) lags(ctx context.Context) (map[topo.SiteID]lag, error) {
	born, applied := map[topo.SiteID]int{}, map[topo.SiteID]int{}
	for _, site := range d.opts.Sites {
		err := d.onDatabase(ctx, site, func(db *pgx.Conn) (err error) {
			born[site], applied[site], err = progressOf(ctx, db)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	out := map[topo.SiteID]lag{}
	for _, site := range d.opts.Sites {
		l := lag{rows: -applied[site]}
		var other topo.SiteID
		for s, n := range born {
			if s != site {
				l.rows += n
				other = s
			}
		}
		l.rows = max(l.rows, 0) // the databases were not asked at one moment
		if l.rows > 0 && len(d.opts.Sites) == 2 {
			err := d.onDatabase(ctx, other, func(db *pgx.Conn) error {
				at, err := bornAt(ctx, db, applied[site])
				if err == nil && !at.IsZero() {
					l.age = time.Since(at)
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		out[site] = l
	}
	return out, nil
}

// display shows requests, errors and lag per site, once a second.
func (m *demo) display(ctx context.Context) error {
	tail := historyTail{path: m.historyFile(), bySite: map[topo.SiteID]*Counts{}}
	before := map[topo.SiteID]Counts{}
	last := time.Now()
	tick := time.NewTicker(time.Second)
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
			behind := "lag unknown" // the database does not answer
			if l := lags[site]; lagErr == nil {
				behind = fmt.Sprintf("%d rows (%d ms) behind", l.rows, l.age.Milliseconds())
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
