package topo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/atollhq/atoll/internal/plant"
)

// OwnershipFormat is the version of the document's JSON form that this build writes and the highest it reads.
const OwnershipFormat = 1

// ErrNewerFormat is returned for a document that a newer Atoll wrote.
var ErrNewerFormat = errors.New("written by a newer version of atoll; upgrade this site")

// BucketState says whether a bucket has a settled owner.
//
//	open ──StartMove──▶ moving ──CommitMove/AbortMove──▶ open (epoch+1)
type BucketState string

const (
	// Open: the owner may accept writes. Left by StartMove, or by a failover.
	Open BucketState = "open"
	// Moving: a handover has claimed the bucket; the owner's fence may be closed at any time. Gateways hold writes.
	// Left by CommitMove (new owner) or AbortMove (same owner); both raise the epoch.
	Moving BucketState = "moving"
)

// Cut ends an epoch whose owner died: changes of From at this epoch or an earlier one, beyond Position in From's
// stream, are stale (I5); those at or before it are ordinary. It stays in the document until every site knows it, and
// From is back and its tail is settled; until then From is not eligible as an owner.
type Cut struct {
	From     SiteID     `json:"from"`
	Epoch    Epoch      `json:"epoch"`
	Position uint64     `json:"position"`
	Handover HandoverID `json:"handover"`          // the failover
	Settled  bool       `json:"settled,omitempty"` // From is back; other sites have still to take note
	Earlier  *Cut       `json:"earlier,omitempty"` // of the bucket, of another site or not: an owner was lost before the last one was settled
}

// same compares two chains of cuts.
func (c *Cut) same(o *Cut) bool {
	for ; c != nil && o != nil; c, o = c.Earlier, o.Earlier {
		if c.From != o.From || c.Epoch != o.Epoch || c.Position != o.Position || c.Handover != o.Handover || c.Settled != o.Settled {
			return false
		}
	}
	return c == o
}

// open is the newest cut of a chain whose tail is not settled; nil if there is none.
func (c *Cut) open() *Cut {
	for ; c != nil; c = c.Earlier {
		if !c.Settled {
			return c
		}
	}
	return nil
}

// maxCuts bounds the owners of a bucket that may be lost one after the other and not be settled.
const maxCuts = 16

func (c *Cut) validate(below Epoch) error {
	for n := 0; c != nil; c, n = c.Earlier, n+1 {
		if n == maxCuts {
			return fmt.Errorf("more than %d cuts", maxCuts)
		}
		if c.From == "" || c.Handover == "" || c.Epoch == 0 || c.Epoch >= below {
			return fmt.Errorf("a cut that makes no sense: site %q, epoch %d, failover %q", c.From, c.Epoch, c.Handover)
		}
		below = c.Epoch
	}
	return nil
}

// Range is a run of neighbouring buckets with the same owner, epoch and state.
type Range struct {
	First    BucketID    `json:"first"`
	Last     BucketID    `json:"last"`
	Owner    SiteID      `json:"owner"`
	Epoch    Epoch       `json:"epoch"`
	State    BucketState `json:"state"`
	Handover HandoverID  `json:"handover,omitempty"` // set while moving
	Target   SiteID      `json:"target,omitempty"`   // set while moving
	Cut      *Cut        `json:"cut,omitempty"`
}

func (r Range) sameAs(o Range) bool {
	return r.Owner == o.Owner && r.Epoch == o.Epoch && r.State == o.State && r.Handover == o.Handover &&
		r.Target == o.Target && r.Cut.same(o.Cut)
}

// Placement is the ownership of one keyspace.
type Placement struct {
	Buckets int     `json:"buckets"`
	Hash    string  `json:"hash"`
	Ranges  []Range `json:"ranges"`
}

// Ownership is the versioned document that maps every bucket of every keyspace to its owner and epoch. Values are
// immutable: the functions that change one return a new one with Version+1.
type Ownership struct {
	Format     int                      `json:"format"`
	Generation uint64                   `json:"generation"`
	Version    uint64                   `json:"version"`
	Keyspaces  map[KeyspaceID]Placement `json:"keyspaces"`
	Members    []Member                 `json:"members,omitempty"` // full sites that take part, in order of name; none: all of the spec
	Checksum   string                   `json:"checksum"`
}

// NewOwnership places every bucket of the keyspaces at its first owner, at epoch 1.
func NewOwnership(keyspaces map[KeyspaceID]Placement) Ownership {
	return Ownership{Format: OwnershipFormat, Generation: 1, Version: 1, Keyspaces: keyspaces}.sealed()
}

// Newer tells whether o replaces old: by generation (raised when a store is restored), then by version (I8).
func (o Ownership) Newer(old Ownership) bool {
	if o.Generation != old.Generation {
		return o.Generation > old.Generation
	}
	return o.Version > old.Version
}

