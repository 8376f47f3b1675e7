package handover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Format is the version of the record's JSON form that this build writes and the highest that it reads.
const Format = 1

// The kinds of handover in format 1.
const (
	Switch       = "switch"   // planned: waits writers out, loses nothing
	KindFailover = "failover" // the owner is gone; its record begins in TAKEN
)

// Phase is where a handover stands.
//
//	PREPARE ─▶ MOVING ─▶ FENCED ─▶ CAUGHT_UP ─▶ COMMITTED ─▶ OPEN ─▶ DONE
//	   └──────────┴─────────┴──────────┴──▶ ABORTED
//
// A failover is watched and decided by a [Lookout]; what is stored of it begins when the store says that it stands:
//
//	TAKEN ─▶ OPEN ─▶ DONE, or ABORTED with the outcome "refused": given up, and its id can never be used again
type Phase string

const (
	// Prepare: readiness is being asked for; nothing has changed anywhere, and nothing is in the store. Left by
	// Claimed to Moving, or by Refused to Aborted. A dry run ends here. A controller that dies here leaves nothing.
	Prepare Phase = "PREPARE"
	// Moving: the store says that the buckets move, gateways hold new writes of them, From's fence is open or closing.
	// First every site's gateways settle, or the drain bound passes; then From closes. Left by Closed to Fenced, by
	// MarkerArrived to CaughtUp (the marker in the stream proves the close), or, when writers remain or the fence
	// bound passes, to Aborted.
	Moving Phase = "MOVING"
	// Fenced: From's marker is durable, so nobody writes these buckets anywhere. Left by MarkerArrived to CaughtUp, or
	// to Aborted when the catch-up bound passes.
	Fenced Phase = "FENCED"
	// CaughtUp: To has applied From's marker and everything the marker depends on. Left by Committed to Committed;
	// without the store the buckets stay closed until it answers.
	CaughtUp Phase = "CAUGHT_UP"
	// Committed: the store says that To owns the buckets, at the next epoch. No way back. Left by Opened to Open; an
	// open that fails is tried for ever.
	Committed Phase = "COMMITTED"
	// Taken: the store says that To owns what From had open, at the next epoch, and From's lease is revoked. No way
	// back. To's keeper records the cuts and opens. Left by Reached to Opened; an open that fails is tried for ever.
	Taken Phase = "TAKEN"
	// Opened: To's fence is open, gateways release. Left to Done when every site's gateways have the view, or the
	// release bound has passed.
	Opened Phase = "OPEN"
	// Done: over; the record is the report.
	Done Phase = "DONE"
	// Aborted: nothing was claimed (the outcome is "refused" at once), or the store says that From keeps the buckets, at
	// the next epoch. From is asked to reopen; the outcome is set when it has, or when the reopen bound has passed (its
	// keeper opens by itself when it is back).
	Aborted Phase = "ABORTED"
)

// Outcome is how a handover ended; empty until it has.
type Outcome string

const (
	OutcomeDone    Outcome = "done"    // To owns the buckets
	OutcomeAborted Outcome = "aborted" // From keeps them, one epoch higher
	OutcomeRefused Outcome = "refused" // nothing was changed
	OutcomeReady   Outcome = "ready"   // dry run: it would have been tried
)

// Bounds limit the waits of a switch, in milliseconds.
type Bounds struct {
	MaxLagMS    int64 `json:"max_lag_ms"` // PREPARE refuses a target beyond this
	DrainMS     int64 `json:"drain_ms"`   // MOVING: gateways and requests in flight
	FenceMS     int64 `json:"fence_ms"`   // MOVING: writers at the source
	CatchMS     int64 `json:"catch_ms"`   // FENCED: the marker
	EndBlockers bool  `json:"end_blockers,omitempty"`
}

const (
	maxBoundMS = 24 * 3600 * 1000
	maxWaitUS  = 100 * 365 * 24 * 3600 * 1_000_000 // a site may be lost for long before an operator decides
)

