package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// The clock of a site's database is set forwards by three leases, back by half a lease, and back by four, while the site
// serves. Forwards its fence closes early, until the next renewal. Backwards the fence's moment lies too far ahead: the
// keeper has to close everything at its next look; the last time it is killed two looks later, so that nobody can mend what it
// did not do, and another site takes over while a fence that still went by its moment would be open.
//
// The times in that database are by its clock. The lab knows each step, and which transactions came before it and
// which behind it (their snapshots), so it gives each row of evidence its true time. K1 by these times finds a commit of
// the site behind the opening of another one; the writer beside the gateways makes such commits, if the fence lets it. K3
// finds what is lost, K4 what clients could tell of two owners at once.
func TestDatabaseClockStepped(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	alone(t)
	clock := newSetClock(t, "a")
	w := ownWorld(ctx, t, Options{databaseEnv: clock.env})
	w.clock = clock
	w.play(ctx, func(ctx context.Context, w *faultWorld) {
		writers := w.beside(ctx, clock.site)
		defer writers.stop()
		saysOf := func(what string) {
			w.eventually(ctx, "its agent says that the clock was "+what, func() bool {
				st, err := w.d.status(ctx, clock.site)
				if err != nil {
					return false
				}
				for _, s := range st.Sites {
					if s.Site == clock.site && s.Keeper != nil && strings.HasPrefix(s.Keeper.Clock, what) {
						w.t.Logf("its agent says: %s", s.Keeper.Clock)
						return true
					}
				}
				return false
			})
		}
		w.must(rest(ctx, time.Second))
		w.must(clock.step(ctx, w.d, w.leases(3)))
		saysOf("set forward by")
		w.must(rest(ctx, w.leases(1)))
		w.must(clock.step(ctx, w.d, w.leases(-0.5)))
		saysOf("set back by")
		w.must(rest(ctx, w.leases(1)))
		w.settledAndShared(ctx)

		w.must(clock.step(ctx, w.d, w.leases(-4)))
		w.must(rest(ctx, w.leases(2)/3)) // a keeper looks three times a lease
		w.must(w.d.Processes.Kill(string(clock.site) + "/agent"))
		w.eventually(ctx, "another site has taken over", func() bool { return w.lostBy(ctx, clock.site) != "" })
		w.must(rest(ctx, w.leases(4))) // as long as the moment would have lasted
		w.settledAndShared(ctx)
		writers.stop()
		w.must(clock.step(ctx, w.d, -clock.offset()))
	})
}

// setClock is the clock of one site's database, which the lab sets (libfaketime).
type setClock struct {
	site    topo.SiteID
	library string
	file    string
	steps   []clockStep
}

type clockStep struct {
	at     time.Time
	offset time.Duration // of the database's clock from then on
	before snapshot      // of that database, before the step
	after  uint32        // transactions from here on began behind the step
}

