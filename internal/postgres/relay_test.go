package postgres

import (
	"context"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

func TestRelay_KeepsInOrderUntilTrimmed(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment()).install()
	r, err := OpenRelay(s.agentDSN, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	table := &change.Table{ID: 7, Schema: "public", Name: "item", Identity: 'd', Columns: []change.Column{{Name: "id", Type: 20, Key: true}}}
	tx := func(pos change.Position, value string, first, last bool) change.Tx {
		return change.Tx{Origin: "b", Position: pos, XID: 9, Committed: time.UnixMicro(1_700_000_000_000_000).UTC(), First: first, Last: last,
			Rows: []change.Row{{Op: change.Insert, Table: table, New: []change.Value{{Kind: change.Text, Bytes: []byte(value)}}, Keyspace: "users", NewBucket: 3, NewEpoch: 2}}}
	}
	all := []change.Tx{tx(10, "one", true, true), tx(20, "part 1", true, false), tx(20, "part 2", false, false), tx(20, "part 3", false, true), tx(30, "three", true, true)}
	ctx := t.Context()
	for range 2 { // again, as after a lost answer
		for _, txs := range [][]change.Tx{all[:2], all[2:]} {
			if err := r.Keep(ctx, txs); err != nil {
				t.Fatal(err)
			}
		}
	}
	got, err := relayed(ctx, r, "b", 0)
	if err != nil || !reflect.DeepEqual(got, all) {
		t.Fatalf("kept %+v, %v\nwant %+v", got, err, all)
	}
	if got, err := relayed(ctx, r, "c", 0); err != nil || len(got) != 0 {
		t.Errorf("of another origin: %v, %v", got, err)
	}
	if err := r.Trim(ctx, "b", 20); err != nil {
		t.Fatal(err)
	}
	if got, err = relayed(ctx, r, "b", 0); err != nil || !reflect.DeepEqual(got, all[4:]) {
		t.Errorf("after trimming: %+v, %v", got, err)
	}
	if err := r.Keep(ctx, []change.Tx{tx(40, "part 2", false, true)}); err == nil || !strings.Contains(err.Error(), "without the parts before it") {
		t.Errorf("a part alone: %v", err)
	}
	if err := r.Begin(ctx, "b", true); err != nil {
		t.Fatal(err)
	}
	if got, err = relayed(ctx, r, "b", 0); err != nil || !reflect.DeepEqual(got, all[4:]) {
		t.Errorf("kept on: %+v, %v", got, err)
	}
	if err := r.Begin(ctx, "b", false); err != nil {
		t.Fatal(err)
	}
	if got, err = relayed(ctx, r, "b", 0); err != nil || len(got) != 0 {
		t.Errorf("nobody is left who could lack it, and there are %+v, %v", got, err)
	}
	s.exec(s.adminDSN, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'atoll relay of a' AND datname = current_database()")
	waitUntil(t, "the relay connects again", func() bool { return r.Trim(ctx, "b", 30) == nil })
}

// relayed reads what is kept of an origin beyond a position, in order.
func relayed(ctx context.Context, r *Relay, origin topo.SiteID, from change.Position) ([]change.Tx, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []change.Tx
	err := r.withLocked(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT body FROM atoll.relay WHERE origin = $1 AND position > $2 ORDER BY position, part`, string(origin), int64(from))
		if err != nil {
			return err
		}
		out, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (change.Tx, error) {
			var body []byte
			if err := row.Scan(&body); err != nil {
				return change.Tx{}, err
			}
			return change.DecodeTx(body)
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read what is kept of site %s: %w", origin, err)
	}
	return out, nil
}
