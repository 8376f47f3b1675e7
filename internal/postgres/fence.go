package postgres

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// SchemaFormat is the version of the atoll schema that this build installs and the highest it works with.
const SchemaFormat = 1

// SQLSTATEs of a write that the fence refuses.
const (
	CodeNotOwned       = "AT001" // the site does not own the bucket, or its fence is closed for it
	CodeLeaseRunOut    = "AT002" // the site may accept no writes at present
	CodeTruncateFenced = "AT003" // TRUNCATE knows no bucket, so a fenced table refuses it
)

// Fence is the fence inside one site's database. Its methods are safe for concurrent use; every one is safe to
// repeat, and none opens anything by failing (I7).
type Fence struct {
	site  topo.SiteID
	conns *fenceConns

	// restricts is the last restriction that this Fence knows of, per keyspace. An opening carries it, so that an
	// opening that was decided before another agent took over is void. The lock keeps our own from crossing.
	restricts struct {
		sync.Mutex
		seen map[topo.KeyspaceID]int64
	}

	bound atomic.Pointer[topo.Identity] // the database that answered the last heartbeat; nil: none did
}

// BucketRow is the fence's own word on a bucket of its site. A bucket without one was never opened here.
type BucketRow struct {
	Bucket   topo.BucketID
	Epoch    topo.Epoch
	State    string // "open" or "closed"
	Handover topo.HandoverID
}

// FenceState is what the fence looks like at one moment.
type FenceState struct {
	Buckets map[topo.KeyspaceID]int         // how many buckets each installed keyspace has
	Bits    map[topo.KeyspaceID]topo.Spans  // buckets whose ownership bit is set
	Rows    map[topo.KeyspaceID][]BucketRow // this site's epoch rows, in order
	Lease   time.Time                       // the moment until which writes are accepted; zero if never set
	Clock   time.Time                       // the database's clock
	// Generation is the newest of the store that the database was told of; 0: none yet.
	Generation uint64
	Gaps       []string // partitions that TRUNCATE could empty; `atoll apply` closes them
}

// OpenFence connects to the site's database as the agent's role. It refuses a database that `atoll apply` has not
// prepared, or has prepared for another site or role.
func OpenFence(ctx context.Context, dsn string, site topo.SiteID) (*Fence, error) {
	conns, err := newFenceConns(dsn)
	if err != nil {
		return nil, err
	}
	f := &Fence{site: site, conns: conns}
	f.restricts.seen = map[topo.KeyspaceID]int64{}
	if err := conns.with(ctx, func(c *pgx.Conn) error { return f.check(ctx, c) }); err != nil {
		conns.close()
		return nil, fmt.Errorf("fence of site %s: %w", site, err)
	}
	return f, nil
}

// Close ends the fence's connections. The fence in the database stays as it is.
func (f *Fence) Close() { f.conns.close() }

func (f *Fence) check(ctx context.Context, c *pgx.Conn) error {
	var installed bool
	if err := c.QueryRow(ctx, `SELECT to_regclass('atoll.install') IS NOT NULL AND to_regclass('atoll.generation') IS NOT NULL`).Scan(&installed); err != nil {
		return err
	}
	if !installed {
		return errors.New("this database is not prepared, or by an older version; run `atoll apply`")
	}
	var format int
	var site topo.SiteID
	var role, user string
	err := c.QueryRow(ctx, `SELECT format, site, agent_role::text, current_user::text FROM atoll.install`).
		Scan(&format, &site, &role, &user)
	switch {
	case err != nil:
		return err
	case format > SchemaFormat:
		return fmt.Errorf("schema of format %d: %w", format, topo.ErrNewerFormat)
	case site != f.site:
		return fmt.Errorf("this database was prepared for site %s; check the DSN", site)
	case role != user:
		return fmt.Errorf("connected as role %q, but the fence lets only %q pass; use that role's DSN or run `atoll apply` again", user, role)
	}
	rows, err := c.Query(ctx, `SELECT name, restricts FROM atoll.keyspace`)
	if err != nil {
		return err
	}
	var ks topo.KeyspaceID
	var n int64
	_, err = pgx.ForEachRow(rows, []any{&ks, &n}, func() error {
		f.restricts.seen[ks] = n
		return nil
	})
	return err
}

// State reads the fence, in one round trip: an opening waits for it. Bits and the lease are not subject to snapshots, so
// they may be newer than the rows.
func (f *Fence) State(ctx context.Context) (FenceState, error) {
	var st FenceState
	err := f.conns.with(ctx, func(c *pgx.Conn) error {
		st = FenceState{
			Buckets: map[topo.KeyspaceID]int{}, Bits: map[topo.KeyspaceID]topo.Spans{},
			Rows: map[topo.KeyspaceID][]BucketRow{},
		}
		var all pgx.Batch
		st.readMoments(&all)
		st.readBits(&all)
		st.readRows(&all, f.site) // after the bits
		st.readGaps(&all)
		return c.SendBatch(ctx, &all).Close()
	})
	return st, f.wrap("state", err)
}

func (st *FenceState) readMoments(all *pgx.Batch) {
	all.Queue(`SELECT pg_sequence_last_value('atoll.lease'), clock_timestamp(), coalesce((SELECT generation FROM atoll.generation), 0)`).QueryRow(func(row pgx.Row) error {
		var lease *int64
		err := row.Scan(&lease, &st.Clock, &st.Generation)
		if err == nil && lease != nil {
			st.Lease = time.UnixMilli(*lease)
		}
		return err
	})
}

