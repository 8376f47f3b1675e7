package api

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/topo"
)

// Session is what a session token says (docs/adr/014): what its holder has written and seen, per bucket: the epoch, its owner, and
// how far that had come in its change stream. Whoever brings it along is answered by a site that has that, at whatever site the
// request arrives: a holder reads what it wrote, and never something older than before. A token is text:
//
//	1~users.17.5.a.16b3f48~catalog.0.2.b.1a2c
//
// the format, then per bucket keyspace, number, epoch, owner, and the position in hexadecimal.
type Session struct {
	Seen []Seen // the newest first; at most eight, one per bucket
}

const (
	// SessionNew in place of a token asks for a session where there is none yet, and between gateways for the place of the answer.
	SessionNew = "new"
	// Everything is the position of a place that is not known: only the owner itself is sure to have it.
	Everything = uint64(1)<<63 - 1
	// MaxSession bounds a token in bytes: a cookie that is longer may be refused by browsers and proxies.
	MaxSession = 1024

	sessionFormat = "1"
	maxSeen       = 8 // how many buckets a session remembers: a user's own, and a few that all users share
)

// ErrSession is of a token that cannot be read.
var ErrSession = errors.New("the session token is malformed")

// ParseSession reads a token.
func ParseSession(text string) (Session, error) {
	if len(text) > MaxSession {
		return Session{}, fmt.Errorf("%w: it has %d bytes, at most %d are taken", ErrSession, len(text), MaxSession)
	}
	parts := strings.Split(text, "~")
	if parts[0] != sessionFormat {
		return Session{}, fmt.Errorf("%w: its format is %.16q, this version reads %s", ErrSession, parts[0], sessionFormat)
	}
	if len(parts)-1 > maxSeen {
		return Session{}, fmt.Errorf("%w: it names %d buckets, at most %d are taken", ErrSession, len(parts)-1, maxSeen)
	}
	var s Session
	for _, part := range parts[1:] {
		seen, err := parseSeen(part)
		if err != nil {
			return Session{}, err
		}
		if _, twice := s.Of(seen.Keyspace, seen.Bucket); twice {
			return Session{}, fmt.Errorf("%w: bucket %s/%d occurs twice", ErrSession, seen.Keyspace, seen.Bucket)
		}
		s.Seen = append(s.Seen, seen)
	}
	return s, nil
}

func parseSeen(text string) (Seen, error) {
	f := strings.Split(text, ".")
	if len(f) != 5 {
		return Seen{}, fmt.Errorf("%w: %.40q is not KEYSPACE.BUCKET.EPOCH.SITE.POSITION", ErrSession, text)
	}
	bucket, err1 := strconv.ParseUint(f[1], 10, 32)
	epoch, err2 := strconv.ParseUint(f[2], 10, 63)
	position, err3 := strconv.ParseUint(f[4], 16, 63)
	err := cmp.Or(topo.CheckName(f[0]), topo.CheckName(f[3]), err1, err2, err3)
	if err != nil || bucket >= topo.MaxBuckets || epoch == 0 {
		return Seen{}, fmt.Errorf("%w: %.40q: a name or a number is out of bounds", ErrSession, text)
	}
	return Seen{Keyspace: topo.KeyspaceID(f[0]), Bucket: topo.BucketID(bucket), Epoch: topo.Epoch(epoch), Site: topo.SiteID(f[3]), Position: position}, nil
}

func (s Session) String() string {
	var b strings.Builder
	b.WriteString(sessionFormat)
	for _, p := range s.Seen {
		fmt.Fprintf(&b, "~%s.%d.%d.%s.%x", p.Keyspace, p.Bucket, p.Epoch, p.Site, p.Position)
	}
	return b.String()
}

// Of returns what the session has seen of a bucket.
func (s Session) Of(ks topo.KeyspaceID, b topo.BucketID) (Seen, bool) {
	i := slices.IndexFunc(s.Seen, func(p Seen) bool { return p.Keyspace == ks && p.Bucket == b })
	if i < 0 {
		return Seen{}, false
	}
	return s.Seen[i], true
}

// Without forgets a bucket.
func (s Session) Without(ks topo.KeyspaceID, b topo.BucketID) Session {
	var kept []Seen
	for _, p := range s.Seen {
		if p.Keyspace != ks || p.Bucket != b {
			kept = append(kept, p)
		}
	}
	return Session{kept}
}

// With adds what an answer showed. What was seen before and lies beyond stays. The bucket that was used longest ago goes
// if there are too many, or if the token would be too long.
func (s Session) With(now Seen) Session {
	if had, ok := s.Of(now.Keyspace, now.Bucket); ok && (had.Epoch > now.Epoch || had.Epoch == now.Epoch && had.Position > now.Position) {
		now = had
	}
	out := Session{append([]Seen{now}, s.Without(now.Keyspace, now.Bucket).Seen...)}
	for len(out.Seen) > maxSeen || len(out.String()) > MaxSession {
		out.Seen = out.Seen[:len(out.Seen)-1]
	}
	return out
}