// At returns the range that holds a bucket.
func (o Ownership) At(ks KeyspaceID, b BucketID) (Range, bool) {
	for _, r := range o.Keyspaces[ks].Ranges {
		if r.First <= b && b <= r.Last {
			return r, true
		}
	}
	return Range{}, false
}

// Validate refuses a document that a reader must not act on (I8).
func (o Ownership) Validate() error {
	switch {
	case o.Format > OwnershipFormat:
		return fmt.Errorf("ownership document of format %d: %w", o.Format, ErrNewerFormat)
	case o.Format < 1:
		return errors.New("ownership document without a format")
	case o.Generation == 0 || o.Version == 0:
		return errors.New("ownership document without generation or version")
	case len(o.Keyspaces) == 0:
		return errors.New("ownership document is empty")
	}
	if want := o.sealed().Checksum; o.Checksum != want {
		return fmt.Errorf("ownership document version %d: checksum %.12s…, want %.12s…", o.Version, o.Checksum, want)
	}
	if err := o.validateMembers(); err != nil {
		return err
	}
	for ks, p := range o.Keyspaces {
		if err := p.validate(); err != nil {
			return fmt.Errorf("keyspace %s: %w", ks, err)
		}
	}
	return nil
}

func (p Placement) validate() error {
	if p.Buckets < 1 || p.Buckets > MaxBuckets || p.Buckets&(p.Buckets-1) != 0 {
		return fmt.Errorf("%d buckets; want a power of two up to %d", p.Buckets, MaxBuckets)
	}
	next := 0
	for _, r := range p.Ranges {
		switch {
		case int(r.First) != next || r.Last < r.First:
			return fmt.Errorf("range %d-%d where bucket %d is expected", r.First, r.Last, next)
		case r.Owner == "":
			return fmt.Errorf("range %d-%d has no owner", r.First, r.Last)
		case r.Epoch == 0:
			return fmt.Errorf("range %d-%d has no epoch", r.First, r.Last)
		case r.State == Open && (r.Handover != "" || r.Target != ""):
			return fmt.Errorf("range %d-%d is open but names a handover", r.First, r.Last)
		case r.State == Moving && (r.Handover == "" || r.Target == ""):
			return fmt.Errorf("range %d-%d is moving without a handover or target", r.First, r.Last)
		case r.State != Open && r.State != Moving:
			return fmt.Errorf("range %d-%d has unknown state %q", r.First, r.Last, r.State)
		}
		if err := r.Cut.validate(r.Epoch); err != nil {
			return fmt.Errorf("range %d-%d at epoch %d has %w", r.First, r.Last, r.Epoch, err)
		}
		next = int(r.Last) + 1
	}
	if next != p.Buckets {
		return fmt.Errorf("buckets from %d to %d have no owner", next, p.Buckets-1)
	}
	return nil
}

// Encode returns the document's JSON form, checksum set.
func (o Ownership) Encode() []byte {
	out, err := json.Marshal(o.sealed())
	if err != nil {
		panic("BUG: ownership does not marshal: " + err.Error())
	}
	return out
}

// DecodeOwnership reads and validates a document from the store, a stream or a file.
func DecodeOwnership(data []byte) (Ownership, error) {
	var probe struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return Ownership{}, fmt.Errorf("ownership document: %w", err)
	}
	if probe.Format > OwnershipFormat {
		return Ownership{}, fmt.Errorf("ownership document of format %d: %w", probe.Format, ErrNewerFormat)
	}
	var o Ownership
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		return Ownership{}, fmt.Errorf("ownership document: %w", err)
	}
	if err := o.Validate(); err != nil {
		return Ownership{}, err
	}
	return o, nil
}

func (o Ownership) sealed() Ownership {
	o.Checksum = ""
	body, err := json.Marshal(o) // map keys are sorted, so the form is canonical
	if err != nil {
		panic("BUG: ownership does not marshal: " + err.Error())
	}
	sum := sha256.Sum256(body)
	o.Checksum = hex.EncodeToString(sum[:])
	return o
}