func (st *FenceState) readBits(all *pgx.Batch) {
	all.Queue(`SELECT k.name, k.buckets, w, coalesce(pg_sequence_last_value(atoll.word_of(k.id, w << 5)), 0)
		FROM atoll.keyspace k, generate_series(0, (k.buckets - 1) >> 5) w ORDER BY k.id, w`).Query(func(rows pgx.Rows) error {
		var ks topo.KeyspaceID
		var buckets, word int
		var bits int64
		_, err := pgx.ForEachRow(rows, []any{&ks, &buckets, &word, &bits}, func() error {
			st.Buckets[ks] = buckets
			for i := range 32 {
				if bits>>i&1 == 1 {
					st.Bits[ks] = spanAppend(st.Bits[ks], topo.BucketID(word*32+i))
				}
			}
			return nil
		})
		return err
	})
}

func (st *FenceState) readRows(all *pgx.Batch, site topo.SiteID) {
	all.Queue(`SELECT keyspace, bucket, epoch, state, handover FROM atoll.bucket WHERE site = $1 ORDER BY keyspace, bucket`, site).Query(func(rows pgx.Rows) error {
		var ks topo.KeyspaceID
		var r BucketRow
		_, err := pgx.ForEachRow(rows, []any{&ks, &r.Bucket, &r.Epoch, &r.State, &r.Handover}, func() error {
			st.Rows[ks] = append(st.Rows[ks], r)
			return nil
		})
		return err
	})
}

// readGaps names partitions of fenced tables without a truncate guard. Row guards are cloned to a new partition by the
// server, statement guards are not.
func (st *FenceState) readGaps(all *pgx.Batch) {
	all.Queue(`SELECT DISTINCT t.tgrelid::regclass::text FROM pg_trigger t
		WHERE t.tgfoid = to_regproc('atoll.check_commit')
		AND NOT EXISTS (SELECT FROM pg_trigger g WHERE g.tgrelid = t.tgrelid AND g.tgfoid = to_regproc('atoll.refuse_truncate'))
		ORDER BY 1`).Query(func(rows pgx.Rows) (err error) {
		st.Gaps, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
}

// spanAppend adds a bucket that is higher than all in the set.
func spanAppend(s topo.Spans, b topo.BucketID) topo.Spans {
	if n := len(s); n > 0 && s[n-1].Last+1 == b {
		s[n-1].Last = b
		return s
	}
	return append(s, topo.Span{First: b, Last: b})
}

// Restrict turns off every ownership bit that is not in keep, and makes void whatever opening was decided before by
// another agent of this site. Writers in flight are not waited for.
func (f *Fence) Restrict(ctx context.Context, keep map[topo.KeyspaceID]topo.Spans) error {
	words := make(map[topo.KeyspaceID][]uint32, len(keep))
	for ks, spans := range keep {
		words[ks] = wordsOf(spans)
	}
	f.restricts.Lock()
	defer f.restricts.Unlock()
	return f.wrap("restrict", f.conns.with(ctx, func(c *pgx.Conn) error {
		var seen map[topo.KeyspaceID]int64
		if err := c.QueryRow(ctx, `SELECT atoll.restrict($1)`, words).Scan(&seen); err != nil {
			return err
		}
		f.restricts.seen = seen
		return nil
	}))
}

// wordsOf packs a set into the fence's words of 32 buckets.
func wordsOf(spans topo.Spans) []uint32 {
	words := []uint32{}
	for _, sp := range spans {
		for b := sp.First; b <= sp.Last && b < topo.MaxBuckets; b++ {
			for len(words) <= int(b>>5) {
				words = append(words, 0)
			}
			words[b>>5] |= 1 << (b & 31)
		}
	}
	return words
}

// RecordOwners keeps the last known owners for the message of a refused write, and for nothing else.
func (f *Fence) RecordOwners(ctx context.Context, o topo.Ownership) error {
	type hint struct {
		Keyspace topo.KeyspaceID `json:"keyspace"`
		First    topo.BucketID   `json:"first"`
		Last     topo.BucketID   `json:"last"`
		Owner    topo.SiteID     `json:"owner"`
		Epoch    topo.Epoch      `json:"epoch"`
	}
	hints := []hint{}
	for ks, p := range o.Keyspaces {
		for _, r := range p.Ranges {
			hints = append(hints, hint{ks, r.First, r.Last, r.Owner, r.Epoch})
		}
	}
	return f.wrap("record owners", f.conns.with(ctx, func(c *pgx.Conn) error {
		_, err := c.Exec(ctx, `
			WITH want AS (SELECT * FROM jsonb_to_recordset($1::jsonb) AS w (keyspace text, first int, last int, owner text, epoch bigint)),
			gone AS (DELETE FROM atoll.owner o WHERE NOT EXISTS (SELECT FROM want w WHERE (w.keyspace, w.first) = (o.keyspace, o.first)))
			INSERT INTO atoll.owner AS o (keyspace, first, last, owner, epoch) SELECT keyspace, first, last, owner, epoch FROM want
			ON CONFLICT (keyspace, first) DO UPDATE SET last = excluded.last, owner = excluded.owner, epoch = excluded.epoch
			WHERE (o.last, o.owner, o.epoch) IS DISTINCT FROM (excluded.last, excluded.owner, excluded.epoch)`, hints)
		return err
	}))
}

func (f *Fence) wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("fence of site %s: %s: %w", f.site, what, err)
}