func newSetClock(t *testing.T, site topo.SiteID) *setClock {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/*/faketime/libfaketime.so.1")
	if err != nil || len(found) == 0 {
		t.Fatal("libfaketime is not there; install it with: apt-get install -y faketime")
	}
	dir, err := pgserver.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := &setClock{site: site, library: found[0], file: filepath.Join(dir, "clock")}
	if err := c.write(0); err != nil {
		t.Fatal(err)
	}
	return c
}

// env has the server look at the file whenever it looks at the clock.
func (c *setClock) env(site topo.SiteID) []string {
	if site != c.site {
		return nil
	}
	return []string{"LD_PRELOAD=" + c.library, "FAKETIME_TIMESTAMP_FILE=" + c.file, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"}
}

func (c *setClock) write(offset time.Duration) error {
	next := c.file + ".next"
	if err := os.WriteFile(next, fmt.Appendf(nil, "%+.3f\n", offset.Seconds()), 0o644); err != nil {
		return err
	}
	return os.Rename(next, c.file)
}

// offset is by how much the clock is ahead.
func (c *setClock) offset() time.Duration {
	if len(c.steps) == 0 {
		return 0
	}
	return c.steps[len(c.steps)-1].offset
}

// step sets the clock by some time, and makes sure that the database goes by it.
func (c *setClock) step(ctx context.Context, d *Deployment, by time.Duration) error {
	s := clockStep{offset: c.offset() + by}
	return d.onDatabase(ctx, c.site, func(db *pgx.Conn) (err error) {
		if s.before, err = readSnapshot(ctx, db); err != nil {
			return err
		}
		if err = c.write(s.offset); err != nil {
			return err
		}
		s.at = time.Now()
		var after uint64 // not a snapshot's: that may end below transactions that are under way
		if err = db.QueryRow(ctx, "SELECT pg_current_xact_id()::text::bigint").Scan(&after); err != nil {
			return err
		}
		s.after = uint32(after)
		c.steps = append(c.steps, s)
		var there time.Time
		if err = db.QueryRow(ctx, "SELECT clock_timestamp()").Scan(&there); err != nil {
			return err
		}
		if off := time.Until(there) - s.offset; off.Abs() > 200*time.Millisecond {
			return fmt.Errorf("the database's clock was set to %v from the machine's and is another %v off", s.offset, off)
		}
		return nil
	})
}

// snapshot is PostgreSQL's: which transactions are over.
type snapshot struct {
	next uint32 // those from here on are not
	open []uint32
}

func readSnapshot(ctx context.Context, db *pgx.Conn) (s snapshot, err error) {
	var text string
	if err := db.QueryRow(ctx, "SELECT pg_current_snapshot()::text").Scan(&text); err != nil {
		return s, err
	}
	parts := strings.Split(text, ":")
	if len(parts) != 3 {
		return s, fmt.Errorf("snapshot %q", text)
	}
	number := func(text string) uint32 {
		n, e := strconv.ParseUint(text, 10, 64)
		if e != nil {
			err = fmt.Errorf("snapshot %q: %w", text, e)
		}
		return uint32(n)
	}
	s.next = number(parts[1])
	if parts[2] != "" {
		for xid := range strings.SplitSeq(parts[2], ",") {
			s.open = append(s.open, number(xid))
		}
	}
	return s, err
}

func (s snapshot) over(xid uint32) bool { return xid < s.next && !slices.Contains(s.open, xid) }

// correct gives the evidence of that database its true times.
func (c *setClock) correct(e *Evidence) {
	for i := range e.Changes {
		if ch := &e.Changes[i]; ch.Database == c.site {
			ch.At = c.trueTime(ch.XID, ch.At)
		}
	}
	for i := range e.Epochs {
		if r := &e.Epochs[i]; r.Database == c.site {
			r.At = c.trueTime(r.XID, r.At)
		}
	}
}

// trueTime is the true time of what a transaction read from the clock at its end. One that was under way at a step ended near it:
// transactions are short, and steps are not.
func (c *setClock) trueTime(xid uint32, at time.Time) time.Time {
	var offset time.Duration
	for _, s := range c.steps {
		if s.before.over(xid) {
			return at.Add(-offset)
		}
		if xid < s.after {
			then, now := at.Add(-offset), at.Add(-s.offset)
			if then.Sub(s.at).Abs() < now.Sub(s.at).Abs() {
				return then
			}
			return now
		}
		offset = s.offset
	}
	return at.Add(-offset)
}

func TestSetClock_KnowsTrueTimes(t *testing.T) {
	t.Parallel()
	at := func(seconds float64) time.Time { return time.UnixMicro(int64(seconds * 1e6)) }
	c := &setClock{steps: []clockStep{
		{at: at(100), offset: 9 * time.Second, before: snapshot{next: 20, open: []uint32{15}}, after: 22},
		{at: at(200), offset: -3 * time.Second, before: snapshot{next: 40}, after: 40},
	}}
	for _, tc := range []struct {
		xid        uint32
		read, want float64
		why        string
	}{
		{10, 99, 99, "before the first step"},
		{15, 99.9, 99.9, "under way at the step, and ended before it"},
		{15, 109.1, 100.1, "under way at the step, and ended behind it"},
		{21, 109.2, 100.2, "began at the step"},
		{22, 150, 141, "between the steps"},
		{39, 208.9, 199.9, "before the second step"},
		{40, 197.5, 200.5, "behind the second step, at a time that was before"},
	} {
		if got := c.trueTime(tc.xid, at(tc.read)); got.Sub(at(tc.want)).Abs() > time.Millisecond {
			t.Errorf("%s: transaction %d at %.1f was at %v, want %.1f", tc.why, tc.xid, tc.read, float64(got.UnixMicro())/1e6, tc.want)
		}
	}
}
