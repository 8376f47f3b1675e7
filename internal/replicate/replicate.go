// Package replicate carries changes from site to site: from an origin's database over a link into a target's.
//
// [Serve] runs at the origin: one [Source] per target that connects. [Follow] runs at the target: one per origin, with
// a [Sink]. [Applied] is what a site knows of its own progress: its vector, and the markers that have arrived.
//
// Guarantees: what a sink is given are the origin's transactions, each once, in commit order, without gaps: every
// connection starts from the progress that the sink's database has recorded. The origin lets go of changes only when
// the target has them on disk. Nothing behind a marker, nor the marker, is applied before this site has applied what
// the marker's vector asks for (I3). What was received before a link broke is still applied.
//
// It refuses to skip: whatever fails on the way of the data stops that link, keeps the position, is readable in its
// State with the reason, and is tried again.
package replicate

import (
	"context"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

// Source is the origin's database, for one target.
type Source interface {
	// Confirmed is the position up to which the database has let go of the target's changes.
	Confirmed(ctx context.Context) (pos change.Position, exists bool, err error)
	// Copy makes the target's place in the stream anew and hands out every published table as of there, ending with a
	// piece that has Done set. With all, what this site has applied of every third site comes along, as of the same
	// moment.
	Copy(ctx context.Context, all bool, emit func(context.Context, change.Copy) error) error
	// Create makes the target's place in the stream, if it has none.
	Create(ctx context.Context) error
	// Run hands out what follows from, in commit order, until ctx ends or something fails. It refuses a from that the
	// database has let go of, with an error that says so.
	Run(ctx context.Context, from change.Position, epochs change.Epochs, emit func(context.Context, change.Tx) error) error
	// Confirm says that the target has everything up to a position on disk. It must not block for long.
	Confirm(change.Position)
	// Reach says that the target waits for a position: as soon as the stream is there, the target is told, also if it has
	// nothing for it. It must not block for long.
	Reach(change.Position)
	Close() error
}

// Sink is the target's database, for one origin.
type Sink interface {
	// Progress is how far the database has applied the origin's changes, on disk.
	Progress(ctx context.Context) (change.Progress, error)
	// Copy applies an initial copy and its position in one transaction. A copy that consists of its last piece alone
	// only records the position.
	Copy(ctx context.Context, next func(context.Context) (change.Copy, error)) error
	// Run applies what comes until in is closed, then finishes what came complete, rolls back what did not, and
	// returns nil. It calls applied after each durable commit. What is marked Keep is kept as by Relay, no later than it is
	// applied and no earlier than what comes before it.
	Run(ctx context.Context, in <-chan change.Tx, applied func(change.Position, []change.Marker)) error
	Close() error
}

// Relay keeps an origin's changes for those full sites that still lack them.
type Relay interface {
	// Keep stores transactions, on disk as soon as anything is that is committed behind it. It may be given the same one again.
	Keep(ctx context.Context, txs []change.Tx) error
	// Trim drops what every other full site has.
	Trim(ctx context.Context, origin topo.SiteID, through change.Position) error
	// Begin says that from the recorded progress on all of an origin's changes are kept, or with keeps false that none are.
	Begin(ctx context.Context, origin topo.SiteID, keeps bool) error
}

// Recorded is what this site's database says of its progress.
type Recorded interface {
	Vector(ctx context.Context) (topo.Vector, error)
	// Markers looks for the closing markers of a handover from a site, one per keyspace.
	Markers(ctx context.Context, site topo.SiteID, id topo.HandoverID) ([]change.Marker, error)
}
