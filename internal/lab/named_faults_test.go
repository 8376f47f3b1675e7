package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// The track record of faults: each has a name, and `go test -run NAME ./internal/lab` plays it again.

func TestControllerKilledInMoving(t *testing.T)    { controllerKilledIn(t, "MOVING") }
func TestControllerKilledInFenced(t *testing.T)    { controllerKilledIn(t, "FENCED") }
func TestControllerKilledInCaughtUp(t *testing.T)  { controllerKilledIn(t, "CAUGHT_UP") }
func TestControllerKilledInCommitted(t *testing.T) { controllerKilledIn(t, "COMMITTED") }
func TestControllerKilledInOpen(t *testing.T)      { controllerKilledIn(t, "OPEN") }

// phases in their order. The record may show an earlier one than the log: a phase is saved once it has begun. A later
// one means that the kill was late.
var phases = []string{"PREPARE", "MOVING", "FENCED", "CAUGHT_UP", "COMMITTED", "OPEN", "DONE"}

// controllerKilledIn kills the agent that drives a switch when its log shows the phase. The paths are slow, so that a phase
// lasts. The other site's controller ends the switch, one way or the other.
func controllerKilledIn(t *testing.T, phase string) {
	playFault(t, func(ctx context.Context, w *faultWorld) {
		for try := range 4 {
			h := w.killController(ctx, phase)
			if slices.Index(phases, h) > slices.Index(phases, phase) && try < 3 {
				w.t.Logf("the record showed %s, so that was too late; again", h)
				w.must(w.recover(ctx))
				continue
			}
			return
		}
	})
}

// killController does it once, and returns the phase that the record showed when the controller was dead.
func (w *faultWorld) killController(ctx context.Context, phase string) string {
	driver, other := w.a(), w.b()
	if w.ownedBy(ctx, driver).Len() < 8 {
		driver, other = other, driver
	}
	buckets := topo.SpansOf(w.ownedBy(ctx, driver).Buckets()[:8]...)
	agent := string(driver) + "/agent"
	w.slowDown(driver, other, phase)
	mark := w.logSize(agent)
	switched := make(chan struct{})
	go func() {
		defer close(switched)
		// It fails with its agent; before, on a busy machine, it may be refused, and is tried again.
		for range 10 {
			_, err := w.d.Atoll(ctx, "switch", "--keyspace", string(users), "--buckets", buckets.String(), "--to", string(other), "--at", string(driver), "--why", "killed in "+phase)
			if err == nil || !w.d.Processes.Running(agent) {
				return
			}
			w.t.Logf("the switch ended before it was in %s: %v", phase, err)
		}
	}()
	w.must(w.awaitLine(ctx, agent, mark, `"msg":"handover `+phase+`"`))
	w.must(w.d.Processes.Kill(agent))
	shown := w.newestSwitch(ctx, other)
	for _, a := range []topo.SiteID{other, w.opts.Witness} {
		w.d.Network.Heal(driver, a)
	}
	<-switched
	var h api.Handover
	w.eventually(ctx, fmt.Sprintf("switch %s, killed in %s, is over", shown.ID, phase), func() bool {
		st, err := w.d.status(ctx, other)
		if err != nil {
			return false
		}
		for _, h = range st.Handovers {
			if h.ID == shown.ID {
				return h.Over()
			}
		}
		return false
	})
	w.t.Logf("agent of %s killed when its log showed %s; the record of %s showed %s and ended %s, driven by %s", driver, phase, h.ID, shown.Phase, h.Outcome, h.Driver)
	if h.Outcome != "done" && h.Outcome != "aborted" {
		w.t.Errorf("it ended %q", h.Outcome)
	}
	return shown.Phase
}

// slowDown delays what ends a phase, and no more: leases of 3 s live on the same paths.
func (w *faultWorld) slowDown(driver, other topo.SiteID, phase string) {
	delay := func(kind Kind, extra time.Duration) {
		w.d.Network.Delay(Way{driver, other}, kind, extra)
		w.d.Network.Delay(Way{other, driver}, kind, extra)
	}
	switch phase {
	case "FENCED": // ends when the marker is at the other site
		delay(Link, 500*time.Millisecond)
	case "CAUGHT_UP": // ends with a commit in the store, which needs another member
		delay(StorePeer, 50*time.Millisecond)
		w.d.Network.Delay(Way{driver, w.opts.Witness}, StorePeer, 50*time.Millisecond)
	default: // end when the other site's agent has said something
		delay(AgentAPI, 300*time.Millisecond)
	}
}

func (w *faultWorld) newestSwitch(ctx context.Context, at topo.SiteID) api.Handover {
	w.t.Helper()
	st, err := w.d.status(ctx, at)
	w.must(err)
	for _, h := range st.Handovers {
		if h.Kind != failoverKind {
			return h
		}
	}
	w.t.Fatal("no switch is recorded")
	return api.Handover{}
}

