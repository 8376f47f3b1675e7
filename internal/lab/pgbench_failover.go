package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

const (
	benchTail     = time.Second      // the replication is cut for so long before everything at the bank's site is killed
	benchDown     = 10 * time.Second // the lost site stays down at least so long
	benchTakeover = 25 * time.Second
	benchReturn   = 60 * time.Second
)

// benchLoss is the loss of the bank's site in the middle of the load.
type benchLoss struct {
	lost, taker topo.SiteID
	cut, killed time.Time
	seen        time.Time   // status named the taker as the owner; zero: not within the bound
	back        time.Time   // its processes were started again
	settled     time.Time   // zero: not within the bound
	atTaker     []benchNote // the taker's history before the lost site came back
	record      api.Handover
}

// lose is an accident at two thirds of the time: the replication from the bank's site breaks, its clients go on for a moment,
// then everything there is killed. The other site takes over by itself; later the lost one comes back with what it had.
func (b *bench) lose(ctx context.Context) error {
	if err := rest(ctx, time.Until(b.span[0].Add(b.opts.Duration*2/3-benchTail))); err != nil {
		return err
	}
	st, err := b.status(ctx)
	if err != nil {
		return err
	}
	l := &b.loss
	l.lost, l.taker = owner(st), b.opts.Sites[0]
	if l.lost == l.taker {
		l.taker = b.opts.Sites[1]
	}
	if l.lost == "" {
		return errors.New("lab: nobody owns the bank before its site is to be lost")
	}
	b.screen.say("an accident at %s, where the bank is: its replication breaks; for %v more its clients go on", l.lost, benchTail)
	l.cut = time.Now()
	link, everything := b.d.CutKinds(l.lost, l.taker, Link), b.d.LoseSite(l.lost)
	if err := link.Inject(ctx); err != nil {
		return err
	}
	if err := rest(ctx, benchTail); err != nil {
		return err
	}
	b.screen.say("  %s", everything.Name)
	l.killed = time.Now()
	if err := everything.Inject(ctx); err != nil {
		return err
	}
	if err := b.awaitOwner(ctx, l); err != nil {
		return err
	}
	if err := rest(ctx, time.Until(l.killed.Add(benchDown))); err != nil {
		return err
	}
	return b.bringBack(ctx, l, everything, link)
}

