package replicate

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// order checks that what comes from an origin are its transactions, whole, each behind the one before.
type order struct {
	origin topo.SiteID
	last   change.Position // of the last whole transaction
	inside bool            // parts of the transaction at open have come
	open   change.Position
}

func (o *order) check(tx *change.Tx) error {
	switch {
	case tx.Origin != o.origin:
		return fmt.Errorf("site %s sends a transaction that began at site %q", o.origin, tx.Origin)
	case o.inside && (tx.First || tx.Position != o.open):
		return fmt.Errorf("site %s sends position %d in the middle of the transaction at %d", o.origin, tx.Position, o.open)
	case !o.inside && !tx.First:
		return fmt.Errorf("site %s sends position %d without the beginning of its transaction", o.origin, tx.Position)
	case !o.inside && tx.Position <= o.last:
		return fmt.Errorf("site %s sends position %d behind position %d", o.origin, tx.Position, o.last)
	}
	for _, m := range tx.Markers {
		if m.Site != o.origin {
			return fmt.Errorf("site %s sends a marker of site %q at position %d", o.origin, m.Site, tx.Position)
		}
	}
	o.inside, o.open = !tx.Last, tx.Position
	if tx.Last {
		o.last = tx.Position
	}
	return nil
}

// patience is how long to wait before the next attempt: a path that is cut comes back any moment, and is worth
// knocking at; what somebody has to mend first is not; what only holds things up for a moment is looked at often.
type patience struct{ first, most time.Duration }

var (
	cutPath  = patience{20 * time.Millisecond, time.Second}
	needHelp = patience{500 * time.Millisecond, 5 * time.Second}
	holdsUp  = patience{50 * time.Millisecond, 500 * time.Millisecond}
)

// wait is the pause behind the given number of failures in a row, at least 1. Half of it is random, so that sites do
// not knock in step.
func (p patience) wait(failures int) time.Duration {
	d := p.first << min(failures-1, 16)
	if d > p.most {
		d = p.most
	}
	return d/2 + rand.N(d/2+1)
}
