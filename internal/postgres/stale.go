package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

// tailCut is where a lost site's epochs of one bucket end: what it committed at the epoch or below, beyond the
// position, is stale (I5).
type tailCut struct {
	epoch    topo.Epoch
	position change.Position
	handover topo.HandoverID
	before   uint64 // every transaction here with a lower id had ended when the cut was recorded
}

// cutSet are the cuts of one origin behind which stale changes may still come, of a bucket one for each time at which it
// was lost. Empty at all times but after a failover.
type cutSet map[topo.KeyspaceID]map[topo.BucketID][]tailCut

// readCuts reads an origin's cuts. A bucket's cut has had its say once the origin has closed the bucket at that epoch,
// or has opened it at a later one: nothing of the epoch stands behind that in its stream.
func readCuts(ctx context.Context, db queryer, origin topo.SiteID) (cutSet, error) {
	rows, err := db.Query(ctx, `SELECT c.keyspace, c.bucket, c.epoch, c.position, c.handover, c.before FROM atoll.cut c WHERE c.origin = $1 AND (c.mine OR NOT $2)
		AND NOT EXISTS (SELECT FROM atoll.bucket b WHERE (b.site, b.keyspace, b.bucket) = (c.origin, c.keyspace, c.bucket)
			AND (b.epoch > c.epoch OR b.epoch = c.epoch AND b.state = 'closed'))`, string(origin), plant.CutIgnored)
	if err != nil {
		return nil, fmt.Errorf("read atoll.cut: %w", err)
	}
	var cuts cutSet
	var ks, handover string
	var bucket, epoch, position, before int64
	_, err = pgx.ForEachRow(rows, []any{&ks, &bucket, &epoch, &position, &handover, &before}, func() error {
		if bucket < 0 || bucket >= topo.MaxBuckets || epoch < 0 || position < 0 || before < 0 {
			return fmt.Errorf("row of atoll.cut: keyspace %s, bucket %d, epoch %d", ks, bucket, epoch)
		}
		if cuts == nil {
			cuts = cutSet{}
		}
		in := cuts[topo.KeyspaceID(ks)]
		if in == nil {
			in = map[topo.BucketID][]tailCut{}
			cuts[topo.KeyspaceID(ks)] = in
		}
		in[topo.BucketID(bucket)] = append(in[topo.BucketID(bucket)], tailCut{topo.Epoch(epoch), change.Position(position), topo.HandoverID(handover), uint64(before)})
		return nil
	})
	return cuts, err
}

func (c cutSet) of(ks topo.KeyspaceID, b topo.BucketID, e topo.Epoch, at change.Position) (tailCut, bool) {
	for _, cut := range c[ks][b] {
		if e <= cut.epoch && at > cut.position {
			return cut, true
		}
	}
	return tailCut{}, false
}

// stale gives the cut that makes a row change stale, by its new bucket or its old one.
func (c cutSet) stale(row *change.Row, at change.Position) (tailCut, bool) {
	if plant.EpochIgnored || row.Keyspace == "" || row.Op == change.Truncate {
		return tailCut{}, false
	}
	if row.New != nil {
		if cut, ok := c.of(row.Keyspace, row.NewBucket, row.NewEpoch, at); ok {
			return cut, true
		}
	}
	if row.Op == change.Insert {
		return tailCut{}, false
	}
	return c.of(row.Keyspace, row.OldBucket, row.OldEpoch, at)
}

// reach tells whether a transaction that ends there may have stale rows.
func (c cutSet) reach(at change.Position) bool {
	for ks := range c {
		if c.blur(&change.Row{Keyspace: ks}, at) {
			return true
		}
	}
	return false
}

// inTail tells whether a transaction has stale rows, and must be decided.
func (c cutSet) inTail(tx *change.Tx) bool {
	for i := range tx.Rows {
		row := &tx.Rows[i]
		if _, ok := c.stale(row, tx.Position); ok || row.Op == change.Truncate && c.blur(row, tx.Position) {
			return true
		}
	}
	return false
}

// blur: a truncate of a table that a cut goes through. It speaks of no bucket, so nobody can say what of it is stale.
func (c cutSet) blur(row *change.Row, at change.Position) bool {
	for _, cuts := range c[row.Keyspace] {
		if slices.ContainsFunc(cuts, func(cut tailCut) bool { return at > cut.position }) {
			return true
		}
	}
	return false
}

// tailUnit is what is decided as one: a transaction's stale rows of one bucket, or of several that a row's key crosses.
type tailUnit struct {
	rows   []*tailRow
	places []tailPlace // the buckets that have a cut
	gone   bool        // the buckets went on to another site, which decides
	keep   bool
	reason string // why it is kept
}

type tailPlace struct {
	keyspace topo.KeyspaceID
	bucket   topo.BucketID
}

// tailRow is a stale row change.
type tailRow struct {
	at     int // in the transaction
	row    *change.Row
	cut    tailCut
	unit   *tailUnit
	target *applyTarget
}

// tail is a transaction taken apart.
type tail struct {
	tx       *change.Tx
	ordinary []change.Row
	rows     []*tailRow // in the transaction's order
	units    []*tailUnit
}

var errTailTruncate = errors.New("a TRUNCATE among the changes that the lost site committed beyond the cut: which of its rows are stale cannot be told; " +
	"decide by hand what becomes of the table, then take the origin's copy anew")

// takeApart separates ordinary rows from stale ones and groups these.
func (c cutSet) takeApart(tx *change.Tx) (*tail, error) {
	t := &tail{tx: tx}
	unitOf := map[tailPlace]*tailUnit{}
	for i := range tx.Rows {
		row := &tx.Rows[i]
		if row.Op == change.Truncate && c.blur(row, tx.Position) {
			return nil, errTailTruncate
		}
		cut, ok := c.stale(row, tx.Position)
		if !ok {
			t.ordinary = append(t.ordinary, *row)
			continue
		}
		var at []tailPlace
		if row.New != nil {
			at = append(at, tailPlace{row.Keyspace, row.NewBucket})
		}
		if row.Op != change.Insert && (row.New == nil || row.OldBucket != row.NewBucket) {
			at = append(at, tailPlace{row.Keyspace, row.OldBucket})
		}
		unit := t.unit(unitOf, at)
		for _, p := range at {
			if _, ok := c[p.keyspace][p.bucket]; ok && !slices.Contains(unit.places, p) {
				unit.places = append(unit.places, p)
			}
		}
		r := &tailRow{at: i, row: row, cut: cut, unit: unit}
		unit.rows, t.rows = append(unit.rows, r), append(t.rows, r)
	}
	for _, u := range t.units {
		slices.SortFunc(u.rows, func(a, b *tailRow) int { return a.at - b.at })
	}
	return t, nil
}

// unit gives the unit of some buckets; those that had been apart are joined.
func (t *tail) unit(of map[tailPlace]*tailUnit, at []tailPlace) *tailUnit {
	unit := of[at[0]]
	if unit == nil {
		unit = &tailUnit{}
		t.units = append(t.units, unit)
	}
	for _, p := range at {
		other := of[p]
		of[p] = unit
		if other == nil || other == unit {
			continue
		}
		for _, r := range other.rows {
			r.unit = unit
		}
		unit.rows, unit.places = append(unit.rows, other.rows...), append(unit.places, other.places...)
		for q, u := range of {
			if u == other {
				of[q] = unit
			}
		}
		t.units = slices.DeleteFunc(t.units, func(u *tailUnit) bool { return u == other })
	}
	return unit
}