// The leader of the store dies: the others elect one, leases go on, and it comes back.
func TestStoreLeaderKilled(t *testing.T) {
	playFault(t, func(ctx context.Context, w *faultWorld) {
		leader := w.storeLeader(ctx)
		w.must(w.d.Processes.Kill(string(leader) + "/store"))
		w.switchSome(ctx)
		w.must(rest(ctx, w.leases(2)))
		w.must(w.d.Processes.Restart(string(leader) + "/store"))
		w.t.Logf("the store of %s led and was killed; now %s leads", leader, w.storeLeader(ctx))
	})
}

// The leader of the store stands still and goes on later, still sure that it leads.
func TestStoreLeaderPaused(t *testing.T) {
	playFault(t, func(ctx context.Context, w *faultWorld) {
		leader := w.storeLeader(ctx)
		w.must(w.d.Processes.Pause(string(leader) + "/store"))
		w.switchSome(ctx)
		w.must(rest(ctx, w.leases(2)))
		w.must(w.d.Processes.Resume(string(leader) + "/store"))
		w.t.Logf("the store of %s led and was paused; now %s leads", leader, w.storeLeader(ctx))
	})
}

// switchSome moves a few buckets under the fault, and back; that it can be refused is no failure.
func (w *faultWorld) switchSome(ctx context.Context) {
	w.t.Helper()
	from, to := w.a(), w.b()
	for range 2 {
		spans := w.ownedBy(ctx, from)
		if spans.Len() >= 8 {
			buckets := topo.SpansOf(spans.Buckets()[:8]...)
			_, err := w.d.Atoll(ctx, "switch", "--keyspace", string(users), "--buckets", buckets.String(), "--to", string(to))
			w.t.Logf("switch of %s from %s to %s: error %v", buckets, from, to, err)
		}
		from, to = to, from
	}
}

// The agent of a site stands still for half a lease, which nobody may notice but its links; for one and a half, where the
// other site may already have taken over when it goes on; and for three.
func TestAgentPausedHalfALease(t *testing.T)     { agentPaused(t, 0.5) }
func TestAgentPausedOneAndAHalf(t *testing.T)    { agentPaused(t, 1.5) }
func TestAgentPausedForThreeLeases(t *testing.T) { agentPaused(t, 3) }

func agentPaused(t *testing.T, leases float64) {
	playFault(t, func(ctx context.Context, w *faultWorld) {
		agent := string(w.a()) + "/agent"
		w.must(w.d.Processes.Pause(agent))
		w.must(rest(ctx, w.leases(leases)))
		w.must(w.d.Processes.Resume(agent))
		w.must(w.recover(ctx))
		w.must(rest(ctx, time.Second)) // load on what came of it
	})
}

// The database crashes under a live agent and is back at once: its lease is gone, so that its fence is closed although
// its ownership bits still stand, until the agent writes a new lease.
func TestDatabaseCrashUnderLiveAgent(t *testing.T) {
	playFault(t, func(ctx context.Context, w *faultWorld) {
		site := w.a()
		agent := string(site) + "/agent"
		buckets := w.ownedBy(ctx, site)
		w.must(w.d.Processes.Pause(agent)) // or it would write a lease before anybody could look
		w.must(w.d.databases[site].Kill())
		w.must(w.d.databases[site].Restart(ctx))
		w.must(w.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			var lease *int64
			if err := db.QueryRow(ctx, "SELECT pg_sequence_last_value('atoll.lease')").Scan(&lease); err != nil {
				return err
			}
			if lease != nil {
				w.t.Errorf("the lease survived the crash: %d", *lease)
			}
			return nil
		}))
		w.wantFenced(ctx, site, buckets, postgres.CodeLeaseRunOut)
		w.must(w.d.Processes.Resume(agent))
		w.must(w.recover(ctx))
		w.must(rest(ctx, time.Second))
	})
}

// wantFenced writes as the application does, to a customer of a bucket that the site owned before the fault.
func (w *faultWorld) wantFenced(ctx context.Context, site topo.SiteID, buckets topo.Spans, code string) {
	w.t.Helper()
	var customers []string
	w.must(w.d.onDatabase(ctx, site, func(db *pgx.Conn) (err error) {
		customers, err = customersIn(ctx, db, buckets, w.opts.Buckets, 1)
		return err
	}))
	db, err := pgx.Connect(ctx, w.d.databases[site].DSN(shopRole, database))
	w.must(err)
	defer db.Close(ctx)
	_, err = db.Exec(ctx, "UPDATE customers SET name = name WHERE id = $1", customers[0])
	var refused *pgconn.PgError
	if !errors.As(err, &refused) || refused.Code != code {
		w.t.Errorf("a write to bucket of customer %s ended with %v, want SQLSTATE %s", customers[0], err, code)
	}
}

// The database stays away for longer than a lease, its agent alive all the time: the agent does not renew for a
// database that completes no write, so the other site takes over; then the database comes back with what it had.
func TestDatabaseAwayUnderLiveAgent(t *testing.T) {
	playFault(t, func(ctx context.Context, w *faultWorld) {
		site := w.a()
		w.must(w.d.databases[site].Kill())
		w.must(rest(ctx, w.leases(3)))
		w.must(w.d.databases[site].Restart(ctx))
		w.must(w.recover(ctx))
		w.must(rest(ctx, time.Second))
	})
}
