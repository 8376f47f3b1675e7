package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/reload"
	"github.com/atollhq/atoll/internal/split"
)

// stopReason says why a move or a shadow ended by itself; it is the label of a metric.
type stopReason string

const (
	stopErrors stopReason = "errors" // too many answers were failures
	stopLate   stopReason = "late"   // too many came too late
)

// stop is the end of a move or a shadow at this gateway.
type stop struct {
	Reason stopReason  `json:"reason"`
	At     time.Time   `json:"at"`
	Tally  split.Tally `json:"tally"` // what was counted by then
}

// guard ends a move or a shadow whose new way fails too often. It does not begin again by itself: somebody has to have changed
// something. Left when the specification says something else about it.
type guard struct {
	name     string          // "move basket"
	declared json.RawMessage // what the specification says of it
	stops    *stops
	stopped  atomic.Pointer[stop] // nil: it goes on
	mu       struct {
		sync.Mutex
		watches map[stopReason]*split.Watch
	}
}

func (s *stops) newGuard(what, route string, declared any, b split.Budget, reasons ...stopReason) *guard {
	text, err := json.Marshal(declared)
	if err != nil {
		panic("BUG: a declaration does not marshal: " + err.Error())
	}
	g := &guard{name: what + " " + route, declared: text, stops: s}
	g.mu.watches = make(map[stopReason]*split.Watch)
	for _, why := range reasons {
		g.mu.watches[why] = split.NewWatch(b, time.Now())
	}
	g.stopped.Store(s.of(g))
	return g
}

// on tells whether it goes on. A nil guard is one of nothing.
func (g *guard) on() bool { return g.stopped.Load() == nil }

// count takes in what became of a request: failed is why that counts against the budget, "" if it does not.
func (g *guard) count(way split.Way, failed stopReason) {
	now := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for why, watch := range g.mu.watches {
		if exceeded := watch.Add(way, failed == why, now); exceeded && g.on() {
			g.stopped.Store(&stop{why, now.UTC(), watch.Tally(now)})
			g.stops.note(g)
		}
	}
}

func (g *guard) tally(of stopReason) split.Tally {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.watches[of].Tally(time.Now())
}

// stops keeps what has stopped over a restart: whoever restarts a gateway for another reason has not looked at it.
type stops struct {
	path string // "": nowhere
	log  *slog.Logger
	save chan struct{} // a kick
	mu   struct {
		sync.Mutex
		all map[string]keptStop // by guard
	}
}

// keptStop is a stop and what the specification said then.
type keptStop struct {
	Declared json.RawMessage `json:"declared"`
	stop
}

// stopsFile is what the file has in it.
type stopsFile struct {
	Format int                 `json:"format"`
	Stops  map[string]keptStop `json:"stops"`
}

const (
	stopsFormat = 1
	maxStops    = 4 << 20 // bytes
)

// openStops reads what an earlier run left. A file that is not one is reported and replaced when something stops: what is in it
// only saves a service a few more failures.
func openStops(dir, name string, log *slog.Logger) *stops {
	s := &stops{log: log, save: make(chan struct{}, 1)}
	s.mu.all = make(map[string]keptStop)
	if dir == "" {
		return s
	}
	s.path = filepath.Join(dir, "stops-"+name+".json")
	kept, err := readStops(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		log.Error("refused the saved stops of moves and shadows; they begin again", "error", err)
	default:
		s.mu.all = kept
	}
	return s
}

func readStops(path string) (map[string]keptStop, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxStops))
	if err != nil {
		return nil, err
	}
	kept, err := parseStops(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return kept, nil
}

func parseStops(data []byte) (map[string]keptStop, error) {
	var in stopsFile
	if err := json.Unmarshal(data, &in); err != nil {
		return nil, err
	}
	if in.Format != stopsFormat || in.Stops == nil {
		return nil, fmt.Errorf("format %d, want %d", in.Format, stopsFormat)
	}
	return in.Stops, nil
}

// of finds the stop of a guard, if the specification still says the same. One that it does not is over.
func (s *stops) of(g *guard) *stop {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept, ok := s.mu.all[g.name]
	if !ok {
		return nil
	}
	if string(kept.Declared) != string(g.declared) {
		delete(s.mu.all, g.name)
		kick(s.save)
		return nil
	}
	s.log.Warn("still stopped: change what the specification says of it to begin again", "what", g.name, "reason", kept.Reason, "since", kept.At)
	return &kept.stop
}

// note keeps a stop, and says so.
func (s *stops) note(g *guard) {
	why := g.stopped.Load()
	s.log.Error("stopped by itself: the new way fails too often; change what the specification says of it to begin again", "what", g.name, "reason", why.Reason,
		"new_answers", why.Tally.New.All, "new_failed", why.Tally.New.Failed, "old_answers", why.Tally.Old.All, "old_failed", why.Tally.Old.Failed)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.all[g.name] = keptStop{g.declared, *why}
	kick(s.save)
}

// keep saves what has stopped, off the path of requests.
func (s *stops) keep(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.save:
		}
		if s.path == "" {
			continue
		}
		s.mu.Lock()
		data, err := json.Marshal(stopsFile{stopsFormat, s.mu.all})
		s.mu.Unlock()
		if err == nil {
			err = os.MkdirAll(filepath.Dir(s.path), 0o700)
		}
		if err == nil {
			err = reload.Replace(s.path, 0o600, append(data, '\n'))
		}
		if err != nil {
			s.log.Error("could not save what has stopped; a restart would begin it again", "error", err)
		}
	}
}