// Drain is how long MOVING waits for gateways.
func (b Bounds) Drain() time.Duration { return time.Duration(b.DrainMS) * time.Millisecond }

// Fence is how long the source's fence waits writers out.
func (b Bounds) Fence() time.Duration { return time.Duration(b.FenceMS) * time.Millisecond }

// Catch is how long FENCED waits for the marker.
func (b Bounds) Catch() time.Duration { return time.Duration(b.CatchMS) * time.Millisecond }

// MaxLag is the highest lag of the target at which a switch starts.
func (b Bounds) MaxLag() time.Duration { return time.Duration(b.MaxLagMS) * time.Millisecond }

// Move is what a handover moves.
type Move struct {
	Keyspace topo.KeyspaceID  `json:"keyspace"`
	Buckets  topo.Spans       `json:"buckets"`
	From     topo.SiteID      `json:"from,omitempty"` // set by readiness
	To       topo.SiteID      `json:"to"`
	Epochs   []topo.EpochSpan `json:"epochs,omitempty"` // of the buckets at From, set by readiness; the marker must name them
}

// FactClosing is the fact of MOVING that says how long after its beginning the fence was asked to close: until then
// gateways settled.
const FactClosing = "closing after"

// Step is the entry into a phase. Times are the driver's wall clock: for people, never compared.
type Step struct {
	Phase  Phase             `json:"phase"`
	At     time.Time         `json:"at"`
	Driver string            `json:"driver"`
	Facts  map[string]string `json:"facts,omitempty"`
}

// Pause is how long writes of the moved buckets waited, as the driver saw it. Across a change of drivers it is the
// difference of two sites' wall clocks, and says so.
type Pause struct {
	HoldUS      int64 `json:"hold_us"`   // from the claim to the open fence at To
	ClosedUS    int64 `json:"closed_us"` // from the closed fence at From to the open one at To
	Approximate bool  `json:"approximate,omitempty"`
}

// Record is a handover as it stands in the store: all that another controller needs to go on with it.
type Record struct {
	Format int             `json:"format"`
	ID     topo.HandoverID `json:"id"`
	Kind   string          `json:"kind"`
	Move   Move            `json:"move"`
	Sites  []topo.SiteID   `json:"sites"` // whose gateways take part
	Bounds Bounds          `json:"bounds"`
	Who    string          `json:"who"`
	Why    string          `json:"why,omitempty"`

	Phase   Phase    `json:"phase"`
	Driver  string   `json:"driver"`            // the controller that drives; taken over by compare-and-set
	Claimed uint64   `json:"claimed,omitempty"` // ownership version in which the buckets began to move
	Decided uint64   `json:"decided,omitempty"` // ownership version of the commit or the abort
	Steps   []Step   `json:"steps"`
	Outcome Outcome  `json:"outcome,omitempty"`
	Reasons []string `json:"reasons,omitempty"` // why it was refused or aborted
	Pause   *Pause   `json:"pause,omitempty"`

	Failover *Failover `json:"failover,omitempty"` // of that kind
}

// Failover is what the record of a failover has besides. Move names the lost site and the taker only.
type Failover struct {
	Taken    []topo.Taken `json:"taken,omitempty"`    // with the epochs before
	Position uint64       `json:"position,omitempty"` // the cut: how far the taker had applied the lost site's stream
	// Survivors are how far the other sites that stopped with the taker had come; Silent did not answer, and may have more.
	Survivors map[topo.SiteID]uint64 `json:"survivors,omitempty"`
	Silent    []topo.SiteID          `json:"silent,omitempty"`
	// Incident names the failover whose leftovers this one takes: buckets that were moving when the site was lost.
	Incident  topo.HandoverID `json:"incident,omitempty"`
	Automatic bool            `json:"automatic,omitempty"` // else an operator asked for it
	Override  []string        `json:"override,omitempty"`  // rules that the operator set aside
	// In microseconds on the taker's clock, from its last sight of a renewal: to the end of the lease with its rate
	// error, to the takeover in the store, to the open fence.
	ExpiredUS int64   `json:"expired_us"`
	WaitedUS  int64   `json:"waited_us"`
	OpenUS    int64   `json:"open_us,omitempty"`
	LossMS    int64   `json:"loss_ms"`          // estimated when it was decided; -1: not known
	Return    *Return `json:"return,omitempty"` // set by compare-and-set on the finished record
}