// awaitOwner waits, bounded, until the taker is the owner.
func (b *bench) awaitOwner(ctx context.Context, l *benchLoss) error {
	bounded, cancel := context.WithTimeout(ctx, benchTakeover)
	defer cancel()
	err := every(bounded, 100*time.Millisecond, func() (bool, error) {
		st, err := b.status(bounded)
		return err == nil && owner(st) == l.taker, nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		b.screen.say("  %s did not take over within %v", l.taker, benchTakeover)
		return nil
	}
	l.seen = time.Now()
	b.screen.say("  %s took over; %.1f s after the kill it is the owner", l.taker, l.seen.Sub(l.killed).Seconds())
	return nil
}

// bringBack notes what the taker had without the lost site, starts that site again, and waits, bounded, until its tail is settled.
func (b *bench) bringBack(ctx context.Context, l *benchLoss, faults ...Fault) error {
	err := b.d.onDatabase(ctx, l.taker, func(db *pgx.Conn) (err error) {
		l.atTaker, err = readNotes(ctx, db)
		return err
	})
	if err != nil {
		return err
	}
	b.screen.say("  %s is started again, with its database as the crash left it", l.lost)
	for _, f := range faults {
		if err := f.Heal(ctx); err != nil {
			return err
		}
	}
	l.back = time.Now()
	if l.seen.IsZero() {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, benchReturn)
	defer cancel()
	err = every(bounded, 300*time.Millisecond, func() (bool, error) {
		st, err := b.status(bounded)
		if err != nil {
			return false, nil // agents may be starting; the bound holds
		}
		i := slices.IndexFunc(st.Handovers, func(h api.Handover) bool { return h.Kind == failoverKind && h.From == l.lost })
		if i < 0 {
			return false, nil
		}
		l.record = st.Handovers[i]
		return l.record.Failover != nil && l.record.Failover.Return != nil, nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		b.screen.say("  its tail is not settled after %v", benchReturn)
		return nil
	}
	l.settled = time.Now()
	r := l.record.Failover.Return
	b.screen.say("  %s is back: of what it had committed alone, %d row changes stand and %d gave way; each is in the conflict log", l.lost, r.Applied, r.Kept)
	return nil
}

// BenchFailover is the loss of the bank's site under load.
type BenchFailover struct {
	Lost          topo.SiteID `json:"lost"`
	Taker         topo.SiteID `json:"taker"`
	RTOms         int64       `json:"rto_ms"`             // from the kill to the first transaction that began after it, clients' restart included; 0: none
	SilentMS      int64       `json:"without_service_ms"` // between two acknowledgements
	RPO           int         `json:"rpo_transactions"`   // acknowledged before the kill and not at the taker before the lost site came back
	RPOms         int64       `json:"rpo_ms"`             // how long before the kill the first of them was acknowledged
	AppliedRows   int         `json:"applied_rows"`       // of the lost site's tail, after its return
	KeptRows      int         `json:"kept_rows"`          // of its tail that gave way; in the conflict log
	SettledMS     int64       `json:"settled_after_ms"`   // after the start of the lost site; 0: not within the bound
	Ended         int         `json:"clients_ended"`
	Broken        int         `json:"connections_broken"`
	ExpectedRTOms int64       `json:"rto_expected_ms"` // 1.01 × lease + W + 1 s
}

func (b *bench) failedOver(done []benchTx, runs []benchRun) BenchFailover {
	l := b.loss
	p := b.d.Spec.Policies.Lease
	f := BenchFailover{Lost: l.lost, Taker: l.taker, RTOms: firstAfter(done, l.killed).Milliseconds(), SilentMS: silentFor(done, l.killed, l.killed).Milliseconds(),
		ExpectedRTOms: (p.Duration*101/100 + p.W + time.Second).Milliseconds()}
	var before []benchTx
	for _, t := range done {
		if t.end <= l.killed.UnixMicro() {
			before = append(before, t)
		}
	}
	missing, _ := matchNotes(before, l.atTaker)
	f.RPO = len(missing)
	for _, t := range missing {
		f.RPOms = max(f.RPOms, (l.killed.UnixMicro()-t.end)/1000)
	}
	if l.record.Failover != nil && l.record.Failover.Return != nil {
		f.AppliedRows, f.KeptRows = l.record.Failover.Return.Applied, l.record.Failover.Return.Kept
	}
	if !l.settled.IsZero() {
		f.SettledMS = l.settled.Sub(l.back).Milliseconds()
	}
	f.Ended, f.Broken = endedBetween(runs, l.killed, l.killed.Add(benchTakeover))
	return f
}

// checkLoss: the failover happened by itself, and there was a tail to be decided.
func (b *bench) checkLoss(f BenchFailover) Check {
	c := Check{Name: "failed_over", Claim: "the other site took over by itself, and what the lost one had committed alone was settled after its return",
		Looked: fmt.Sprintf("%d transactions that the taker did not have", f.RPO)}
	switch {
	case b.loss.seen.IsZero():
		c.found("%s did not take over within %v", b.loss.taker, benchTakeover)
	case b.loss.settled.IsZero():
		c.found("the tail of %s was not settled within %v", b.loss.lost, benchReturn)
	case f.RPO == 0:
		c.found("the lost site had nothing that the taker lacked: the test shows nothing")
	case f.AppliedRows+f.KeptRows < f.RPO:
		c.found("%d rows of the tail were decided; %d transactions were missing", f.AppliedRows+f.KeptRows, f.RPO)
	}
	return c
}
