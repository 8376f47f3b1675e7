// Package recovery begins the next generation of a store whose quorum is lost for good. Look reads what is left of the
// store and what every site's database knows, and computes the new ownership; nothing is changed. Carry then seals the
// databases against the former store, looks again, and writes.
//
// It guarantees that no bucket is open at two sites under the former and the new generation: once a database is sealed
// nothing opens in it under an older one, and only then is it read; a bucket stays where the highest epoch says it is.
// Leases are rewritten, so that observers count from when they see the new record, and handovers that were under way are
// concluded by what the databases say (I1, I6, and "When the store is gone" in the ownership design; adr/011).
//
// It refuses where anything is in doubt: a site that was not read and not given up by name, two owners of one epoch, a
// closed bucket that a given-up site may have opened.
package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// Store is the revived store, which nobody else reaches yet.
type Store interface {
	Ownership(context.Context) (topo.Ownership, store.Revision, error)
	Lease(context.Context, topo.SiteID) (store.Lease, store.Revision, error)
	Handovers(context.Context) ([]store.Handover, error)
	Commit(context.Context, store.Change) (store.Revision, error)
}

// Ask reads what a site's database knows; with seal it is told of that generation first.
type Ask func(ctx context.Context, site topo.SiteID, seal uint64) (topo.Evidence, error)

// Config describes a recovery.
type Config struct {
	Deployment string
	Member     topo.SiteID    // where the store begins anew
	Sites      []topo.SiteID  // every full site
	Without    []topo.SiteID  // given up by the operator
	First      topo.Ownership // of the deployment, where the store was left without any
	Store      Store
	Ask        Ask
	Who, Why   string
	Now        func() time.Time
}

// Plan is what would be written.
type Plan struct {
	Old       topo.Ownership        // that was left
	Next      topo.Ownership        // the new document
	Ranges    []topo.RecoveredRange // why each bucket is where it is
	Failovers []topo.LostFailover   // that only the databases tell of
	Conclude  []topo.HandoverID     // handovers under way in what was left
	Unread    map[topo.SiteID]error // why a site was not read

	evidence map[topo.SiteID]topo.Evidence
	oldRev   store.Revision
	records  []record
}

type record struct {
	handover.Record
	rev store.Revision
}

// ErrChanged: the databases say something else than when the plan was made. It has to be looked at again.
var ErrChanged = errors.New("what the databases say has changed since it was shown")

// driver stands in the records that a recovery concludes: a controller that still drives one finds itself deposed.
const driver = "recovery"

// Look makes a plan. The error is a [*topo.Doubt] where something is not certain; the plan then says what was not read.
func Look(ctx context.Context, cfg Config) (Plan, error) {
	p := Plan{}
	var err error
	p.Old, p.oldRev, err = cfg.Store.Ownership(ctx)
	if errors.Is(err, store.ErrNotFound) {
		p.Old, err = cfg.First, nil
	}
	if err != nil {
		return p, err
	}
	handovers, err := cfg.Store.Handovers(ctx)
	if err != nil {
		return p, err
	}
	for _, h := range handovers {
		rec, err := handover.DecodeRecord(h.Body)
		if err != nil {
			return p, fmt.Errorf("handover %s: %w", h.ID, err)
		}
		p.records = append(p.records, record{rec, h.Revision})
		if !rec.Over() {
			p.Conclude = append(p.Conclude, rec.ID)
		}
	}
	p.evidence, p.Unread = cfg.ask(ctx, 0)
	return p, p.compute(cfg)
}

func (p *Plan) compute(cfg Config) error {
	known := map[topo.HandoverID]bool{}
	for _, r := range p.records {
		known[r.ID] = true
	}
	r, err := p.Old.Recover(topo.Recovery{Sites: cfg.Sites, Evidence: p.evidence, Without: cfg.Without, Known: known})
	var doubt *topo.Doubt
	if errors.As(err, &doubt) {
		for _, site := range cfg.Sites {
			if why := p.Unread[site]; why != nil {
				doubt.Reasons = append(doubt.Reasons, fmt.Sprintf("site %s: %v", site, why))
			}
		}
	}
	p.Next, p.Ranges, p.Failovers = r.Ownership, r.Ranges, r.Failovers
	return err
}

// ask asks every site at once.
func (cfg Config) ask(ctx context.Context, seal uint64) (map[topo.SiteID]topo.Evidence, map[topo.SiteID]error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	found, failed := map[topo.SiteID]topo.Evidence{}, map[topo.SiteID]error{}
	for _, site := range cfg.Sites {
		wg.Go(func() {
			e, err := cfg.Ask(ctx, site, seal)
			if err == nil && e.Site != site {
				err = fmt.Errorf("the database says that it is of site %q", e.Site)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[site] = err
				return
			}
			found[site] = e
		})
	}
	wg.Wait()
	return found, failed
}

