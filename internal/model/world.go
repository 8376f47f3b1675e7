package model

import (
	"hash/maphash"
	"time"
	"unsafe"

	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

const (
	buckets  = 2
	epochs   = 10 // the highest that a run can reach, and one
	logMax   = 14
	lateMax  = 3
	jobMax   = 5
	recMax   = 6 // handovers of one run: switches first, then failovers
	keyspace = topo.KeyspaceID("users")
)

// siteID names a site of the model.
func siteID(s int) topo.SiteID { return [...]topo.SiteID{"a", "b"}[s] }

func siteOf(id topo.SiteID) int {
	if id == "a" {
		return 0
	}
	return 1
}

func other(s int) int { return 1 - s }

// zero is when every clock began.
var zero = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func moment(ms int) time.Time { return zero.Add(time.Duration(ms) * time.Millisecond) }

// millis is the first whole millisecond at which a moment has come.
func millis(t time.Time) int { return int((t.Sub(zero) + time.Millisecond - 1) / time.Millisecond) }

// world is a whole state: plain numbers without padding, so that it can be hashed and kept as it lies. Times are
// milliseconds; those of agents and databases are on their own clocks. Numbers of handovers are 1, 2, … in order.
type world struct {
	rec  [recMax]uint32 // records in the store
	late [lateMax]request
	db   [2]database
	ag   [2]agent
	mon  monitor

	doc     uint16 // the ownership in the store
	now     uint16 // true time
	seat    [2]seat
	recRev  [recMax]uint8
	begun   [2]uint8 // failovers, per taker
	spent   uint8    // faults
	writes  uint8    // of applications, begun
	started uint8    // switches, as bits
	fresh   bool     // time has just passed: what is down may come back
}

// seat is a site's lease in the store. holder is the incarnation of the site's agent.
type seat struct {
	rev, seq, holder, by uint8 // rev 0: none; by: the failover that revoked it
}

// database is a site's: its fence, its change stream, and what it has of the other site's.
type database struct {
	log   [logMax]item
	tx    [buckets]tx
	lease uint16 // moment on its own clock; 0: none
	reach uint16 // durable: the highest that its clock is known to have been
	lost  uint16 // how much its clock has lost standing still
	stood uint16 // true time since when it has been standing still; 0: it runs
	row   [buckets]row
	shut  [buckets]shut
	cut   [buckets]cut // of the other site's stream
	n     uint8        // items in the log
	done  uint8        // items of the other's log that are applied
	halt  uint8        // the failover that halts applying
	bits  uint8
	voids uint8 // restrictions so far
	tries uint8 // attempts at closing so far
	up    bool
	busy  uint8 // an apply transaction holds the progress row: 1 applies an ordinary change, 2 decides a stale one
}

// item is one thing in a change stream: kind, bucket, epoch, handover.
type item uint16

const (
	write item = iota << 14
	opened
	closed
)

func newItem(kind item, b int, epoch, ho uint8) item {
	return kind | item(b)<<13 | item(epoch)<<8 | item(ho)
}

func (i item) kind() item   { return i & (3 << 14) }
func (i item) bucket() int  { return int(i >> 13 & 1) }
func (i item) epoch() uint8 { return uint8(i >> 8 & 31) }
func (i item) ho() uint8    { return uint8(i) }

// row is the fence's own word on a bucket: state 0 is none, 1 open, 2 closed.
type row struct{ epoch, state uint8 }

// shut is a closing under way: bits off since that attempt, writers perhaps not gone.
type shut struct{ epoch, ho, reopen, attempt uint8 }

// cut is where an epoch of the other site ends here.
type cut struct{ epoch, pos, ho uint8 }

// tx is an application's transaction that has written to a bucket.
type tx struct {
	stage uint16 // 0: none; 1: its write passed the fence; 2: its last look at the lease has passed too, it commits by until
	until uint16
}

// agent is a site's agent: keeper, lookout for the other site, at most one driver.
type agent struct {
	k      keeper
	l      lookout
	d      driver
	inc    uint8
	up     bool
	frozen bool
	away   bool // its way to the store is cut
}

// keeper is the active keeper of a site, between two of its effects.
type keeper struct {
	cycle  uint32 // 0: not keeping: the record has still to be taken
	watch  uint32 // of the database's clock
	doc    uint16 // the newest ownership that it knows; 0: none
	from   uint16 // the moves of the one before
	start  uint16 // of the renewal whose answer waits, on the agent's clock
	answer uint16 // the ownership in that answer
	when   uint16 // the lease moment that is about to be written
	lead   uint16 // and how far ahead that was
	plan   [buckets]order
	step   uint8 // see keeper.go
	open   uint8
	rev    uint8 // of the record in that answer
	opened uint8 // version of the newest document whose buckets are open
	void   uint8 // the restrictions that its openings know of
	group  uint8 // buckets of the order that is being carried out
	failed bool  // some order could not be
	filler uint8
}

// order is a bucket to open.
type order struct{ epoch, ho uint8 }

// lookout is the watch of the other site; act is what it waits for.
type lookout struct {
	id    uint32
	sight uint32 // what the last look saw
	doc   uint16 // Take: what it is made of
	act   uint8
	sub   uint8 // Take: 1 behind the read of the ownership
	stage uint8 // of the machine, see stages
	rev   uint8 // of the lease, as of the last look
	seen  uint8 // and as of the Take
	want  bool  // a look
}

// driver drives one handover.
type driver struct {
	id      uint32
	written uint32 // the record as this driver knows it to be stored
	job     [jobMax]job
	doc     uint16
	ho      uint8
	rev     uint8 // of the record
}

// job is an action at work.
type job struct {
	act    uint32
	stage  uint8
	left   uint8 // Close: buckets whose writers have not gone
	began  uint8 // Close: its attempt
	filler uint8
}

// monitor is what the checks remember of the past.
type monitor struct {
	owner  [buckets][epochs]uint8 // who owned a bucket at an epoch in the store, plus one
	open   [2][buckets]uint8      // the highest epoch at which a bit was ever set, per site
	cut    [buckets]cut           // the last cut in the store
	filler [2]uint8
}

var seed = maphash.MakeSeed()

// hash is over the bytes of the state. A test sees to it that there is no padding among them.
func (w *world) hash() uint64 {
	return maphash.Bytes(seed, unsafe.Slice((*byte)(unsafe.Pointer(w)), unsafe.Sizeof(*w)))
}

// clock is an agent's, in milliseconds.
func (m *Model) clock(w *world, s int) int { return int(w.now) * m.cfg.Rates[s].Agent / 100 }

// dbClock is a database's.
func (m *Model) dbClock(w *world, s int) int {
	d, now := &w.db[s], w.now
	if d.stood != 0 {
		now = d.stood
	}
	return int(now-d.lost) * m.cfg.Rates[s].Database / 100
}

// inForce tells whether the lease is, on the database's clock.
func (m *Model) inForce(w *world, s int) bool { return int(w.db[s].lease) > m.dbClock(w, s) }

// runs tells whether a database answers.
func (d *database) runs() bool { return d.up && d.stood == 0 }

// accepts is the fence.
func (m *Model) accepts(w *world, s, b int) bool {
	return m.cfg.Plant == FenceRemoved || w.db[s].bits>>b&1 == 1 && m.inForce(w, s)
}

// acts tells whether an agent runs.
func (a *agent) acts() bool { return a.up && !a.frozen }

// identity of a site's only database.
func identity(s int) topo.Identity { return topo.Identity{System: string(siteID(s)), Timeline: 1} }

// stored is a seat as the store's clients see it.
func (m *Model) stored(w *world, s int) (store.Lease, store.Revision, bool) {
	p := w.seat[s]
	return store.Lease{Holder: incarnation(s, p.holder), Sequence: uint64(p.seq), Duration: m.cfg.lease().Duration, Database: identity(s),
		Revoked: p.by != 0, RevokedBy: m.name(p.by)}, store.Revision(p.rev), p.rev != 0
}

func incarnation(s int, n uint8) string { return string(siteID(s)) + "/" + string('0'+n) }
