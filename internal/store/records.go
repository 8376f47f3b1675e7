package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/topo"
)

// Format is the version of the records' envelope that this build writes and the highest it reads.
const Format = 1

// maxBody bounds a record: etcd refuses requests beyond 1.5 MiB, and one transaction carries two records and an audit line.
const maxBody = 512 << 10

// Revision is the moment of the store's history at which a record was last written; 0 is "does not exist". A
// compare-and-set names the one that it relies on.
type Revision int64

// Lease is the record site/NAME: who keeps the site's fence, and the proof that it still does.
type Lease struct {
	Holder   string        // the keeper's incarnation, new with each start
	Sequence uint64        // grows with each renewal; an observer counts from when it linearizably read a new one
	Duration time.Duration // how long a renewal lasts, counted by the holder from its start
	Database topo.Identity
	// Beat is the database's heartbeat counter, as it stood when the database last proved itself. A database of the same
	// identity whose counter is lower went back in time: it is a restored copy, or a snapshot of its disk.
	Beat uint64
	// Rebuild says that Database came in the place of one that had owned buckets: what it lacks and what only it has are
	// not settled with the sites that own them now.
	Rebuild bool
	// Anew says of a site that is to be rebuilt that every other one has the same of its former stream: from here on they
	// let go of that, and what they have of it says nothing any more.
	Anew bool
	// Generation and Version are those of the newest ownership that the holder has enforced in its database.
	Generation uint64
	Version    uint64
	// Revoked is set by a failover that took the site's buckets over; RevokedBy is its handover.
	Revoked   bool
	RevokedBy topo.HandoverID
	// Released says that the holder has ended in good order. Another agent of the same site may take the record at
	// once; to everybody else the lease still runs for Duration.
	Released bool
	// Asks are the sites, separated by commas, whose promises extend the lease while the store does not answer: only they
	// may take over, because only they know what they have promised. Keeps says that the site goes on without the store and
	// without promises: nobody can conclude that it has ended.
	Asks  string
	Keeps bool
}

// leaseRecord is the stored form of a Lease; durations are whole milliseconds.
type leaseRecord struct {
	Holder     string          `json:"holder"`
	Sequence   uint64          `json:"sequence"`
	DurationMS int64           `json:"duration_ms"`
	Database   topo.Identity   `json:"database"`
	Beat       uint64          `json:"beat,omitempty"`
	Rebuild    bool            `json:"rebuild,omitempty"`
	Anew       bool            `json:"anew,omitempty"`
	Generation uint64          `json:"generation,omitempty"`
	Version    uint64          `json:"version,omitempty"`
	Revoked    bool            `json:"revoked,omitempty"`
	RevokedBy  topo.HandoverID `json:"revoked_by,omitempty"`
	Released   bool            `json:"released,omitempty"`
	Asks       string          `json:"asks,omitempty"`
	Keeps      bool            `json:"keeps,omitempty"`
}

func (l Lease) encode() ([]byte, error) {
	if l.Holder == "" || l.Sequence == 0 {
		return nil, errors.New("lease without holder or sequence")
	}
	if l.Duration < time.Millisecond || l.Duration%time.Millisecond != 0 {
		return nil, fmt.Errorf("lease duration %s; want whole milliseconds", l.Duration)
	}
	return json.Marshal(leaseRecord{
		l.Holder, l.Sequence, l.Duration.Milliseconds(), l.Database, l.Beat, l.Rebuild, l.Anew,
		l.Generation, l.Version, l.Revoked, l.RevokedBy, l.Released, l.Asks, l.Keeps,
	})
}

func decodeLease(body []byte) (Lease, error) {
	var r leaseRecord
	if err := decodeStrict(body, &r); err != nil {
		return Lease{}, fmt.Errorf("lease: %w", err)
	}
	const maxMS = int64(24 * time.Hour / time.Millisecond)
	if r.Holder == "" || r.Sequence == 0 || r.DurationMS < 1 || r.DurationMS > maxMS {
		return Lease{}, fmt.Errorf("lease of holder %q, sequence %d, duration %d ms makes no sense", r.Holder, r.Sequence, r.DurationMS)
	}
	return Lease{
		r.Holder, r.Sequence, time.Duration(r.DurationMS) * time.Millisecond, r.Database, r.Beat, r.Rebuild, r.Anew,
		r.Generation, r.Version, r.Revoked, r.RevokedBy, r.Released, r.Asks, r.Keeps,
	}, nil
}

// Handover is the stored record of one handover; its body belongs to package handover.
type Handover struct {
	ID       topo.HandoverID
	Revision Revision
	Body     json.RawMessage
}

// AuditEntry is one line of the audit.
type AuditEntry struct {
	At   time.Time `json:"at"` // the writer's wall clock; for people
	What string    `json:"what"`
}

// envelope wraps every record. Write is unique per write: after a time-out it tells whether the write was carried out.
type envelope struct {
	Format int             `json:"format"`
	Write  string          `json:"write"`
	Body   json.RawMessage `json:"body"`
}

func seal(write string, body []byte) (string, error) {
	if len(body) > maxBody {
		return "", fmt.Errorf("record of %d bytes; the store takes at most %d", len(body), maxBody)
	}
	out, err := json.Marshal(envelope{Format: Format, Write: write, Body: body})
	return string(out), err
}

// unseal reads an envelope. A newer one is refused (topo.ErrNewerFormat): its meaning is unknown here.
func unseal(key string, data []byte) (envelope, error) {
	var probe struct {
		Format int `json:"format"`
	}
	if err := json.Unmarshal(data, &probe); err != nil {
		return envelope{}, fmt.Errorf("store: record %s is not Atoll's: %w", key, err)
	}
	if probe.Format > Format {
		return envelope{}, fmt.Errorf("store: record %s has format %d: %w", key, probe.Format, topo.ErrNewerFormat)
	}
	var e envelope
	if err := decodeStrict(data, &e); err != nil {
		return envelope{}, fmt.Errorf("store: record %s: %w", key, err)
	}
	if e.Format < 1 || e.Write == "" || len(e.Body) == 0 {
		return envelope{}, fmt.Errorf("store: record %s lacks a format, a write id or a body", key)
	}
	return e, nil
}

// writeOf reads only the write id, also of newer formats: enough to recognise one's own write.
func writeOf(data []byte) string {
	var e struct {
		Write string `json:"write"`
	}
	if json.Unmarshal(data, &e) != nil {
		return ""
	}
	return e.Write
}

func decodeStrict(data []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("more than one JSON value")
	}
	return nil
}

func newWrite() string { return uuid.NewString() }

// keys of one deployment.
type keys struct{ prefix string }

func keysOf(deployment string) keys { return keys{"/atoll/" + deployment + "/"} }

func (k keys) ownership() string                  { return k.prefix + "ownership" }
func (k keys) sites() string                      { return k.prefix + "site/" }
func (k keys) site(s topo.SiteID) string          { return k.sites() + string(s) }
func (k keys) handovers() string                  { return k.prefix + "handover/" }
func (k keys) handover(id topo.HandoverID) string { return k.handovers() + string(id) }
func (k keys) audits() string                     { return k.prefix + "audit/" }
func (k keys) audit(id string) string             { return k.audits() + id }
func (k keys) hints(key string) bool {
	return key == k.ownership() || strings.HasPrefix(key, k.handovers())
}

func checkHandoverID(id topo.HandoverID) error {
	if id == "" || len(id) > 128 || strings.ContainsFunc(string(id), func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }) {
		return fmt.Errorf("handover id %q; want 1 to 128 printable ASCII characters without blanks and '/'", id)
	}
	return nil
}
