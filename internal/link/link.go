// Package link is the stream of changes between two sites' agents: frames on a mutual TLS connection. The target
// dials the origin's agent, or that of another site which keeps the origin's changes (a relay), says how far it has
// come, and is sent what follows.
//
// The two ends are [Outbound], at the origin, and [Inbound], at the target. Each has one Run that blocks while the
// connection lives and says why it ended.
//
// Guarantees: what arrives is what was sent, in order, or the connection ends. Latency: a message goes out at once;
// while one frame is being written, what queues up behind it goes into the next. Back-pressure: the target grants a
// window of bytes, and the origin never has more than that plus one message under way that the target has not taken.
// A path that is cut silently is noticed within Settings.Silence. The side that gives up says why, and the other side
// returns those words as a [Refusal].
//
// It refuses peers that speak only a newer format, are of another deployment or another site than their certificate
// says, send frames beyond a bound, overrun the window, or acknowledge what was never sent.
//
// Resuming is not its business: a new connection starts where the target's Hello says (package replicate).
package link

import (
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// Format is the version of the frames that this build writes and the highest it reads; oldestFormat is the lowest.
const (
	Format       = 1
	oldestFormat = 1
)

// ErrNewerFormat is returned for a peer or a frame that only a newer Atoll understands.
var ErrNewerFormat = errors.New("written by a newer version of atoll; upgrade this site")

// Settings bound a link. The zero value of a field means its default.
type Settings struct {
	Heartbeat time.Duration // both sides speak at least this often; default 1s
	Silence   time.Duration // a peer that is not heard for this long is gone; default 5s
	Connect   time.Duration // connecting and introductions take at most this long; default 3s
	Window    int           // bytes that the origin may send ahead of what the target took; default 8 MiB
	MaxFrame  int           // bytes of one frame, unpacked; bounds one row; default 256 MiB
	Pace      time.Duration // changes that nobody waits for leave at most this often, acknowledgements a fifth as often; default 10ms, below 0: each at once
}

// WithDefaults fills in what is zero.
func (s Settings) WithDefaults() Settings {
	if s.Heartbeat <= 0 {
		s.Heartbeat = time.Second
	}
	if s.Silence <= 0 {
		s.Silence = 5 * time.Second
	}
	if s.Connect <= 0 {
		s.Connect = 3 * time.Second
	}
	if s.Window <= 0 {
		s.Window = 8 << 20
	}
	if s.MaxFrame <= 0 {
		s.MaxFrame = 256 << 20
	}
	if s.Pace == 0 {
		s.Pace = 10 * time.Millisecond
	}
	return s
}

// Start says from where a target wants to be served.
type Start string

const (
	// StartResume: from the position of the hello on. A relay serves nothing else.
	StartResume Start = "resume"
	// StartFresh: nothing is copied; the origin answers with the position at which its stream begins.
	StartFresh Start = "fresh"
	// StartCopy: the origin's tables are copied first.
	StartCopy Start = "copy"
	// StartRebuild: as StartCopy, and what the origin has applied of every third site comes along.
	StartRebuild Start = "rebuild"
)

// Hello is the first word of a connection; the target says it.
type Hello struct {
	Format     int             `json:"format"` // highest that it speaks
	Oldest     int             `json:"oldest"` // lowest that it speaks
	Deployment string          `json:"deployment"`
	Site       topo.SiteID     `json:"site"`   // who asks
	Origin     topo.SiteID     `json:"origin"` // whose changes it asks for
	Start      Start           `json:"start"`
	Position   change.Position `json:"position,omitempty"` // with StartResume: its durable progress
	Epochs     change.Epochs   `json:"epochs,omitempty"`   // with StartResume: the origin's epochs there
	Vector     topo.Vector     `json:"vector,omitempty"`   // how far it has applied every origin
	Window     int             `json:"window"`             // bytes that it takes ahead
}

// Welcome answers a Hello; the origin says it.
type Welcome struct {
	Format     int         `json:"format"` // what both will speak
	Deployment string      `json:"deployment"`
	Site       topo.SiteID `json:"site"`
}

// Statement is what a site says of itself on every heartbeat. It counts from the moment it was received, on the
// receiver's clock.
type Statement struct {
	Serving     bool            `json:"serving"`                // it may accept writes
	RemainingMS int64           `json:"remaining_ms,omitempty"` // for how long still, unless it renews
	Closed      topo.HandoverID `json:"closed,omitempty"`       // its fence is closed at this handover's marker
}

// Heartbeat is what the origin says at least every Settings.Heartbeat.
type Heartbeat struct {
	Time      time.Time       `json:"time"`          // the origin's clock
	Sent      change.Position `json:"sent"`          // the last position that it has put on this link
	End       change.Position `json:"end,omitempty"` // end of its database's change stream; 0: not known
	Statement Statement       `json:"statement"`
}

// Ack is what the target says whenever its durable progress grows, and at least every Settings.Heartbeat.
type Ack struct {
	Flushed change.Position `json:"flushed"` // durably applied; 0: nothing yet
	Taken   uint64          `json:"taken"`   // bytes of messages taken since the connection began: the credit
	Vector  topo.Vector     `json:"vector"`  // durably applied, of every origin
	// Wants is a position of the origin's stream that somebody at the target waits for: where nothing stands before it that
	// the target is to have, its position is moved on at once. 0: nobody waits.
	Wants change.Position `json:"wants,omitempty"`
}

// Reason is why one side ended a connection.
type Reason string

const (
	Newer    Reason = "newer"    // one side must be upgraded
	Stranger Reason = "stranger" // another deployment, or another site than expected
	Protocol Reason = "protocol" // the peer broke the rules of the link
	Replaced Reason = "replaced" // a newer connection of the same target took over
	Closing  Reason = "closing"  // the agent is stopping, or has what it wanted
	Failed   Reason = "failed"   // reading or applying changes failed; the text says how
)

// Refusal ends a connection with a reason that the other side prints. As an error it is the other side's words when
// Remote is set, else ours.
type Refusal struct {
	Reason Reason      `json:"reason"`
	Text   string      `json:"text"`
	Site   topo.SiteID `json:"-"` // who said it
	Remote bool        `json:"-"`
}

func (r *Refusal) Error() string {
	if r.Remote {
		return fmt.Sprintf("site %s: %s", r.Site, r.Text)
	}
	return r.Text
}

// Refusef makes a refusal of our own.
func Refusef(reason Reason, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Text: fmt.Sprintf(format, args...)}
}

