package lab

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

const (
	stoppedFor = 6 * time.Second // from the kill to the moment at which the stopped applier goes on

	// leaseWrite is in the text of the statement by which an agent extends its database's lease, and in no other that it
	// sends while it is at work.
	leaseWrite   = "atoll.extend_lease"
	heldFor      = leaseTime * 8 / 10
	springBound  = 2 * leaseTime
	besideEvery  = 40 * time.Millisecond
	besideClient = -2
)

// stopApplier is a drill: the survivor's own applier stands in the middle of a transaction of the site that dies. It may
// commit whenever it goes on, so until then nobody can say where the dead site's epochs end, and the survivor must not
// open.
func (m *demo) stopApplier(ctx context.Context) error {
	o, err := m.lose(ctx, stoppedApplier, m.a())
	if err != nil || o.trigger != nil {
		return err
	}
	o.stoppedAt = m.b()
	m.screen.say("drill: %s dies while the backend that applies its changes at %s stands still", o.lost, o.stoppedAt)
	stop, everything := m.d.StopApplier(o.stoppedAt, o.lost), m.d.LoseSite(o.lost)
	if o.trigger = stop.Inject(ctx); o.trigger != nil {
		m.screen.say("  the drill is left out: %v", o.trigger)
		return ctx.Err()
	}
	m.screen.say("  %s", stop.Name)
	if err := m.kill(ctx, o, everything); err != nil {
		return err
	}
	if err := rest(ctx, time.Until(o.killed.Add(stoppedFor))); err != nil {
		return err
	}
	o.held = time.Now()
	m.screen.say("  the backend goes on")
	if err := stop.Heal(ctx); err != nil {
		return err
	}
	if err := m.awaitTakeover(ctx, o); err != nil {
		return err
	}
	if err := rest(ctx, aliveFor); err != nil {
		return err
	}
	return m.comeHome(ctx, o, everything)
}

// holdLease is a drill: an agent's word to its database that the lease goes on is still under way when the agent dies,
// and arrives late. Database, application and gateways live on. A word that meant "for so long from now" would keep
// the fence open while the other site takes over.
func (m *demo) holdLease(ctx context.Context) error {
	o, err := m.lose(ctx, heldLeaseWrite, m.a())
	if err != nil || o.trigger != nil {
		return err
	}
	m.screen.say("drill: the agent of %s dies while its next lease write is held on its way to the database for %v; all else at %s lives on", o.lost, heldFor, o.lost)
	trap := m.d.Network.HoldWhen(Way{o.lost, o.lost}, Database, []byte(leaseWrite), heldFor)
	defer m.d.Network.Disarm(trap)
	select {
	case <-trap.Sprung:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(springBound):
		o.trigger = fmt.Errorf("no statement with %q left the agent within %v", leaseWrite, springBound)
		m.screen.say("  the drill is left out: %v", o.trigger)
		return nil
	}
	if err := rest(ctx, leaseTime/10); err != nil {
		return err
	}
	beside, stop := context.WithCancel(ctx)
	var writing sync.WaitGroup
	writing.Go(func() { m.writeBeside(beside, o) })
	agent := m.d.KillProcess(string(o.lost) + "/agent")
	err = m.kill(ctx, o, agent)
	o.held = trap.At.Add(heldFor)
	if err == nil {
		err = m.awaitTakeover(ctx, o)
	}
	if err == nil { // until a fence that was extended on the write's arrival would have closed
		err = rest(ctx, time.Until(o.held.Add(leaseTime)))
	}
	stop()
	writing.Wait()
	if err == nil {
		err = m.comeHome(ctx, o, agent)
	}
	return err
}

// writeBeside writes at a site's application without a gateway, as a job of its own would, for customers of that site:
// gateways stop by themselves when their lease is over, the fence must not need them.
func (m *demo) writeBeside(ctx context.Context, o *outage) {
	customers, err := m.customersOf(ctx, o.lost, o.buckets[users])
	if err != nil || len(customers) == 0 {
		o.trigger = errors.Join(fmt.Errorf("no customers to write for beside the gateways"), err)
		return
	}
	tick := time.NewTicker(besideEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		op := Operation{ID: uuid.NewString(), Client: besideClient, Op: "bulk-note", Keyspace: users, Key: customers[n%len(customers)], Write: true, Target: string(o.lost) + "/app"}
		send(context.WithoutCancel(ctx), "http://"+m.d.at[o.lost].app+"/orders/bulk-note", map[string]any{"note": "a job at night", "ms": 0}, &op)
		m.straggler.add(op)
	}
}

// customersOf lists some customers of buckets, as a site's database has them.
func (m *demo) customersOf(ctx context.Context, at topo.SiteID, buckets topo.Spans) (out []string, err error) {
	err = m.d.onDatabase(ctx, at, func(db *pgx.Conn) (err error) {
		out, err = customersIn(ctx, db, buckets, m.opts.Buckets, stragglersBy)
		return err
	})
	return out, err
}
