package postgres

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// BucketPlace is where a database stands in the history of a bucket: it has all epochs before Epoch, and of Epoch what
// Owner has put into its change stream up to Position. Epoch 0: it knows nothing of the bucket.
type BucketPlace struct {
	Keyspace topo.KeyspaceID
	Bucket   topo.BucketID
	Epoch    topo.Epoch
	Owner    topo.SiteID
	Position change.Position
}

// End is the end of this database's log, as a position of its change stream: nothing that was committed before the call
// lies beyond.
func (f *Fence) End(ctx context.Context) (change.Position, error) {
	var end int64
	err := f.conns.with(ctx, func(c *pgx.Conn) error {
		return c.QueryRow(ctx, `SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&end)
	})
	return change.Position(end), f.wrap("end", err)
}

// Places fills in where this database stands for buckets: nothing that any transaction has shown before the call lies
// beyond. sites are all that may own. For this site's own buckets that is the end of its log, which is at or behind the
// end of the last commit.
func (f *Fence) Places(ctx context.Context, buckets []BucketPlace, sites []topo.SiteID) error {
	keyspaces, numbers := make([]string, len(buckets)), make([]int32, len(buckets))
	for i, b := range buckets {
		keyspaces[i], numbers[i] = string(b.Keyspace), int32(b.Bucket)
	}
	names := make([]string, len(sites))
	for i, s := range sites {
		names[i] = string(s)
	}
	// One statement, so one snapshot. A transaction whose ordinary rows are here before its stale ones counts.
	return f.wrap("places", f.conns.with(ctx, func(c *pgx.Conn) error {
		rows, err := c.Query(ctx, `
			SELECT w.n, coalesce(b.epoch, 0), coalesce(b.site, ''),
			       coalesce(CASE WHEN b.site = $4 THEN (pg_current_wal_insert_lsn() - '0/0')::bigint
			                     ELSE (SELECT greatest(p.position, p.split) FROM atoll.progress p WHERE p.origin = b.site) END, 0)
			FROM unnest($1::text[], $2::int[]) WITH ORDINALITY w(keyspace, bucket, n)
			LEFT JOIN LATERAL (SELECT o.epoch, o.site FROM unnest($3::text[]) s(site)
			  CROSS JOIN LATERAL (SELECT b.epoch, b.site FROM atoll.bucket b
			    WHERE b.site = s.site AND b.keyspace = w.keyspace AND b.bucket = w.bucket OFFSET 0) o
			  ORDER BY o.epoch DESC LIMIT 1) b ON true`, keyspaces, numbers, names, string(f.site))
		if err != nil {
			return err
		}
		var n, epoch, position int64
		var site string
		_, err = pgx.ForEachRow(rows, []any{&n, &epoch, &site, &position}, func() error {
			b := &buckets[n-1]
			b.Epoch, b.Owner, b.Position = topo.Epoch(epoch), topo.SiteID(site), change.Position(position)
			return nil
		})
		return err
	}))
}