// Stats counts what passed over a connection.
type Stats struct {
	BytesSent     uint64 // on the wire, TLS included
	BytesReceived uint64
	Unpacked      uint64 // bytes of messages before compression
}

func (h Hello) check(s Settings) error {
	switch h.Start {
	case StartResume, StartFresh, StartCopy, StartRebuild:
	default:
		return Refusef(Protocol, "hello asks for unknown start %q", h.Start)
	}
	for _, site := range []topo.SiteID{h.Site, h.Origin} {
		if err := topo.CheckName(string(site)); err != nil {
			return Refusef(Protocol, "hello: site: %v", err)
		}
	}
	if h.Window < 1 || h.Window > s.MaxFrame {
		return Refusef(Protocol, "hello grants a window of %d bytes; want 1 to %d", h.Window, s.MaxFrame)
	}
	for ks, buckets := range h.Epochs {
		if err := topo.CheckName(string(ks)); err != nil {
			return Refusef(Protocol, "hello: keyspace: %v", err)
		}
		for b := range buckets {
			if b >= topo.MaxBuckets {
				return Refusef(Protocol, "hello: keyspace %s: bucket %d does not exist", ks, b)
			}
		}
	}
	return nil
}

// agree finds the highest format that both sides speak.
func (h Hello) agree() (int, error) {
	if h.Oldest < 1 || h.Format < h.Oldest {
		return 0, Refusef(Protocol, "hello offers link formats %d to %d", h.Oldest, h.Format)
	}
	if h.Oldest > Format {
		return 0, Refusef(Newer, "site %s speaks link formats %d to %d, this site %d to %d: upgrade this site", h.Site, h.Oldest, h.Format, oldestFormat, Format)
	}
	if h.Format < oldestFormat {
		return 0, Refusef(Newer, "site %s speaks link formats %d to %d, this site %d to %d: upgrade site %s", h.Site, h.Oldest, h.Format, oldestFormat, Format, h.Site)
	}
	return min(h.Format, Format), nil
}
