// Package topo holds the nouns that the rest of Atoll shares: sites, keyspaces, buckets, epochs, and the ownership
// document that maps every bucket to its owner.
//
// The main type is [Ownership]: versioned, checksummed, changed only by a compare-and-set in the store. A [View] is
// its validated, compiled form that gateways and the SDK read on every request.
//
// It guarantees I1 for everything that is made with its functions (one owner per bucket and epoch, epochs only grow)
// and refuses (I8) documents that are empty, leave a bucket without an owner, overlap, or fail their checksum.
//
// Nothing here knows a clock, a disk or a network.
package topo

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// SiteID names a site: a failure domain with its own gateways, application, database and agent.
type SiteID string

// KeyspaceID names a set of keys that are placed together.
type KeyspaceID string

// BucketID is one hash slot of a keyspace, 0 to Buckets-1; the unit that is owned and moved.
type BucketID uint32

// Epoch numbers a bucket's ownership. It only grows, at every handover and at every aborted one. 0 is "never owned".
type Epoch uint64

// HandoverID identifies one switch or failover. It sorts by start time.
type HandoverID string

// MaxBuckets is the largest number of buckets a keyspace may have.
const MaxBuckets = 1 << 16

var nameRE = regexp.MustCompile(`^[a-z][a-z0-9-]{0,31}$`)

// CheckName tells whether s can name a site, a keyspace, a route or a deployment; such names become part of
// certificate names, slot names and metric labels.
func CheckName(s string) error {
	if !nameRE.MatchString(s) {
		return fmt.Errorf("name %q: want a lower-case letter, then at most 31 lower-case letters, digits or '-'", s)
	}
	return nil
}

// Span is a run of buckets, both ends included.
type Span struct {
	First BucketID `json:"first"`
	Last  BucketID `json:"last"`
}

// Len is the number of buckets in the span.
func (s Span) Len() int { return int(s.Last) - int(s.First) + 1 }

// Contains tells whether b lies in the span.
func (s Span) Contains(b BucketID) bool { return s.First <= b && b <= s.Last }

func (s Span) String() string {
	if s.First == s.Last {
		return strconv.Itoa(int(s.First))
	}
	return fmt.Sprintf("%d-%d", s.First, s.Last)
}

// Spans is a set of buckets as ordered spans that neither overlap nor touch. Make one with [ParseSpans] or [SpansOf].
type Spans []Span

// Len is the number of buckets in the set.
func (s Spans) Len() int {
	n := 0
	for _, sp := range s {
		n += sp.Len()
	}
	return n
}

// Contains tells whether b is in the set.
func (s Spans) Contains(b BucketID) bool {
	for _, sp := range s {
		if sp.Contains(b) {
			return true
		}
	}
	return false
}

// Buckets lists the set in order.
func (s Spans) Buckets() []BucketID {
	out := make([]BucketID, 0, s.Len())
	for _, sp := range s {
		for b := sp.First; ; b++ {
			out = append(out, b)
			if b == sp.Last {
				break
			}
		}
	}
	return out
}

func (s Spans) String() string {
	parts := make([]string, len(s))
	for i, sp := range s {
		parts[i] = sp.String()
	}
	return strings.Join(parts, ",")
}

// SpansOf makes a set of the given buckets, in any order, duplicates allowed.
func SpansOf(buckets ...BucketID) Spans {
	seen := make(map[BucketID]bool, len(buckets))
	for _, b := range buckets {
		seen[b] = true
	}
	return spansWhere(func(b BucketID) bool { return seen[b] })
}

func spansWhere(in func(BucketID) bool) Spans {
	var out Spans
	for b := BucketID(0); b < MaxBuckets; b++ {
		if !in(b) {
			continue
		}
		if n := len(out); n > 0 && out[n-1].Last+1 == b {
			out[n-1].Last = b
		} else {
			out = append(out, Span{b, b})
		}
	}
	return out
}

// ParseSpans reads a set such as "0-24,30,512-1023" for a keyspace of n buckets; "all" is every bucket.
func ParseSpans(text string, n int) (Spans, error) {
	if text == "all" {
		return Spans{{0, BucketID(n - 1)}}, nil
	}
	in := make([]bool, n)
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		f, err1 := strconv.ParseUint(strings.TrimSpace(first), 10, 32)
		l, err2 := strconv.ParseUint(strings.TrimSpace(last), 10, 32)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("buckets %q: %q is neither a number nor a range; write for example 0-24,30 or all", text, part)
		}
		if f > l {
			return nil, fmt.Errorf("buckets %q: range %q is reversed; write %d-%d", text, part, l, f)
		}
		if l >= uint64(n) {
			return nil, fmt.Errorf("buckets %q: %d is beyond the last bucket %d", text, l, n-1)
		}
		for b := f; b <= l; b++ {
			in[b] = true
		}
	}
	return spansWhere(func(b BucketID) bool { return int(b) < n && in[b] }), nil
}

// EpochSpan is a run of buckets that share an epoch; what fences, markers and OPEN rows speak of.
type EpochSpan struct {
	First BucketID `json:"first"`
	Last  BucketID `json:"last"`
	Epoch Epoch    `json:"epoch"`
}

// Vector says, per origin, how far a site has applied that origin's change stream. A position is a place in the
// origin database's stream: the LSN after a commit on PostgreSQL.
type Vector map[SiteID]uint64

// Covers tells whether every position of need is reached in v. An origin that v lacks counts as position 0.
func (v Vector) Covers(need Vector) bool {
	for site, pos := range need {
		if v[site] < pos {
			return false
		}
	}
	return true
}

// Identity tells one database apart from its clones, restored copies and promoted standbys.
type Identity struct {
	System   string `json:"system"`   // PostgreSQL's system identifier
	Timeline uint32 `json:"timeline"` // PostgreSQL's timeline, raised by a promotion
}

func (id Identity) String() string { return fmt.Sprintf("%s/%d", id.System, id.Timeline) }
