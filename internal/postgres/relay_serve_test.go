package postgres

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/pgserver"
)

// What is kept of an origin is handed on whole and in order, with the position that this database has reached; a gap, an
// unfinished transaction and a beginning are not.
func TestRelaySource(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment()).install()
	ctx := t.Context()
	r, err := OpenRelay(s.agentDSN, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	source, err := OpenRelaySource(ctx, s.agentDSN, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	table := &change.Table{ID: 7, Schema: "public", Name: "item", Identity: 'd', Columns: []change.Column{{Name: "id", Type: 20, Key: true}}}
	part := func(pos change.Position, value string, first, last bool) change.Tx {
		return change.Tx{Origin: "b", Position: pos, XID: 9, Committed: time.UnixMicro(1_700_000_000_000_000).UTC(), First: first, Last: last,
			Rows: []change.Row{{Op: change.Insert, Table: table, New: []change.Value{{Kind: change.Text, Bytes: []byte(value)}}, Keyspace: "users", NewBucket: 3, NewEpoch: 2}}}
	}
	// run takes what comes from a position on until it has seen so many parts; then whatever else comes is a failure.
	run := func(from change.Position, want ...string) {
		t.Helper()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		var got []string
		err := source.Run(ctx, from, nil, func(_ context.Context, tx change.Tx) error {
			value := "-"
			if len(tx.Rows) > 0 {
				value = string(tx.Rows[0].New[0].Bytes)
			}
			if got = append(got, fmt.Sprintf("%d %s", tx.Position, value)); len(got) == len(want) {
				cancel()
			}
			return nil
		})
		if strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("from %d came %q, %v; want %q", from, got, err, want)
		}
	}
	refused := func(from change.Position, words string) {
		t.Helper()
		err := source.Run(ctx, from, nil, func(_ context.Context, tx change.Tx) error { return fmt.Errorf("got %+v", tx) })
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("from %d: %v; want %q", from, err, words)
		}
	}
	refused(0, "keeps no changes of site b")
	s.exec(s.agentDSN, "INSERT INTO atoll.progress (origin, position) VALUES ('b', 5)")
	refused(5, "keeps no changes of site b")
	if err := r.Keep(ctx, []change.Tx{part(4, "of an earlier time", true, true)}); err != nil {
		t.Fatal(err)
	}
	if err := r.Begin(ctx, "b", true); err != nil {
		t.Fatal(err)
	}
	if err := r.Keep(ctx, []change.Tx{part(10, "one", true, true), part(20, "two, 1", true, false), part(20, "two, 2", false, true)}); err != nil {
		t.Fatal(err)
	}
	refused(4, "kept from 0/5 on, and asked for from 0/4 on")
	run(5, "10 one", "20 two, 1", "20 two, 2")
	run(10, "20 two, 1", "20 two, 2")
	s.exec(s.agentDSN, "UPDATE atoll.progress SET position = 25 WHERE origin = 'b'") // 21 to 25 were nothing but positions
	run(10, "20 two, 1", "20 two, 2", "25 -")
	if err := r.Begin(ctx, "b", true); err != nil { // again, as with every connection
		t.Fatal(err)
	}
	if err := r.Keep(ctx, []change.Tx{part(30, "three", true, true), part(40, "unfinished", true, false)}); err != nil {
		t.Fatal(err)
	}
	run(20, "30 three")
	if err := r.Trim(ctx, "b", 20); err != nil {
		t.Fatal(err)
	}
	refused(10, "kept from 0/14 on")
	run(20, "30 three")
	if err := r.Begin(ctx, "b", false); err != nil {
		t.Fatal(err)
	}
	refused(30, "keeps no changes of site b")
	if source.Create(ctx) == nil || source.Copy(ctx, true, nil) == nil {
		t.Error("a relay began something")
	}
}

// A transaction of more parts than are read at a time comes whole.
func TestRelaySource_LargeTransactions(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment()).install()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s.exec(s.agentDSN, "INSERT INTO atoll.progress (origin, position, relay_from) VALUES ('b', 5, 5)")
	r, err := OpenRelay(s.agentDSN, "a")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	const parts = relayPage + 20
	for at := change.Position(10); at <= 20; at += 10 {
		var txs []change.Tx
		for i := range parts {
			txs = append(txs, change.Tx{Origin: "b", Position: at, First: i == 0, Last: i == parts-1})
		}
		if err := r.Keep(ctx, txs); err != nil {
			t.Fatal(err)
		}
	}
	source, err := OpenRelaySource(ctx, s.agentDSN, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	n := 0
	_ = source.Run(ctx, 5, nil, func(_ context.Context, tx change.Tx) error {
		if n++; tx.First != (n%parts == 1) || tx.Last != (n%parts == 0) {
			t.Errorf("part %d is %+v", n, tx)
		}
		if n == 2*parts {
			cancel()
		}
		return nil
	})
	if n != 2*parts {
		t.Errorf("%d parts", n)
	}
}

// An origin that is at work is never quiet. Whoever follows it through a relay is sent to look for it all the same.
func TestRelaySource_TakesTurns(t *testing.T) {
	t.Parallel()
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment()).install()
	s.exec(s.agentDSN, "INSERT INTO atoll.progress (origin, position, relay_from) VALUES ('b', 5, 5)")
	s.exec(s.agentDSN, "UPDATE atoll.progress SET position = 6 WHERE origin = 'b'")
	source, err := OpenRelaySource(t.Context(), s.agentDSN, "a", "b")
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	source.turn = 100 * time.Millisecond
	n := 0
	err = source.Run(t.Context(), 5, nil, func(context.Context, change.Tx) error {
		n++
		s.exec(s.agentDSN, "UPDATE atoll.progress SET position = position + 1 WHERE origin = 'b'") // there is always more
		return nil
	})
	if err != nil || n == 0 {
		t.Errorf("%d transactions, %v", n, err)
	}
}