// Words are what an operator has to say for it to be done.
func (p Plan) Words(cfg Config) string {
	words := fmt.Sprintf("begin generation %d of the store of %s at %s", p.Next.Generation, cfg.Deployment, cfg.Member)
	if len(cfg.Without) > 0 {
		names := make([]string, len(cfg.Without))
		for i, s := range cfg.Without {
			names[i] = string(s)
		}
		slices.Sort(names)
		words += ", with the databases of " + strings.Join(names, " and ") + " off"
	}
	return words
}

// Carry seals the databases, looks again, and writes the plan into the revived store. On ErrChanged nothing was written,
// and the databases stay sealed: the store that they were sealed against is lost anyway.
func Carry(ctx context.Context, cfg Config, p Plan) error {
	sealed, failed := cfg.ask(ctx, p.Next.Generation)
	for site, e := range sealed {
		if e.Generation != p.Next.Generation {
			return fmt.Errorf("%w: the database of %s was told of generation %d, by another recovery?", ErrChanged, site, e.Generation)
		}
		e.Generation = p.evidence[site].Generation // what it was before this one
		sealed[site] = e
	}
	again := p
	again.evidence, again.Unread = sealed, failed
	if err := again.compute(cfg); err != nil {
		return err
	}
	if fmt.Sprint(owners(again)) != fmt.Sprint(owners(p)) {
		return ErrChanged
	}
	return again.write(ctx, cfg)
}

// owners is what an operator has agreed to.
func owners(p Plan) (out []string) {
	for _, r := range p.Ranges {
		out = append(out, fmt.Sprintf("%s %d-%d %s", r.Keyspace, r.First, r.Last, r.Owner))
	}
	for _, f := range p.Failovers {
		out = append(out, string(f.ID))
	}
	return out
}

// write needs no single transaction: the store counts only when it is put into its place.
func (p Plan) write(ctx context.Context, cfg Config) error {
	reason := fmt.Sprintf("the store was recovered as generation %d", p.Next.Generation)
	for _, r := range p.records {
		if r.Over() {
			continue
		}
		done := r.Conclude(p.moved(r.Record), p.Next.Version, driver, reason, cfg.Now())
		if err := put(ctx, cfg.Store, done, r.rev); err != nil {
			return err
		}
	}
	for _, f := range p.Failovers {
		if err := put(ctx, cfg.Store, cfg.lost(f, p.Next.Version, reason), 0); err != nil {
			return err
		}
	}
	for _, site := range cfg.Sites {
		if err := p.lease(ctx, cfg, site); err != nil {
			return err
		}
	}
	_, err := cfg.Store.Commit(ctx, store.Change{Ownership: &store.OwnershipChange{Expect: p.oldRev, Next: p.Next},
		Audit: fmt.Sprintf("%s at %s from ownership %d.%d (by %s: %s)", reason, cfg.Member, p.Old.Generation, p.Old.Version, cfg.Who, cfg.Why)})
	return err
}

func put(ctx context.Context, s Store, r handover.Record, rev store.Revision) error {
	body := r.Encode()
	if _, err := handover.DecodeRecord(body); err != nil {
		return fmt.Errorf("BUG: a recovery makes a record that cannot be read: %w", err)
	}
	_, err := s.Commit(ctx, store.Change{Handover: &store.HandoverChange{ID: r.ID, Expect: rev, Body: json.RawMessage(body)}})
	return err
}

// lease rewrites a site's record. Its keeper goes on with it at once, or the site's next one; whoever watches it counts a
// whole lease from when it sees the new record, whatever it knew of the former store.
func (p Plan) lease(ctx context.Context, cfg Config, site topo.SiteID) error {
	l, rev, err := cfg.Store.Lease(ctx, site)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	l.Sequence += topo.RecoveryLift
	for _, f := range p.Failovers {
		if f.From == site {
			l.Revoked, l.RevokedBy = true, f.ID
		}
	}
	l.Released = !l.Revoked
	_, err = cfg.Store.Commit(ctx, store.Change{Lease: &store.LeaseChange{Site: site, Expect: rev, Next: l}})
	return err
}

// moved tells whether a handover's target owns all of its buckets now.
func (p Plan) moved(r handover.Record) bool {
	for _, b := range r.Move.Buckets.Buckets() {
		if at, _ := p.Next.At(r.Move.Keyspace, b); at.Owner != r.Move.To {
			return false
		}
	}
	return true
}

// lost is the record of a failover that only the databases tell of, as far as they do.
func (cfg Config) lost(f topo.LostFailover, version uint64, reason string) handover.Record {
	now := cfg.Now().UTC()
	return handover.Record{Format: handover.Format, ID: f.ID, Kind: handover.KindFailover, Move: handover.Move{From: f.From, To: f.To},
		Sites: cfg.Sites, Who: driver, Why: reason, Phase: handover.Done, Driver: driver, Decided: version, Outcome: handover.OutcomeDone,
		Steps:    []handover.Step{{Phase: handover.Taken, At: now, Driver: driver}, {Phase: handover.Done, At: now, Driver: driver}},
		Reasons:  []string{reason + ", which did not know of this failover; the databases did"},
		Failover: &handover.Failover{Taken: f.Taken, Position: f.Position, LossMS: -1}}
}
