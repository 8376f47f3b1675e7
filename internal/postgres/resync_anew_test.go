package postgres

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// A target of a stream in which nothing happens hears of a point at once.
func TestPointReachesAnIdleTarget(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, "CREATE TABLE item (id bigint PRIMARY KEY)", TableSpec{Schema: "public", Name: "item", Kind: topo.Keyed, Keyspace: "users", Key: "id"})
	c, err := OpenCapture(t.Context(), CaptureConfig{DSN: a.agent, Site: a.id, Target: b.id, Deployment: "point-" + string(a.id), Tables: a.tables, Keyspaces: usersKeyspace, IdleEvery: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Create(t.Context()); err != nil {
		t.Fatal(err)
	}
	from, _, err := c.Confirmed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	txs, ended := make(chan change.Tx), make(chan error, 1)
	go func() {
		ended <- c.Run(ctx, from, nil, func(ctx context.Context, tx change.Tx) error {
			select {
			case txs <- tx:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	fence := &Fence{site: a.id, conns: a.fenceConns()}
	for range 2 {
		at, err := fence.Point(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		select {
		case tx := <-txs:
			if tx.Position <= at || len(tx.Rows) > 0 || !tx.First || !tx.Last {
				t.Errorf("%+v for the point %d", tx, at)
			}
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(30 * time.Second):
			t.Fatal("the target hears nothing")
		}
	}
	cancel()
	<-ended
}

func TestRemark(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	order := CloseOrder{Handover: "f1", Keyspace: "users", Buckets: []topo.EpochSpan{{First: 3, Last: 9, Epoch: 1}}}
	if err := s.fence.Remark(t.Context(), order); err == nil || !strings.Contains(err.Error(), "7 buckets") {
		t.Errorf("a marker for open buckets: %v", err)
	}
	s.close("f1", "users", order.Buckets...)
	s.exec(s.adminDSN, "DELETE FROM atoll.marker WHERE kind = 'closed'")
	for range 2 {
		if err := s.fence.Remark(t.Context(), order); err != nil {
			t.Fatal(err)
		}
	}
	found, err := Markers(t.Context(), s.connect(s.agentDSN), "a", "f1")
	if err != nil || len(found) != 1 || found[0].Keyspace != "users" || len(found[0].Buckets) != 1 || found[0].Buckets[0] != order.Buckets[0] {
		t.Errorf("markers %+v, %v", found, err)
	}
	if err := s.fence.Remark(t.Context(), CloseOrder{Handover: "f1", Keyspace: "users"}); err == nil {
		t.Error("a marker for nothing")
	}
}

func TestBeginAnew(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	ctx := t.Context()
	s.exec(s.agentDSN, "INSERT INTO atoll.progress (origin, position, committed_at, split) VALUES ('b', 4711, now(), 4712)",
		"INSERT INTO atoll.bucket VALUES ('b', 'users', 1, 3, 'open'), ('b', 'users', 2, 3, 'open'), ('a', 'users', 1, 4, 'open')",
		"INSERT INTO atoll.marker VALUES ('b', 'f1', 'closed', 'users', '[]', '{}'), ('b', 's0', 'closed', 'users', '[]', '{}')")
	anew := Anew{Origin: "b", Position: 17, Epochs: change.Epochs{"users": {2: 9, 5: 1}}, Handovers: []topo.HandoverID{"f1"}}
	if _, err := s.fence.Halt(ctx, "b", "f2"); err != nil {
		t.Fatal(err)
	}
	if err := s.fence.BeginAnew(ctx, anew); err == nil || !strings.Contains(err.Error(), "f2") {
		t.Errorf("while a failover has halted it: %v", err)
	}
	if err := s.fence.Unhalt(ctx, "b", "f2"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.fence.BeginAnew(ctx, anew); err != nil {
			t.Fatal(err)
		}
	}
	var got string
	err := s.connect(s.adminDSN).QueryRow(ctx, `SELECT (SELECT position || ' ' || split FROM atoll.progress) || '; '
		|| (SELECT string_agg(site || bucket || '/' || epoch || state, ' ' ORDER BY site, bucket) FROM atoll.bucket) || '; ' || (SELECT string_agg(handover, ' ') FROM atoll.marker)`).Scan(&got)
	if want := "17 0; a1/4open b2/9closed b5/1closed; s0"; err != nil || got != want {
		t.Errorf("%s, want %s; %v", got, want, err)
	}
	for _, bad := range []Anew{{Origin: "a", Position: 1}, {Origin: "b"}} {
		if err := s.fence.BeginAnew(ctx, bad); err == nil || errors.Is(err, context.Canceled) {
			t.Errorf("%+v is taken", bad)
		}
	}
}