// StartMove claims open buckets for a handover to target. It refuses buckets that move already (handovers never
// overlap), that target owns, or that do not exist; those whose lost owner's tail is for their present owner to decide;
// and a target whose tail is not settled.
func (o Ownership) StartMove(ks KeyspaceID, buckets Spans, id HandoverID, target SiteID) (Ownership, error) {
	if !o.Full(target) {
		return o, fmt.Errorf("site %s is no member that may own: take it in with atoll site add", target)
	}
	if lost := o.Unsettled(target); lost != "" {
		return o, fmt.Errorf("site %s is returning from failover %s: its tail is not settled", target, lost)
	}
	return o.change(ks, buckets, func(r Range) (Range, error) {
		switch {
		case r.State != Open:
			return r, fmt.Errorf("buckets %d-%d already move in handover %s", r.First, r.Last, r.Handover)
		case r.Owner == target:
			return r, fmt.Errorf("buckets %d-%d are at %s already", r.First, r.Last, target)
		}
		if c := r.Cut.open(); c != nil {
			return r, fmt.Errorf("buckets %d-%d stay at %s until site %s is back from failover %s: %[3]s has to decide what %[4]s committed last", r.First, r.Last, r.Owner, c.From, c.Handover)
		}
		r.State, r.Handover, r.Target = Moving, id, target
		return r, nil
	})
}

// CommitMove makes target the owner of every bucket of the handover, at the next epoch.
func (o Ownership) CommitMove(ks KeyspaceID, buckets Spans, id HandoverID) (Ownership, error) {
	return o.change(ks, buckets, func(r Range) (Range, error) {
		if r.State != Moving || r.Handover != id {
			return r, fmt.Errorf("buckets %d-%d do not move in handover %s", r.First, r.Last, id)
		}
		return Range{First: r.First, Last: r.Last, Owner: r.Target, Epoch: r.Epoch + 1, State: Open, Cut: r.Cut}, nil
	})
}

// AbortMove leaves every bucket of the handover with its owner, at the next epoch: a delayed OPEN of the aborted
// attempt is stale for ever.
func (o Ownership) AbortMove(ks KeyspaceID, buckets Spans, id HandoverID) (Ownership, error) {
	return o.change(ks, buckets, func(r Range) (Range, error) {
		if r.State != Moving || r.Handover != id {
			return r, fmt.Errorf("buckets %d-%d do not move in handover %s", r.First, r.Last, id)
		}
		epoch := r.Epoch + 1
		if plant.AbortKeepsEpoch {
			epoch = r.Epoch
		}
		return Range{First: r.First, Last: r.Last, Owner: r.Owner, Epoch: epoch, State: Open, Cut: r.Cut}, nil
	})
}

// change applies f to the part of each range that lies in buckets, and merges equal neighbours.
func (o Ownership) change(ks KeyspaceID, buckets Spans, f func(Range) (Range, error)) (Ownership, error) {
	p, ok := o.Keyspaces[ks]
	if !ok {
		return o, fmt.Errorf("keyspace %s does not exist", ks)
	}
	if len(buckets) == 0 || int(buckets[len(buckets)-1].Last) >= p.Buckets {
		return o, fmt.Errorf("keyspace %s has buckets 0-%d; got %q", ks, p.Buckets-1, buckets)
	}
	var ranges []Range
	add := func(r Range) {
		if n := len(ranges); n > 0 && ranges[n-1].sameAs(r) {
			ranges[n-1].Last = r.Last
			return
		}
		ranges = append(ranges, r)
	}
	for _, r := range p.Ranges {
		at := r.First
		for _, sp := range buckets {
			first, last := max(sp.First, at), min(sp.Last, r.Last)
			if first > last {
				continue
			}
			if at < first {
				before := r
				before.First, before.Last = at, first-1
				add(before)
			}
			in := r
			in.First, in.Last = first, last
			out, err := f(in)
			if err != nil {
				return o, fmt.Errorf("keyspace %s: %w", ks, err)
			}
			add(out)
			at = last + 1
		}
		if at <= r.Last {
			r.First = at
			add(r)
		}
	}
	next := o
	next.Version++
	next.Keyspaces = maps.Clone(o.Keyspaces)
	p.Ranges = ranges
	next.Keyspaces[ks] = p
	return next.sealed(), nil
}

// EpochsAt lists the buckets that site owns and that are open, with their epochs, in order.
func (o Ownership) EpochsAt(ks KeyspaceID, site SiteID) []EpochSpan {
	var out []EpochSpan
	for _, r := range o.Keyspaces[ks].Ranges {
		if r.Owner == site && r.State == Open {
			out = append(out, EpochSpan{r.First, r.Last, r.Epoch})
		}
	}
	return out
}

// Epochs lists the epochs of the given buckets, in order.
func (o Ownership) Epochs(ks KeyspaceID, buckets Spans) []EpochSpan {
	var out []EpochSpan
	for _, r := range o.Keyspaces[ks].Ranges {
		for _, sp := range buckets {
			if first, last := max(sp.First, r.First), min(sp.Last, r.Last); first <= last {
				out = append(out, EpochSpan{first, last, r.Epoch})
			}
		}
	}
	slices.SortFunc(out, func(a, b EpochSpan) int { return int(a.First) - int(b.First) })
	return out
}
