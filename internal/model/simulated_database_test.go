package model

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/topo"
)

// simDB is a site's database, as database.go has it, without limits to its stream. It is changed with the simulation
// locked.
type simDB struct {
	id    int
	up    bool
	rate  int           // of its clock, in parts of 1000
	ahead time.Duration // of true time
	lost  time.Duration // while it stood still
	stood time.Time     // since when it does; zero: it does not

	row     map[topo.BucketID]postgres.BucketRow
	bits    map[topo.BucketID]bool
	lease   time.Time
	beat    uint64
	reached time.Time
	voids   int
	closing map[topo.BucketID]simClosing
	tries   int
	tx      map[*simTx]bool

	log     []simItem
	done    int // of the other's
	busy    *simApply
	halted  topo.HandoverID
	cuts    map[topo.BucketID]topo.Cut
	changed chan struct{} // a hint for the applier at the other site, or here
}

type simClosing struct {
	epoch    topo.Epoch
	handover topo.HandoverID
	reopen   bool
	attempt  int
}

type simTx struct{ bucket topo.BucketID }

type simItem struct {
	kind     item
	bucket   topo.BucketID
	epoch    topo.Epoch
	handover topo.HandoverID
}

type simApply struct{ stale bool }

func newSimDB(id int) *simDB {
	return &simDB{id: id, up: true, rate: 1000, row: map[topo.BucketID]postgres.BucketRow{}, bits: map[topo.BucketID]bool{}, closing: map[topo.BucketID]simClosing{},
		tx: map[*simTx]bool{}, cuts: map[topo.BucketID]topo.Cut{}, changed: make(chan struct{}, 1)}
}

func (d *simDB) clock() time.Time {
	now := time.Now()
	if !d.stood.IsZero() {
		now = d.stood
	}
	went := now.Sub(epochOfSim) - d.lost
	return epochOfSim.Add(went / 1000 * time.Duration(d.rate)).Add(d.ahead).Round(0)
}

func (d *simDB) runs() bool { return d.up && d.stood.IsZero() }

func (d *simDB) inForce() bool { return d.lease.After(d.clock()) }

func (d *simDB) accepts(b topo.BucketID) bool { return d.bits[b] && d.inForce() }

func (d *simDB) hint() {
	select {
	case d.changed <- struct{}{}:
	default:
	}
}

func (d *simDB) append(i simItem) { d.log = append(d.log, i) }

// marker is where the last word of a handover stands, -1 if it does not.
func (d *simDB) marker(id topo.HandoverID) int {
	for i, it := range slices.Backward(d.log) {
		if it.kind == closed && it.handover == id {
			return i
		}
	}
	return -1
}

func (d *simDB) crash() {
	d.up, d.lease, d.busy = false, time.Time{}, nil
	clear(d.tx)
}

func (d *simDB) restrict(keep func(topo.BucketID) bool) {
	maps.DeleteFunc(d.bits, func(b topo.BucketID, _ bool) bool { return !keep(b) })
	for b, c := range d.closing {
		if !keep(b) {
			c.reopen = false
			d.closing[b] = c
		}
	}
	d.voids++
}

// simFence is the fence as one process has it. It satisfies lease.Fence.
type simFence struct {
	*way
	d    *simDB
	seen int // restrictions
}

// ask is a statement; the database may be away. One without an answer (errNoAnswer) may still be carried out: what it
// writes is not looked at then.
func (f *simFence) ask(ctx context.Context, statement func() error) error {
	var err error
	if lost := f.call(ctx, func() {
		if err = errors.New("the database is away"); f.d.runs() {
			err = statement()
		}
	}); lost != nil {
		return lost
	}
	return err
}

func (f *simFence) Identity(ctx context.Context) (topo.Identity, error) {
	var id topo.Identity
	if err := f.ask(ctx, func() error { id = identity(f.d.id); return nil }); err != nil {
		return topo.Identity{}, err
	}
	return id, nil
}

func (f *simFence) Heartbeat(ctx context.Context, after uint64) (postgres.Pulse, error) {
	var p postgres.Pulse
	err := f.ask(ctx, func() error {
		d := f.d
		p.Database = identity(d.id)
		if d.beat < after {
			return &postgres.WentBackError{Beat: d.beat, After: after}
		}
		d.beat++
		if now := d.clock(); now.After(d.reached) {
			d.reached = now
		}
		p.Beat, p.Clock, p.Reached = d.beat, d.clock(), d.reached
		return nil
	})
	if errors.Is(err, errNoAnswer) {
		return postgres.Pulse{}, err
	}
	return p, err
}

func (f *simFence) State(ctx context.Context) (postgres.FenceState, error) {
	var st postgres.FenceState
	err := f.ask(ctx, func() error {
		d := f.d
		st = postgres.FenceState{Buckets: map[topo.KeyspaceID]int{keyspace: simBuckets}, Lease: d.lease, Clock: d.clock(),
			Bits: map[topo.KeyspaceID]topo.Spans{}, Rows: map[topo.KeyspaceID][]postgres.BucketRow{}}
		for b := range topo.BucketID(simBuckets) {
			if on := st.Bits[keyspace]; d.bits[b] && len(on) > 0 && on[len(on)-1].Last+1 == b {
				on[len(on)-1].Last = b
			} else if d.bits[b] {
				st.Bits[keyspace] = append(on, topo.Span{First: b, Last: b})
			}
			if r, ok := d.row[b]; ok {
				st.Rows[keyspace] = append(st.Rows[keyspace], r)
			}
		}
		return nil
	})
	if err != nil {
		return postgres.FenceState{}, err
	}
	return st, nil
}

