package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// OpenOrder says which buckets to open, at which epochs. Handover also names the marker in the change stream:
// outside a handover give it a name of its own, such as "open-17".
type OpenOrder struct {
	Handover topo.HandoverID
	Keyspace topo.KeyspaceID
	Buckets  []topo.EpochSpan
	// Generation is that of the ownership that the order comes from. A database that was told of a newer one refuses.
	Generation uint64
}

// OpenBuckets opens buckets at their epochs. The epoch rows and the marker (the epoch's first word) are committed
// first; a second transaction locks the control row, looks again and sets the bits, so that no writer's commit stands
// before its epoch row in the change stream.
//
// A bucket opens only at a higher epoch than the fence has seen, or again at the one at which it is open (I6). Buckets
// for which the order comes too late stay as they are and are listed in a [StaleError]; the others are opened.
func (f *Fence) OpenBuckets(ctx context.Context, o OpenOrder) error {
	if err := checkEpochSpans(o.Buckets); err != nil || o.Handover == "" {
		return f.wrap("open", errors.Join(err, missing(o.Handover == "", "the order names no handover")))
	}
	f.restricts.Lock() // our own restrictions must not cross; another agent's make this opening void
	defer f.restricts.Unlock()
	restricts, ok := f.restricts.seen[o.Keyspace]
	if !ok {
		return f.wrap("open", fmt.Errorf("keyspace %s is not installed in this database; run `atoll apply` and start the agent again", o.Keyspace))
	}
	var late []LateBucket
	err := f.conns.with(ctx, func(c *pgx.Conn) (err error) {
		late, err = openOn(ctx, c, o, restricts)
		return err
	})
	if err == nil && len(late) > 0 {
		err = &StaleError{o.Keyspace, late}
	}
	return f.wrap(fmt.Sprintf("open %d spans of keyspace %s", len(o.Buckets), o.Keyspace), err)
}

// errTakenOver: the opening was decided before another agent of this site restricted the fence. A Restrict of its own
// makes this Fence current again.
var errTakenOver = fmt.Errorf("another agent of this site has restricted the fence since: %w", ErrStale)

// ErrFormerStore: the database was told of a newer generation of the store than the one that an order comes from.
var ErrFormerStore = errors.New("the store that says so was replaced by a newer generation, of which this site's database was told; " +
	"stop the members that are left over from the former one")

func openOn(ctx context.Context, c *pgx.Conn, o OpenOrder, restricts int64) (late []LateBucket, err error) {
	spans := o.Buckets
	for {
		var reply fenceReply
		if err := c.QueryRow(ctx, `SELECT atoll.open_rows($1, $2, $3, $4, $5)`, o.Keyspace, o.Handover, spans, restricts, int64(o.Generation)).Scan(&reply); err != nil {
			return nil, err
		}
		if reply.Outcome == "written" {
			break
		}
		switch reply.Outcome {
		case "restricted":
			return late, errTakenOver
		case "former":
			return late, ErrFormerStore
		}
		late = append(late, reply.Late...)
		if spans = withoutLate(spans, reply.Late); len(spans) == 0 {
			return late, nil
		}
	}
	var reply fenceReply
	if err := c.QueryRow(ctx, `SELECT atoll.open_bits($1, $2, $3)`, o.Keyspace, spans, restricts).Scan(&reply); err != nil {
		return nil, err
	}
	want := 0
	for _, s := range spans {
		want += int(s.Last-s.First) + 1
	}
	switch {
	case reply.Outcome == "restricted":
		return late, errTakenOver
	case reply.Opened != want:
		return late, fmt.Errorf("%d of %d buckets were closed or reopened at a higher epoch in between: %w", want-reply.Opened, want, ErrStale)
	}
	return late, nil
}

// withoutLate cuts late buckets out of ordered spans.
func withoutLate(spans []topo.EpochSpan, late []LateBucket) []topo.EpochSpan {
	out := []topo.EpochSpan{}
	cut := make(map[topo.BucketID]bool, len(late))
	for _, l := range late {
		cut[l.Bucket] = true
	}
	for _, s := range spans {
		for b := s.First; b <= s.Last; b++ {
			if cut[b] {
				continue
			}
			if n := len(out); n > 0 && out[n-1].Last+1 == b && out[n-1].Epoch == s.Epoch {
				out[n-1].Last = b
			} else {
				out = append(out, topo.EpochSpan{First: b, Last: b, Epoch: s.Epoch})
			}
		}
	}
	return out
}