// Return is how the tail of a lost site was settled.
type Return struct {
	At      time.Time `json:"at"`
	Applied int       `json:"applied"` // stale row changes that stand
	Kept    int       `json:"kept"`    // stale row changes that do not; all are in the conflict log
}

// Over tells whether nothing is left to do.
func (r Record) Over() bool { return r.Outcome != "" }

// Follows tells whether r may replace stored where both are of the same driver: never an undecided record a decided
// one, and never a refusal a claim that landed after it was given up.
func (r Record) Follows(stored Record) bool {
	if r.Outcome == OutcomeRefused {
		return stored.Outcome == OutcomeRefused
	}
	rank := func(p Phase) int {
		return slices.Index([]Phase{Moving, Fenced, CaughtUp, Committed, Aborted, Taken, Opened, Done}, p)
	}
	return rank(r.Phase) >= rank(stored.Phase)
}

// Entered returns the last step into a phase.
func (r Record) Entered(p Phase) (Step, bool) {
	for i := len(r.Steps) - 1; i >= 0; i-- {
		if r.Steps[i].Phase == p {
			return r.Steps[i], true
		}
	}
	return Step{}, false
}

// Encode returns the record's JSON form.
func (r Record) Encode() []byte {
	out, err := json.Marshal(r)
	if err != nil {
		panic("BUG: handover record does not marshal: " + err.Error())
	}
	return out
}

// DecodeRecord reads and validates a record from the store or from another site.
func DecodeRecord(data []byte) (Record, error) {
	var probe struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return Record{}, fmt.Errorf("handover record: %w", err)
	}
	if probe.Format > Format {
		return Record{}, fmt.Errorf("handover record of format %d: %w", probe.Format, topo.ErrNewerFormat)
	}
	var r Record
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&r); err != nil {
		return Record{}, fmt.Errorf("handover record: %w", err)
	}
	if err := r.validate(); err != nil {
		return Record{}, fmt.Errorf("handover record %s: %w", r.ID, err)
	}
	return r, nil
}

func (r Record) validate() error {
	switch {
	case r.Format != Format:
		return fmt.Errorf("format %d; want %d", r.Format, Format)
	case r.ID == "":
		return errors.New("no id")
	case r.Kind != Switch && r.Kind != KindFailover:
		return fmt.Errorf("kind %q; this build knows %q and %q", r.Kind, Switch, KindFailover)
	case r.Driver == "":
		return errors.New("no driver")
	case len(r.Sites) == 0:
		return errors.New("no sites")
	case len(r.Steps) == 0 || r.Steps[len(r.Steps)-1].Phase != r.Phase:
		return fmt.Errorf("in phase %s, but its last step is not", r.Phase)
	case r.Kind == KindFailover:
		return r.validateFailover()
	case r.Failover != nil:
		return errors.New("a switch that speaks of a failover")
	case r.Move.Keyspace == "" || len(r.Move.Buckets) == 0 || r.Move.To == "":
		return errors.New("keyspace, buckets or target is missing")
	}
	for _, ms := range []int64{r.Bounds.MaxLagMS, r.Bounds.DrainMS, r.Bounds.FenceMS, r.Bounds.CatchMS} {
		if ms < 0 || ms > maxBoundMS {
			return fmt.Errorf("a bound of %d ms; want 0 to %d", ms, int64(maxBoundMS))
		}
	}
	for i, sp := range r.Move.Buckets {
		if sp.First > sp.Last || sp.Last >= topo.MaxBuckets || i > 0 && sp.First <= r.Move.Buckets[i-1].Last {
			return fmt.Errorf("buckets %q are not a set", r.Move.Buckets)
		}
	}
	switch r.Phase {
	case Moving, Fenced, CaughtUp:
	case Committed, Opened, Done:
		if r.Decided == 0 {
			return fmt.Errorf("%s without the ownership version of its commit", r.Phase)
		}
	case Aborted:
		if r.Decided == 0 && r.Outcome != OutcomeRefused {
			return errors.New("aborted without the ownership version of its abort")
		}
		if r.Outcome == OutcomeRefused {
			return nil
		}
	default: // PREPARE is never stored
		return fmt.Errorf("unknown phase %q", r.Phase)
	}
	if r.Claimed == 0 || r.Move.From == "" || r.Move.From == r.Move.To {
		return fmt.Errorf("%s without a claim or a source", r.Phase)
	}
	if err := covers(r.Move.Epochs, r.Move.Buckets); err != nil {
		return err
	}
	return nil
}