func (f *simFence) Restrict(ctx context.Context, keep map[topo.KeyspaceID]topo.Spans) error {
	return f.ask(ctx, func() error {
		f.d.restrict(func(b topo.BucketID) bool { return keep[keyspace].Contains(b) })
		f.seen = f.d.voids
		return nil
	})
}

func (f *simFence) ExtendLease(ctx context.Context, deadline time.Time, margin time.Duration) error {
	var clock time.Time
	if err := f.ask(ctx, func() error { clock = f.d.clock(); return nil }); err != nil {
		return err
	}
	lead := time.Until(deadline) - margin
	if lead <= 0 {
		return errors.New("the deadline has passed")
	}
	return f.ask(ctx, func() error {
		when := clock.Add(lead)
		if f.sim.plant == LeaseRelative {
			when = f.d.clock().Add(lead)
		}
		if when.After(f.d.lease) || f.d.lease.After(f.d.clock().Add(lead+time.Second)) {
			f.d.lease = when
		}
		return nil
	})
}

func (f *simFence) RecordCuts(ctx context.Context, cuts []topo.CutRange) error {
	return f.locking(ctx, func() error {
		d := f.d
		for _, c := range cuts {
			for b := c.Range.First; b <= c.Range.Last; b++ {
				if old, ok := d.cuts[b]; ok && old.Epoch >= c.Range.Cut.Epoch {
					continue
				}
				if c.Range.Cut.Position < uint64(d.done) && f.sim.plant != OpenBeforeApplierIdle {
					f.sim.fail("I9: changes beyond the cut of %s are applied at %s when it is recorded", c.Range.Cut.Handover, siteID(d.id))
					return errors.New("beyond")
				}
			}
		}
		for _, c := range cuts {
			for b := c.Range.First; b <= c.Range.Last; b++ {
				if old, ok := d.cuts[b]; !ok || old.Epoch < c.Range.Cut.Epoch {
					d.cuts[b] = *c.Range.Cut
				}
			}
			if d.halted == c.Range.Cut.Handover {
				d.halted = ""
				f.sim.site[other(d.id)].db.hint()
				d.hint()
			}
		}
		return nil
	})
}

var errBusy = errors.New("the applier holds the progress row")

// locking is a statement that waits for the applier's transaction under way; one that takes long is ended.
func (f *simFence) locking(ctx context.Context, statement func() error) error {
	for n := 0; ; n++ {
		err := f.ask(ctx, func() error {
			switch {
			case f.sim.plant == OpenBeforeApplierIdle:
			case f.d.busy != nil && n < 20:
				return errBusy
			default:
				f.d.busy = nil
			}
			return statement()
		})
		if !errors.Is(err, errBusy) {
			return err
		}
		if err := pause(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

func (f *simFence) OpenBuckets(ctx context.Context, o postgres.OpenOrder) error {
	var stale error
	var written []topo.EpochSpan
	err := f.ask(ctx, func() error {
		d := f.d
		if d.voids != f.seen {
			return postgres.ErrStale
		}
		for _, sp := range o.Buckets {
			for b := sp.First; b <= sp.Last; b++ {
				r, c := d.row[b], d.closing[b]
				if r.Epoch > sp.Epoch || r.Epoch == sp.Epoch && r.State != "open" || c.epoch >= sp.Epoch {
					stale = fmt.Errorf("bucket %d: %w", b, postgres.ErrStale)
					continue
				}
				delete(d.closing, b)
				if r.Epoch < sp.Epoch {
					d.row[b] = postgres.BucketRow{Bucket: b, Epoch: sp.Epoch, State: "open", Handover: o.Handover}
					d.append(simItem{opened, b, sp.Epoch, o.Handover})
				}
				written = append(written, topo.EpochSpan{First: b, Last: b, Epoch: sp.Epoch})
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errNoAnswer):
		return err
	case err != nil || len(written) == 0:
		return errors.Join(err, stale)
	}
	err = f.ask(ctx, func() error {
		d := f.d
		if d.voids != f.seen {
			return postgres.ErrStale
		}
		for _, sp := range written {
			b := sp.First
			if r := d.row[b]; r.Epoch != sp.Epoch || r.State != "open" || d.closing[b].epoch != 0 {
				stale = fmt.Errorf("bucket %d: %w", b, postgres.ErrStale)
				continue
			}
			if !d.bits[b] {
				d.bits[b] = true
				f.sim.checkOpen(d.id, b)
			}
		}
		return nil
	})
	if errors.Is(err, errNoAnswer) {
		return err
	}
	return errors.Join(err, stale)
}

// RaiseGeneration: the model's store is never recovered, so its one generation is what every document has.
func (f *simFence) RaiseGeneration(context.Context, uint64) error { return nil }

func (f *simFence) RecordOwners(ctx context.Context, _ topo.Ownership) error {
	return f.ask(ctx, func() error { return nil })
}

func (f *simFence) DistrustClock(ctx context.Context) error {
	return f.ask(ctx, func() error {
		f.d.restrict(func(topo.BucketID) bool { return false })
		f.seen = f.d.voids
		if f.d.lease.After(f.d.reached) {
			f.d.reached = f.d.lease
		}
		return nil
	})
}

func (f *simFence) ForgetMoments(ctx context.Context) error {
	return f.ask(ctx, func() error {
		f.d.restrict(func(topo.BucketID) bool { return false })
		f.seen = f.d.voids
		f.d.lease, f.d.reached = time.Time{}, f.d.clock()
		return nil
	})
}

func (f *simFence) EndWriters(ctx context.Context, patience, _ time.Duration) ([]postgres.Blocker, error) {
	if err := pause(ctx, patience); err != nil {
		return nil, err
	}
	var ended []postgres.Blocker
	err := f.ask(ctx, func() error {
		ended = make([]postgres.Blocker, len(f.d.tx))
		clear(f.d.tx)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ended, nil
}
