package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// share gives each site the same part of the users, and the first one the catalogue: every episode begins so, that it may
// be played again alone.
func (r *random) share(ctx context.Context) error {
	n := len(r.opts.Sites)
	for i, site := range r.opts.Sites {
		part := topo.Spans{{First: topo.BucketID(i * r.opts.Buckets / n), Last: topo.BucketID((i+1)*r.opts.Buckets/n - 1)}}
		if err := r.bring(ctx, users, part, site); err != nil {
			return err
		}
	}
	return r.bring(ctx, catalog, topo.Spans{{First: 0, Last: 0}}, r.opts.Sites[0])
}

// bring moves buckets to a site from whoever has them, and tries again where that is refused, bounded.
func (r *random) bring(ctx context.Context, ks topo.KeyspaceID, buckets topo.Spans, to topo.SiteID) error {
	bounded, cancel := context.WithTimeout(ctx, settleBound)
	defer cancel()
	var last error
	err := every(bounded, 500*time.Millisecond, func() (bool, error) {
		var owners map[topo.SiteID]topo.Spans
		if owners, last = r.d.owners(bounded, ks); last != nil {
			return false, nil
		}
		done := true
		for _, from := range slices.Sorted(maps.Keys(owners)) {
			there := slices.DeleteFunc(owners[from].Buckets(), func(b topo.BucketID) bool { return !buckets.Contains(b) })
			if from == to || len(there) == 0 {
				continue
			}
			done = false
			_, last = r.d.Atoll(bounded, "switch", "--keyspace", string(ks), "--buckets", topo.SpansOf(there...).String(), "--to", string(to), "--why", "before an episode")
		}
		return done, nil
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("lab: %s of %s cannot be brought to %s: %w; last: %w", buckets, ks, to, err, last)
	}
	return ctx.Err()
}

// emptyShop takes away what the episode bought and wrote, at each owner as a job of the application's own would, and waits
// until that is everywhere. So an hour of episodes is no larger than one, seats do not run out, and every register and
// list begins the next one empty.
func (r *random) emptyShop(ctx context.Context) error {
	owners, err := r.d.owners(ctx, users)
	if err != nil {
		return err
	}
	homes, err := r.d.owners(ctx, catalog)
	if err != nil {
		return err
	}
	for _, site := range r.opts.Sites {
		if err := r.emptyAt(ctx, site, owners[site], homes[site].Len() > 0); err != nil {
			return fmt.Errorf("lab: empty the shop at %s: %w", site, err)
		}
	}
	return r.rest(ctx)
}

func (r *random) emptyAt(ctx context.Context, site topo.SiteID, owned topo.Spans, catalogue bool) error {
	db, err := pgx.Connect(ctx, r.d.databases[site].CallerDSN(shopRole, database))
	if err != nil {
		return err
	}
	defer db.Close(context.WithoutCancel(ctx))
	rows, err := db.Query(ctx, "SELECT id::text FROM customers")
	if err != nil {
		return err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	var mine []string
	for _, c := range all {
		if owned.Contains(bucketOf(c, r.opts.Buckets)) {
			mine = append(mine, c)
		}
	}
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		for _, sql := range []string{
			"DELETE FROM outbox WHERE customer_id = ANY($1::uuid[])",
			"DELETE FROM payments WHERE customer_id = ANY($1::uuid[])",
			"DELETE FROM orders WHERE customer_id = ANY($1::uuid[])",
			"UPDATE customers SET orders_count = 0, address = '', wishes = '{}' WHERE id = ANY($1::uuid[]) AND (orders_count > 0 OR address <> '' OR wishes <> '{}')",
		} {
			if _, err := tx.Exec(ctx, sql, mine); err != nil {
				return err
			}
		}
		if !catalogue {
			return nil
		}
		_, err := tx.Exec(ctx, "UPDATE seats SET reserved_by = NULL, reserved_for = NULL, reserved_until = NULL, sold_to = NULL WHERE reserved_by IS NOT NULL")
		return err
	})
}