func (r Record) validateFailover() error {
	f := r.Failover
	switch {
	case f == nil:
		return errors.New("a failover that does not say what it took")
	case r.Move.From == "" || r.Move.To == "" || r.Move.From == r.Move.To:
		return errors.New("without a lost site or a taker")
	case r.Move.Keyspace != "" || len(r.Move.Buckets) > 0 || len(r.Move.Epochs) > 0:
		return errors.New("a failover names keyspaces and buckets in what it took, not in its move")
	case f.ExpiredUS < 0 || f.WaitedUS < 0 || f.WaitedUS > maxWaitUS || f.OpenUS < 0 || f.LossMS < -1:
		return fmt.Errorf("times of %d, %d, %d µs and an estimated loss of %d ms", f.ExpiredUS, f.WaitedUS, f.OpenUS, f.LossMS)
	}
	for _, t := range f.Taken {
		var buckets topo.Spans
		for i, e := range t.Buckets {
			if e.First > e.Last || e.Last >= topo.MaxBuckets || e.Epoch == 0 || i > 0 && e.First <= t.Buckets[i-1].Last {
				return fmt.Errorf("buckets %v of keyspace %s are not a set", t.Buckets, t.Keyspace)
			}
			buckets = append(buckets, topo.Span{First: e.First, Last: e.Last})
		}
		if t.Keyspace == "" || len(buckets) == 0 {
			return errors.New("took a keyspace without a name or buckets")
		}
	}
	switch r.Phase {
	case Taken, Opened, Done:
		if r.Decided == 0 || len(f.Taken) == 0 {
			return fmt.Errorf("%s without the ownership version of the takeover, or what it took", r.Phase)
		}
		if (r.Outcome == OutcomeDone) != (r.Phase == Done) || r.Outcome != "" && r.Outcome != OutcomeDone {
			return fmt.Errorf("%s with outcome %q", r.Phase, r.Outcome)
		}
	case Aborted:
		if r.Outcome != OutcomeRefused || r.Decided != 0 {
			return fmt.Errorf("a failover that was given up has the outcome %q", OutcomeRefused)
		}
	default:
		return fmt.Errorf("phase %q is none of a failover's", r.Phase)
	}
	return nil
}

// covers tells whether epochs name each of the buckets exactly once, in order.
func covers(epochs []topo.EpochSpan, buckets topo.Spans) error {
	i := 0
	for _, sp := range buckets {
		for at := sp.First; at <= sp.Last; i++ {
			if i >= len(epochs) || epochs[i].First != at || epochs[i].Last < at || epochs[i].Last > sp.Last || epochs[i].Epoch == 0 {
				return fmt.Errorf("epochs %v do not cover buckets %s from %d on", epochs, buckets, at)
			}
			at = epochs[i].Last + 1
		}
	}
	if i != len(epochs) {
		return fmt.Errorf("epochs %v go beyond buckets %s", epochs, buckets)
	}
	return nil
}
