package replicate

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// originDB is the smallest database that has a change stream: a log, and per target a confirmed position.
type originDB struct {
	site topo.SiteID
	mu   struct {
		sync.Mutex
		log     []change.Tx // parts in order
		grown   chan struct{}
		slots   map[topo.SiteID]change.Position
		running map[topo.SiteID]int
		most    int // that ever ran at once for one target
	}
}

func newOrigin(site topo.SiteID) *originDB {
	db := &originDB{site: site}
	db.mu.grown = make(chan struct{})
	db.mu.slots = make(map[topo.SiteID]change.Position)
	db.mu.running = make(map[topo.SiteID]int)
	return db
}

func (db *originDB) write(txs ...change.Tx) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.mu.log = append(db.mu.log, txs...)
	close(db.mu.grown)
	db.mu.grown = make(chan struct{})
}

func (db *originDB) confirmed(target topo.SiteID) change.Position {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.mu.slots[target]
}

func (db *originDB) open(_ context.Context, target topo.SiteID) (Source, error) {
	return &source{db: db, target: target}, nil
}

type source struct {
	db     *originDB
	target topo.SiteID
}

func (s *source) Confirmed(context.Context) (change.Position, bool, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	pos, exists := s.db.mu.slots[s.target]
	return pos, exists, nil
}

func (s *source) end() change.Position {
	if n := len(s.db.mu.log); n > 0 {
		return s.db.mu.log[n-1].Position
	}
	return 10
}

func (s *source) Create(context.Context) error {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	if _, exists := s.db.mu.slots[s.target]; !exists {
		s.db.mu.slots[s.target] = s.end()
	}
	return nil
}

// Copy sends every value that the log has inserted so far, a few to a piece.
func (s *source) Copy(ctx context.Context, _ bool, emit func(context.Context, change.Copy) error) error {
	s.db.mu.Lock()
	s.db.mu.slots[s.target] = s.end()
	at, log := s.end(), slices.Clone(s.db.mu.log)
	s.db.mu.Unlock()
	for _, tx := range log {
		var data []byte
		for _, r := range tx.Rows {
			data = append(append(data, r.New[0].Bytes...), '\n')
		}
		if err := emit(ctx, change.Copy{Table: table, Data: data}); err != nil {
			return err
		}
	}
	return emit(ctx, change.Copy{Done: true, Position: at, Epochs: change.Epochs{"users": {1: 7}}})
}

