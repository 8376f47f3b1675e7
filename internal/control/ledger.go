package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// ledger is a driver's side of the store: what it knows of the record and of the ownership document, with their
// revisions. Only the driver's worker uses it, but for document.
type ledger struct {
	store  Store
	driver string
	id     topo.HandoverID

	rev       store.Revision // of the record; 0: none yet
	written   handover.Record
	owners    topo.Ownership
	ownersRev store.Revision
	doc       atomic.Pointer[document]
}

// document is an ownership document as it goes to sites, so that they need not fetch it.
type document struct {
	generation, version uint64
	body                json.RawMessage // nil: older than what was asked for
}

// document returns the newest document that is known, without body if that is older than version.
func (l *ledger) document(version uint64) document {
	doc := l.doc.Load()
	if doc == nil {
		return document{}
	}
	if doc.version < version {
		return document{generation: doc.generation}
	}
	return *doc
}

func (l *ledger) learn(o topo.Ownership, rev store.Revision) {
	l.owners, l.ownersRev = o, rev
	l.doc.Store(&document{o.Generation, o.Version, o.Encode()})
}

func (l *ledger) readOwnership(ctx context.Context) error {
	o, rev, err := l.store.Ownership(ctx)
	if err == nil {
		l.learn(o, rev)
	}
	return err
}

// decide is the transaction of a claim, a commit or an abort: ownership and record, both compared. The record that
// goes in is that of the state that success leads to.
func (l *ledger) decide(ctx context.Context, do handover.Verb, s handover.State) handover.Event {
	move := s.Record.Move
	var next topo.Ownership
	var err error
	var ok handover.Event
	switch do {
	case handover.Claim:
		next, err = l.owners.StartMove(move.Keyspace, move.Buckets, l.id, move.To)
		ok = handover.Claimed{Version: next.Version}
	case handover.Commit:
		next, err = l.owners.CommitMove(move.Keyspace, move.Buckets, l.id)
		ok = handover.CommitStands{Version: next.Version}
	case handover.Abort:
		next, err = l.owners.AbortMove(move.Keyspace, move.Buckets, l.id)
		ok = handover.AbortStands{Version: next.Version}
	default:
		panic("BUG: no store transaction does " + string(do))
	}
	if err != nil { // the document as we know it does not allow it: it may be old
		return handover.Conflict{Do: do}
	}
	after, _ := handover.Next(s, ok, time.Now())
	rev, err := l.store.Commit(ctx, store.Change{
		Ownership: &store.OwnershipChange{Expect: l.ownersRev, Next: next},
		Handover:  &store.HandoverChange{ID: l.id, Expect: l.rev, Body: after.Record.Encode()},
		Audit:     audit(after.Record),
	})
	switch {
	case err == nil:
		l.rev, l.written = rev, after.Record
		l.learn(next, rev)
		return ok
	case errors.Is(err, store.ErrConflict):
		return handover.Conflict{Do: do}
	default:
		return handover.Failed{Do: do, Text: err.Error()}
	}
}

// reread reads record and ownership again. The error is errDeposed.
func (l *ledger) reread(ctx context.Context) (handover.Event, error) {
	failed := func(err error) (handover.Event, error) {
		return handover.Failed{Do: handover.Reread, Text: err.Error()}, nil
	}
	body, rev, err := l.store.Handover(ctx, l.id)
	exists := err == nil
	if errors.Is(err, store.ErrNotFound) && l.rev != 0 && l.replaced(ctx) {
		return nil, fmt.Errorf("%w: the store was recovered without it", errDeposed)
	}
	if err != nil && (!errors.Is(err, store.ErrNotFound) || l.rev != 0) {
		return failed(err)
	}
	var rec handover.Record
	if exists {
		if rec, err = handover.DecodeRecord(body); err != nil {
			return failed(err)
		}
		if rec.Driver != l.driver {
			return nil, fmt.Errorf("%w: %s", errDeposed, rec.Driver)
		}
	}
	if err := l.readOwnership(ctx); err != nil {
		return failed(err)
	}
	if exists {
		l.rev, l.written = rev, rec
	}
	return handover.Observed{Exists: exists, Record: rec}, nil
}

// replaced tells whether the store is of a newer generation than the one that this handover was claimed in: it began
// with what was left, and that may be without the handover.
func (l *ledger) replaced(ctx context.Context) bool {
	o, _, err := l.store.Ownership(ctx)
	return err == nil && o.Generation > l.owners.Generation
}

// save writes the record off the critical path. The error is errDeposed.
func (l *ledger) save(ctx context.Context, s handover.State) (handover.Event, error) {
	rec := s.Record
	if l.rev != 0 && !rec.Follows(l.written) { // asked for before a decision that is written by now
		return handover.Failed{Do: handover.Save, Text: "superseded"}, nil
	}
	text := ""
	if rec.Over() {
		text = audit(rec)
	}
	rev, err := l.store.Commit(ctx, store.Change{Handover: &store.HandoverChange{ID: l.id, Expect: l.rev, Body: rec.Encode()}, Audit: text})
	switch {
	case err == nil:
		l.rev, l.written = rev, rec
		return handover.Saved{Outcome: rec.Outcome}, nil
	case !errors.Is(err, store.ErrConflict):
		return handover.Failed{Do: handover.Save, Text: err.Error()}, nil
	}
	body, rev, err := l.store.Handover(ctx, l.id)
	if err != nil {
		return handover.Failed{Do: handover.Save, Text: err.Error()}, nil
	}
	stored, err := handover.DecodeRecord(body)
	switch {
	case err != nil:
		return handover.Failed{Do: handover.Save, Text: err.Error()}, nil
	case stored.Driver != l.driver:
		return nil, fmt.Errorf("%w: %s", errDeposed, stored.Driver)
	case rec.Outcome == handover.OutcomeRefused && stored.Outcome != handover.OutcomeRefused:
		return nil, fmt.Errorf("%w: a claim that was given up has landed", errDeposed)
	case rec.Follows(stored): // an earlier save whose answer was lost
		l.rev, l.written = rev, stored
	}
	return handover.Failed{Do: handover.Save, Text: "an earlier save had been written"}, nil
}

// audit is one line for people: who did what.
func audit(r handover.Record) string {
	buckets := fmt.Sprintf("%s %s", r.Move.Keyspace, r.Move.Buckets)
	if r.Failover != nil {
		if buckets, _ = takenText(r.Failover.Taken); buckets == "" {
			buckets = "nothing"
		}
	}
	line := fmt.Sprintf("%s %s: %s: %s from %s to %s", r.Kind, r.ID, r.Phase, buckets, r.Move.From, r.Move.To)
	if r.Outcome != "" {
		line += fmt.Sprintf(", outcome %s", r.Outcome)
	}
	for _, reason := range r.Reasons {
		line += "; " + reason
	}
	line += fmt.Sprintf(" (by %s", r.Who)
	if r.Why != "" {
		line += ": " + r.Why
	}
	return line + ")"
}
