package postgres

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// TestEndWriters: who has written and not committed is ended after his patience, whoever prepared is named if the agent
// may not roll it back; readers and appliers go on.
func TestEndWriters(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	ctx := t.Context()
	run := func(dsn string, statements ...string) func(string) error {
		c := s.connect(dsn)
		for _, sql := range statements {
			if _, err := c.Exec(ctx, sql); err != nil {
				t.Fatalf("%s: %v", sql, err)
			}
		}
		return func(sql string) error { _, err := c.Exec(ctx, sql); return err }
	}
	if ended, err := s.fence.EndWriters(ctx, time.Second, time.Second); err != nil || len(ended) > 0 {
		t.Fatalf("nobody has written: ended %v, %v", ended, err)
	}
	reader := run(s.appDSN, "BEGIN", "SELECT count(*) FROM item")
	applier := run(s.agentDSN, "SET application_name = '"+applyName+"b'", "BEGIN", "INSERT INTO item VALUES (1)")
	idle := run(s.appDSN, "BEGIN", "INSERT INTO item VALUES (2)")
	root := run(s.appDSN, "BEGIN", "INSERT INTO part VALUES (3)")
	quick := run(s.appDSN, "BEGIN", "INSERT INTO seat VALUES ('4A')")
	committed := make(chan error, 1)
	go func() {
		<-time.After(100 * time.Millisecond)
		committed <- quick("COMMIT")
	}()
	began := time.Now()
	ended, err := s.fence.EndWriters(ctx, 400*time.Millisecond, 2*time.Second)
	if err != nil || len(ended) != 2 {
		t.Fatalf("ended %v, %v; want two", ended, err)
	}
	if took := time.Since(began); took < 400*time.Millisecond || took > 2*time.Second {
		t.Errorf("it took %s", took)
	}
	if err := <-committed; err != nil {
		t.Errorf("one that ended in its patience: %v", err)
	}
	for name, commit := range map[string]func(string) error{"idle": idle, "through the root of a partitioned table": root} {
		if err := commit("COMMIT"); err == nil {
			t.Errorf("a writer that is %s committed", name)
		}
	}
	if err := errors.Join(reader("COMMIT"), applier("COMMIT")); err != nil {
		t.Errorf("a reader or an applier was ended: %v", err)
	}

	run(s.appDSN, "BEGIN", "INSERT INTO item VALUES (5)", "PREPARE TRANSACTION 'p1 "+s.db+"'")
	_, err = s.fence.EndWriters(ctx, 0, 100*time.Millisecond)
	var left *WritersLeftError
	if !errors.As(err, &left) || len(left.Blockers) != 1 || !strings.Contains(err.Error(), fmt.Sprintf("prepared transaction %q of role %s", "p1 "+s.db, s.app)) ||
		!strings.Contains(err.Error(), "end the others as their role") {
		t.Fatalf("a prepared transaction of another role: %v", err)
	}
	s.exec(s.appDSN, "ROLLBACK PREPARED 'p1 "+s.db+"'")
	s.exec(s.adminDSN, "REVOKE pg_signal_backend FROM "+s.d.AgentRole)
	stays := run(s.appDSN, "BEGIN", "INSERT INTO item VALUES (6)")
	_, err = s.fence.EndWriters(ctx, 0, 100*time.Millisecond)
	if !errors.As(err, &left) || !strings.Contains(err.Error(), "GRANT pg_signal_backend TO") {
		t.Errorf("without the grant: %v", err)
	}
	if err := stays("ROLLBACK"); err != nil {
		t.Error(err)
	}
}

// TestHeartbeat_CounterAndClock: a counter below what it was is left alone; the row's time never falls.
func TestHeartbeat_CounterAndClock(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	ctx := t.Context()
	var before *WentBackError
	if _, err := s.fence.Heartbeat(ctx, 3); !errors.As(err, &before) || *before != (WentBackError{Beat: 0, After: 3}) {
		t.Errorf("a database that never beat: %v", err)
	}
	for want := range uint64(3) {
		p, err := s.fence.Heartbeat(ctx, want)
		if err != nil || p.Beat != want+1 || p.Behind() != 0 || time.Since(p.Clock).Abs() > time.Minute || p.Database.Timeline != 1 {
			t.Fatalf("pulse %+v, %v", p, err)
		}
	}
	p, err := s.fence.Heartbeat(ctx, 4)
	if !errors.As(err, &before) || before.Beat != 3 || p.Database.System == "" || !errors.Is(err, ErrWentBack) {
		t.Errorf("pulse %+v, %v", p, err)
	}
	// The clock was ahead while a moment was written, and goes back.
	s.openAll(1)
	ahead := time.Now().Add(time.Hour)
	s.exec(s.adminDSN, fmt.Sprintf("SELECT setval('atoll.lease', %d)", ahead.UnixMilli()))
	if err := s.fence.DistrustClock(ctx); err != nil {
		t.Fatal(err)
	}
	wantCode(t, s.try("INSERT INTO item VALUES (1)"), CodeNotOwned)
	if p, err = s.fence.Heartbeat(ctx, 3); err != nil || (p.Behind()-time.Hour).Abs() > time.Minute {
		t.Errorf("behind by %s, %v", p.Behind(), err)
	}
	if err := s.fence.ForgetMoments(ctx); err != nil {
		t.Fatal(err)
	}
	if p, err = s.fence.Heartbeat(ctx, 4); err != nil || p.Behind() != 0 {
		t.Errorf("behind by %s, %v", p.Behind(), err)
	}
	if st := s.state(); st.Lease.After(st.Clock) || len(st.Bits["users"]) > 0 {
		t.Errorf("state %+v", st)
	}
}

// TestExtendLease_OnlyWhereTheHeartbeatWas: the DSN may lead to another database a moment after the heartbeat.
func TestExtendLease_OnlyWhereTheHeartbeatWas(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	ctx := t.Context()
	p, err := s.fence.Heartbeat(ctx, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.extend(time.Minute)
	kept := s.state().Lease
	for _, other := range []topo.Identity{{System: p.Database.System, Timeline: 2}, {System: "7", Timeline: 1}} {
		s.fence.bound.Store(&other)
		if err := s.fence.ExtendLease(ctx, time.Now().Add(2*time.Minute), 0); err == nil || !strings.Contains(err.Error(), "is not "+other.String()) {
			t.Errorf("extended in another database: %v", err)
		}
	}
	if sql := extendSQL(p.Database, 1, 2); !strings.HasPrefix(sql, "/* atoll.lease */ SELECT atoll.extend_lease(") {
		t.Errorf("an extension cannot be told from other statements on the wire: %s", sql)
	}
	if now := s.state().Lease; !now.Equal(kept) {
		t.Errorf("the moment went from %s to %s", kept, now)
	}
}
