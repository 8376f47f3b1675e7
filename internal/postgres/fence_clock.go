package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

// ErrWentBack: the database's heartbeat counter is lower than it once was. See [WentBackError].
var ErrWentBack = errors.New("the database went back in time")

// WentBackError says that a database has the right identity and an old content: a copy that was restored without
// recovery, or a snapshot of its disk. Nothing was written to it.
type WentBackError struct {
	Beat  uint64 // its counter
	After uint64 // where the counter once was
}

func (e *WentBackError) Error() string {
	return fmt.Sprintf("the database went back in time: its heartbeat counter stands at %d and was at %d before", e.Beat, e.After)
}

func (e *WentBackError) Unwrap() error { return ErrWentBack }

// Pulse is what a heartbeat proves and shows.
type Pulse struct {
	Database topo.Identity
	Beat     uint64    // the counter behind this beat
	Clock    time.Time // the database's clock, read between the call and its return
	// Reached is the highest that the database's clock is known to have been, or known to have been relied on. It is
	// durable: a clock below it was set back, perhaps while nobody looked.
	Reached time.Time
}

// Behind is how far the database's clock stands below what it once was; 0 if it does not.
func (p Pulse) Behind() time.Duration { return max(p.Reached.Sub(p.Clock), 0) }

// Heartbeat completes a durable write, the proof that the database under a live agent is alive too, and says which
// database that was. From here on [Fence.ExtendLease] works with that database only. A database whose counter is below
// after is left alone: the error is a [WentBackError], and the pulse still names the database.
func (f *Fence) Heartbeat(ctx context.Context, after uint64) (Pulse, error) {
	var p Pulse
	err := f.conns.with(ctx, func(c *pgx.Conn) (err error) {
		if p.Database, err = identityOf(ctx, c); err != nil {
			return err
		}
		p.Beat, p.Clock, p.Reached, err = beat(ctx, c, after)
		return err
	})
	if err == nil {
		f.bound.Store(&p.Database)
	}
	return p, f.wrap("heartbeat", err)
}

// beat raises the counter in one durable statement. The row's time never falls.
func beat(ctx context.Context, c *pgx.Conn, after uint64) (n uint64, clock, reached time.Time, err error) {
	if after > math.MaxInt64 {
		return 0, clock, reached, fmt.Errorf("a heartbeat counter of %d does not exist", after)
	}
	err = c.QueryRow(ctx, `INSERT INTO atoll.heartbeat AS h (id, beat)
		SELECT 1, 1 WHERE $1::bigint = 0 OR EXISTS (SELECT FROM atoll.heartbeat)
		ON CONFLICT (id) DO UPDATE SET beat = h.beat + 1, at = greatest(h.at, clock_timestamp()) WHERE h.beat >= $1
		RETURNING beat, clock_timestamp(), at`, int64(after)).Scan(&n, &clock, &reached)
	if !errors.Is(err, pgx.ErrNoRows) {
		return n, clock, reached, err
	}
	old := &WentBackError{After: after}
	err = c.QueryRow(ctx, `SELECT coalesce((SELECT beat FROM atoll.heartbeat), 0)`).Scan(&old.Beat)
	if err == nil {
		err = old
	}
	return 0, clock, reached, err
}

// Identity tells this database apart from clones, restored copies and promoted standbys. A standby has none.
func (f *Fence) Identity(ctx context.Context) (topo.Identity, error) {
	var id topo.Identity
	err := f.conns.with(ctx, func(c *pgx.Conn) (err error) {
		id, err = identityOf(ctx, c)
		return err
	})
	return id, f.wrap("identity", err)
}

// walFileNow begins with the timeline; the control file's would lag behind a promotion.
const walFileNow = `CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END`

func identityOf(ctx context.Context, c *pgx.Conn) (id topo.Identity, err error) {
	var standby bool
	var system, walFile *string
	err = c.QueryRow(ctx, `SELECT pg_is_in_recovery(), system_identifier::text, `+walFileNow+` FROM pg_control_system()`).Scan(&standby, &system, &walFile)
	switch {
	case err != nil:
		return id, err
	case standby:
		return id, errors.New("the database is a standby; the agent's DSN must lead to the primary")
	case system == nil || walFile == nil || len(*walFile) < 8:
		return id, errors.New("the database does not tell its system identifier and timeline")
	}
	timeline, err := strconv.ParseUint((*walFile)[:8], 16, 32)
	return topo.Identity{System: *system, Timeline: uint32(timeline)}, err
}

