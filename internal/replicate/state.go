package replicate

import (
	"context"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/topo"
)

// Phase says what following an origin is at.
//
//	connecting ──▶ copying ──▶ connecting ──▶ streaming ──▶ finishing ──▶ retrying ──▶ connecting …
type Phase string

const (
	// Connecting: opening this site's database and the link. Left for Copying or Streaming, or Retrying on an error.
	Connecting Phase = "connecting"
	// Copying: an initial copy comes in. Left for Connecting when it is on disk, for Retrying on an error.
	Copying Phase = "copying"
	// Streaming: changes are applied as they come. Left for Finishing when the link has ended, also because applying
	// failed.
	Streaming Phase = "streaming"
	// Finishing: what had arrived before the link ended is applied. Left for Retrying.
	Finishing Phase = "finishing"
	// Retrying: waiting after an error. Left for Connecting.
	Retrying Phase = "retrying"
	// Stopped: Run has returned.
	Stopped Phase = "stopped"
)

// OriginState is what is known of an origin that is followed.
type OriginState struct {
	Origin   topo.SiteID
	Phase    Phase
	Since    time.Time       // of Phase
	WaitsFor topo.SiteID     // set while a marker is held back until more of this site's changes are applied
	Position change.Position // durably applied
	Behind   uint64          // bytes of the origin's change stream beyond Position, 0 if not known
	// Lag is how old the data of this origin here may be: 0 when everything that the origin has sent is applied. It
	// compares the origin's clock with itself. LagKnown is false before the first contact.
	Lag       time.Duration
	LagKnown  bool
	Committed time.Time      // at the origin: of what was applied last
	AppliedAt time.Time      // when that was
	Wrote     time.Time      // when a transaction of an application was last applied; zero: none since Run
	Heard     time.Time      // the origin's last heartbeat, on this site's clock
	Says      link.Statement // of the origin, at Heard
	Via       topo.SiteID    // the site that hands the origin's changes on at present; "": the origin itself
	Traffic   link.Stats     // of the present connection, else of the last
	Err       string         // the last error, also after it has passed
	ErrAt     time.Time
}

// State tells how following the origin stands.
func (f *Follow) State() OriginState {
	f.mu.Lock()
	defer f.mu.Unlock()
	st := OriginState{Origin: f.Origin, Phase: f.mu.phase, Since: f.mu.since, WaitsFor: f.mu.waitsFor, Position: f.mu.position,
		Committed: f.mu.commit, AppliedAt: f.mu.applied, Wrote: f.mu.wrote, ErrAt: f.mu.errAt}
	if f.mu.err != nil {
		st.Err = f.mu.err.Error()
	}
	if f.mu.in == nil {
		return st
	}
	st.Traffic, st.Via = f.mu.in.Stats(), f.mu.via
	if f.mu.direct == nil {
		return st
	}
	beat, heard := f.mu.direct.Heard()
	st.Heard, st.Says = heard, beat.Statement
	if heard.IsZero() {
		return st
	}
	if beat.End > f.mu.position {
		st.Behind = uint64(beat.End - f.mu.position)
	}
	st.Lag, st.LagKnown = f.lagLocked(beat, heard), true
	return st
}

// lagLocked takes the oldest change that is known not to be applied. While the origin is not heard there may be newer
// ones, as old as the silence.
func (f *Follow) lagLocked(beat link.Heartbeat, heard time.Time) time.Duration {
	silence := time.Since(heard)
	now := beat.Time.Add(silence) // on the origin's clock
	var lag time.Duration
	switch {
	case len(f.mu.flight) > 0 && !f.mu.flight[0].committed.IsZero():
		lag = now.Sub(f.mu.flight[0].committed)
	case len(f.mu.flight) == 0 && beat.Sent > f.mu.position && !f.mu.commit.IsZero():
		lag = now.Sub(f.mu.commit)
		// What was sent since is no older than the heartbeat before, if all was here then: an idle stream sends a position
		// now and then, and nothing else.
		if before := f.mu.direct.Before(); !before.Time.IsZero() && before.Sent <= f.mu.position {
			lag = min(lag, now.Sub(before.Time))
		}
	}
	if quiet := 2 * f.Settings.WithDefaults().Heartbeat; silence > quiet {
		lag = max(lag, silence)
	}
	return max(lag, 0)
}

func (f *Follow) at() change.Position {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.position
}

func (f *Follow) enter(phase Phase, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.phase, f.mu.since, f.mu.waitsFor = phase, time.Now(), ""
	if err != nil {
		f.mu.err, f.mu.errAt = err, time.Now()
	}
}

func (f *Follow) connected(in *link.Inbound, via topo.SiteID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.in, f.mu.via = in, via
	if via == "" {
		f.mu.direct = in
	}
	f.mu.flight, f.mu.lacked = nil, nil
}

// recorded takes the position that the database says.
func (f *Follow) recorded(ctx context.Context, pos change.Position) error {
	f.mu.Lock()
	f.mu.position = pos
	f.mu.Unlock()
	return f.Applied.reload(ctx, f.Origin, pos)
}

func (f *Follow) waits(origin topo.SiteID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.waitsFor = origin
}

func (f *Follow) underWay(tx *change.Tx) {
	if !tx.First {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.flight = append(f.mu.flight, inFlight{tx.Position, tx.Committed, writes(tx)})
}

// writes tells whether a transaction is an application's: heartbeats and markers are rows of atoll's own.
func writes(tx *change.Tx) bool {
	return slices.ContainsFunc(tx.Rows, func(r change.Row) bool { return r.Table != nil && r.Table.Schema != "atoll" })
}

func (f *Follow) landed(pos change.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for n < len(f.mu.flight) && f.mu.flight[n].position <= pos {
		if c := f.mu.flight[n].committed; !c.IsZero() {
			f.mu.commit = c
		}
		if f.mu.flight[n].writes {
			f.mu.wrote = time.Now()
		}
		n++
	}
	f.mu.flight = f.mu.flight[n:]
	f.mu.position, f.mu.applied = max(f.mu.position, pos), time.Now()
}

// Pull has changes up to a position taken from a relay that has them, although the origin may seem to be there.
func (f *Follow) Pull(until change.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.pull = max(f.mu.pull, until)
	if f.mu.in != nil && f.mu.via == "" && f.mu.position < until {
		f.mu.in.End(link.Refusef(link.Closing, "the changes up to position %d are taken from another site", until))
	}
}

// Want tells the origin that somebody here waits for a position of its stream: where nothing is to come, it says so.
func (f *Follow) Want(pos change.Position) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.in != nil && f.mu.via == "" {
		f.mu.in.Want(pos)
	}
}

// pulls tells whether somebody waits for what a relay has.
func (f *Follow) pulls() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.position < f.mu.pull
}