func (s *source) Run(ctx context.Context, from change.Position, epochs change.Epochs, emit func(context.Context, change.Tx) error) error {
	db := s.db
	db.mu.Lock()
	confirmed, exists := db.mu.slots[s.target]
	db.mu.running[s.target]++
	db.mu.most = max(db.mu.most, db.mu.running[s.target])
	db.mu.Unlock()
	defer func() {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.mu.running[s.target]--
	}()
	if !exists || from < confirmed {
		return fmt.Errorf("asked for changes behind %d, confirmed is %d: the target must be rebuilt", from, confirmed)
	}
	for next := 0; ; {
		db.mu.Lock()
		fresh, grown := slices.Clone(db.mu.log[next:]), db.mu.grown
		db.mu.Unlock()
		for _, tx := range fresh {
			next++
			if tx.Position <= from {
				continue
			}
			if err := emit(ctx, tx); err != nil {
				return err
			}
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *source) Reach(change.Position) {}

func (s *source) Confirm(pos change.Position) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	s.db.mu.slots[s.target] = max(s.db.mu.slots[s.target], pos)
}

func (s *source) Close() error { return nil }

// targetDB is the smallest database that applies: values in the order in which they came, and progress per origin,
// changed together.
type targetDB struct {
	t    testing.TB
	site topo.SiteID
	mu   struct {
		sync.Mutex
		values   map[topo.SiteID][]string
		progress map[topo.SiteID]change.Progress
		markers  []change.Marker
		broken   error             // of every commit
		lost     func() bool       // whether the answer of this commit is lost
		gate     chan struct{}     // not nil: every transaction waits for a token
		got      []change.Position // handed to Run
		commits  int               // durable
		kept     []change.Position // for other sites, with what was applied
	}
}

func newTarget(t testing.TB, site topo.SiteID) *targetDB {
	db := &targetDB{t: t, site: site}
	db.mu.values = make(map[topo.SiteID][]string)
	db.mu.progress = make(map[topo.SiteID]change.Progress)
	return db
}

func (db *targetDB) fail(err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.mu.broken = err
}

func (db *targetDB) valuesOf(origin topo.SiteID) []string {
	db.mu.Lock()
	defer db.mu.Unlock()
	return slices.Clone(db.mu.values[origin])
}

func (db *targetDB) at(origin topo.SiteID) change.Position {
	db.mu.Lock()
	defer db.mu.Unlock()
	return db.mu.progress[origin].Position
}

func (db *targetDB) Vector(context.Context) (topo.Vector, error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	v := make(topo.Vector)
	for origin, p := range db.mu.progress {
		v[origin] = uint64(p.Position)
	}
	return v, nil
}

func (db *targetDB) Markers(_ context.Context, site topo.SiteID, id topo.HandoverID) (out []change.Marker, err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, m := range db.mu.markers {
		if m.Site == site && m.Handover == id && m.Kind == change.MarkerClosed {
			out = append(out, m)
		}
	}
	return out, nil
}

func (db *targetDB) opener(origin topo.SiteID) func(context.Context) (Sink, error) {
	return func(context.Context) (Sink, error) { return &sink{db: db, origin: origin}, nil }
}

type sink struct {
	db     *targetDB
	origin topo.SiteID
}

func (s *sink) Progress(context.Context) (change.Progress, error) {
	s.db.mu.Lock()
	defer s.db.mu.Unlock()
	p := s.db.mu.progress[s.origin]
	p.Epochs = maps.Clone(p.Epochs)
	return p, nil
}

func (s *sink) Copy(ctx context.Context, next func(context.Context) (change.Copy, error)) error {
	var values []string
	for {
		c, err := next(ctx)
		if err != nil {
			return err
		}
		if !c.Done {
			values = append(values, strings.Split(strings.TrimSuffix(string(c.Data), "\n"), "\n")...)
			continue
		}
		s.db.mu.Lock()
		defer s.db.mu.Unlock()
		if s.db.mu.broken != nil {
			return s.db.mu.broken
		}
		if len(s.db.mu.values[s.origin]) > 0 && len(values) > 0 {
			return errors.New("the table is not empty")
		}
		s.db.mu.values[s.origin] = values
		s.db.mu.progress[s.origin] = change.Progress{Known: true, Position: c.Position, Epochs: c.Epochs}
		return nil
	}
}

func (s *sink) Run(ctx context.Context, in <-chan change.Tx, applied func(change.Position, []change.Marker)) error {
	var parts []change.Tx
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case tx, ok := <-in:
			if !ok {
				return nil
			}
			if parts = append(parts, tx); !tx.Last {
				continue
			}
			if err := s.wait(ctx, tx.Position); err != nil {
				return err
			}
			markers, err := s.commit(parts)
			if err != nil {
				return err
			}
			applied(tx.Position, markers)
			parts = nil
		}
	}
}

func (s *sink) wait(ctx context.Context, pos change.Position) error {
	s.db.mu.Lock()
	s.db.mu.got = append(s.db.mu.got, pos)
	gate := s.db.mu.gate
	s.db.mu.Unlock()
	if gate == nil {
		return nil
	}
	select {
	case <-gate:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *sink) commit(parts []change.Tx) ([]change.Marker, error) {
	db := s.db
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.mu.broken != nil {
		return nil, db.mu.broken
	}
	p := db.mu.progress[s.origin]
	pos := parts[0].Position
	if !p.Known || pos <= p.Position {
		db.t.Errorf("position %d from %s comes at progress %+v", pos, s.origin, p)
	}
	var markers []change.Marker
	for _, part := range parts {
		for _, r := range part.Rows {
			db.mu.values[s.origin] = append(db.mu.values[s.origin], string(r.New[0].Bytes))
		}
		markers = append(markers, part.Markers...)
	}
	db.mu.markers = append(db.mu.markers, markers...)
	if parts[0].Keep {
		db.mu.kept = append(db.mu.kept, pos)
	}
	p.Position = pos
	db.mu.progress[s.origin] = p
	db.mu.commits++
	if db.mu.lost != nil && db.mu.lost() {
		return nil, errors.New("connection to the database lost behind its commit")
	}
	return markers, nil
}

func (s *sink) Close() error { return nil }