// DistrustClock turns every ownership bit off, and keeps the fence's last moment as the time that the clock has to pass
// before a [Pulse] is not Behind any more: that moment was counted on a clock that has since been set back, or stood
// still, so it comes later than was meant.
func (f *Fence) DistrustClock(ctx context.Context) error {
	if err := f.Restrict(ctx, nil); err != nil {
		return err
	}
	return f.wrap("distrust the clock", f.conns.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, `UPDATE atoll.heartbeat
			SET at = greatest(at, to_timestamp(pg_sequence_last_value('atoll.lease'::regclass) / 1000.0))`)
		return err
	}))
}

// ForgetMoments begins anew on the database's clock as it is: every ownership bit is turned off, the lease moment is
// taken back, and what the clock once was does not count. It is for a site that owns nothing.
func (f *Fence) ForgetMoments(ctx context.Context) error {
	if err := f.Restrict(ctx, nil); err != nil {
		return err
	}
	return f.wrap("forget moments", f.conns.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, ForgetMomentsSQL)
		return err
	}))
}

// ForgetMomentsSQL is what an administrator may run where the database's clock was wrong before and is right now, and
// no other site can take over in the meantime.
const ForgetMomentsSQL = `SELECT setval('atoll.lease', 0) FROM atoll.install FOR UPDATE; UPDATE atoll.heartbeat SET at = clock_timestamp()`

// ExtendLease makes the database accept writes until deadline (which must carry a monotonic reading) less margin. It
// does so only in the database that answered the last heartbeat, whatever the DSN leads to by now; before the first, in any.
//
// It reads the database's clock first and this process's second, so the moment it writes is a constant that errs on
// the early side; a statement that arrives late can only write an old moment. Moments only grow, except that one
// which lies beyond everything that could have been meant is taken back: then the database's clock was set back.
func (f *Fence) ExtendLease(ctx context.Context, deadline time.Time, margin time.Duration) error {
	bound := f.bound.Load()
	return f.wrap("extend lease", f.conns.with(ctx, func(c *pgx.Conn) error {
		id := bound
		if id == nil { // nobody keeps a lease here
			asked, err := identityOf(ctx, c)
			if err != nil {
				return err
			}
			id = &asked
		}
		var clock float64
		if err := c.QueryRow(ctx, `SELECT date_part('epoch', clock_timestamp()) * 1000`).Scan(&clock); err != nil {
			return err
		}
		lead := time.Until(deadline) - margin
		if lead <= 0 {
			return fmt.Errorf("the deadline passed %s before it could be written", -lead)
		}
		moment := int64(math.Floor(clock)) + lead.Milliseconds()
		var outcome string
		// Sent as text each time: whoever watches the connection can tell it from everything else.
		err := c.QueryRow(ctx, extendSQL(*id, moment, lead.Milliseconds()), pgx.QueryExecModeSimpleProtocol).Scan(&outcome)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return fmt.Errorf("the database is not %s any more", *id)
		case err != nil:
			return err
		case outcome == "lowered":
			slog.Warn("the database's lease moment lay further ahead than could be meant, and was taken back", "site", f.site, "until", time.UnixMilli(moment))
		}
		return nil
	}))
}

// extendSQL writes the moment if the database is the one that is meant.
func extendSQL(id topo.Identity, moment, lead int64) string {
	at := strconv.FormatInt(moment, 10)
	if plant.LeaseRelative {
		at = fmt.Sprintf("(date_part('epoch', clock_timestamp()) * 1000)::bigint + %d", lead)
	}
	return fmt.Sprintf(`/* atoll.lease */ SELECT atoll.extend_lease(%s, %d) FROM pg_control_system() WHERE system_identifier::text = %s AND starts_with(%s, '%08X')`,
		at, lead, sqlLiteral(id.System), walFileNow, id.Timeline)
}
