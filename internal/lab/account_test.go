package lab

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// books is a hand-made loss of site a (killed at 10, taken over at 15), seen by clients and by the databases.
type books struct {
	e   Evidence
	ops []Operation
	xid uint32
}

var lostA = Loss{ID: "h1", Lost: "a", Taker: "b", Cut: second(9), Killed: second(10), Opened: second(15), Back: second(20), Settled: second(25)}

func newBooks() *books {
	row := func(at float64, site topo.SiteID, epoch topo.Epoch) EpochRow {
		return EpochRow{Database: site, Site: site, Keyspace: users, Bucket: bucketOf(ada, 256), Epoch: epoch, Open: true, At: second(at)}
	}
	return &books{e: Evidence{Epochs: []EpochRow{row(0, "a", 1), row(15, "b", 2)}}}
}

// transaction commits changes ("INSERT orders ROW") at a; replicated says that b applied them at once.
func (b *books) transaction(at float64, replicated bool, changes ...string) *books {
	b.xid++
	for _, text := range changes {
		f := strings.Fields(text)
		c := Change{Database: "a", XID: b.xid, Op: f[0], Table: f[1], Row: f[2], Keyspace: users, Bucket: bucketOf(ada, 256), At: second(at)}
		b.e.Changes = append(b.e.Changes, c)
		if replicated {
			c.Database, c.Applied, c.Origin, c.At = "b", true, "a", second(at+0.1)
			b.e.Changes = append(b.e.Changes, c)
		}
	}
	return b
}

func (b *books) op(from, to float64, o Operation) *books {
	o.Keyspace, o.Key, o.Write, o.Outcome, o.Status = users, ada, true, OK, 200
	o.InvokedUS, o.ReturnedUS = second(from).UnixMicro(), second(to).UnixMicro()
	b.ops = append(b.ops, o)
	return b
}

// log enters the last transaction's changes of the tables.
func (b *books) log(decision, remote string, tables ...string) *books {
	for _, table := range tables {
		b.e.Conflicts = append(b.e.Conflicts, ConflictRow{Database: "b", Origin: "a", XID: uint64(b.xid), Kind: "stale", Table: "public." + table, Handover: "h1",
			Remote: json.RawMessage(remote), Decision: decision})
	}
	return b
}

func (b *books) buy(at float64, id string, replicated bool) *books {
	return b.op(at-0.1, at+0.1, Operation{ID: id, Op: buyOp, Order: &Receipt{id, 1, "s"}}).
		transaction(at, replicated, "UPDATE customers "+ada, "INSERT orders "+ada+"/"+id, "INSERT payments "+ada+"/p"+id, "INSERT outbox "+ada+"/x"+id)
}

var bought = []string{"customers", "orders", "payments", "outbox"}

func TestAccount(t *testing.T) {
	t.Parallel()
	cancelled := []string{"UPDATE customers " + ada, "UPDATE orders " + ada + "/o1", "UPDATE payments " + ada + "/po1", "INSERT outbox " + ada + "/y"}
	register := func(b *books, at float64, value string) *books {
		return b.op(at-0.1, at+0.1, Operation{ID: value, Op: registerWrite, Value: value}).transaction(at, false, "UPDATE customers "+ada)
	}
	base := func() *books { return newBooks().buy(1, "o1", true) }
	for name, test := range map[string]struct {
		b    *books
		want Accounting
	}{
		"no tail":            {base(), Accounting{}},
		"applied":            {base().buy(8, "o2", false).log("applied", `{}`, bought...), Accounting{RPOWrites: 1, RPOms: 2000, Applied: 1}},
		"kept":               {base().buy(8, "o2", false).log("kept", `{}`, bought...), Accounting{RPOWrites: 1, RPOms: 2000, Logged: 1}},
		"kept in part":       {base().buy(8, "o2", false).log("applied", `{}`, bought[:3]...).log("kept", `{}`, "outbox"), Accounting{RPOWrites: 1, RPOms: 2000, Logged: 1}},
		"missing":            {base().buy(8, "o2", false), Accounting{RPOWrites: 1, RPOms: 2000, Missing: 1}},
		"missing in part":    {base().buy(8, "o2", false).log("kept", `{}`, bought[:3]...), Accounting{RPOWrites: 1, RPOms: 2000, Missing: 1}},
		"of unknown outcome": {base().transaction(8, false, "UPDATE customers "+ada, "INSERT orders "+ada+"/o3"), Accounting{}},
		"the shop's own":     {base().transaction(8, false, "UPDATE outbox "+ada+"/xo1"), Accounting{}},
		"several": {base().buy(9.5, "o2", false).log("applied", `{}`, bought...).
			op(9.55, 9.7, Operation{ID: "c", Op: cancelOp, Order: &Receipt{"o1", 1, "s"}}).transaction(9.6, false, cancelled...).log("kept", `{}`, bought...),
			Accounting{RPOWrites: 2, RPOms: 500, Applied: 1, Logged: 1}},
		"a note": {base().op(9, 9.5, Operation{ID: "n", Op: "bulk-note"}).transaction(9.4, false, "UPDATE customers "+ada, "UPDATE orders "+ada+"/o1").
			log("kept", `{}`, "customers", "orders"), Accounting{RPOWrites: 1, RPOms: 600, Logged: 1}},
		"a register":         {register(register(base(), 9.5, "v1").log("kept", `{"address":"v1"}`, "customers"), 9.7, "v2"), Accounting{RPOWrites: 2, RPOms: 500, Logged: 1, Missing: 1}},
		"another's register": {register(base(), 9.5, "v1").log("kept", `{"address":"v0"}`, "customers"), Accounting{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := Account(test.b.ops, test.b.e, lostA)
			if len(got.Examples) != got.Missing {
				t.Errorf("examples %v of %d", got.Examples, got.Missing)
			}
			got.Examples = nil
			if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

func TestRTO(t *testing.T) {
	t.Parallel()
	bucket := bucketOf(ada, 256)
	other := bucketOf(bob, 256)
	op := func(key string, from, to float64, site topo.SiteID, outcome Outcome) Operation {
		return Operation{ID: "x", Op: registerWrite, Write: true, Key: key, Site: site, Outcome: outcome, InvokedUS: second(from).UnixMicro(), ReturnedUS: second(to).UnixMicro()}
	}
	ops := []Operation{op(ada, 9, 9.5, "a", OK), op(ada, 9.9, 10.01, "a", OK), op(ada, 11, 12, "", Unknown), op(ada, 14, 15.5, "b", OK), op(ada, 16, 17, "b", OK),
		op(bob, 12, 12.1, "", Fail), op(bob, 13, 14, "", Unknown)}
	if got := RTO(ops, lostA, []topo.BucketID{bucket}, 256); !slices.Equal(got, []time.Duration{5500 * time.Millisecond}) {
		t.Errorf("%v", got)
	}
	both := []topo.BucketID{bucket, other, 3}
	if got := RTO(ops, lostA, both, 256); len(got) != 2 || slices.Min(got) != 4*time.Second || slices.Max(got) != 5500*time.Millisecond {
		t.Errorf("%v; want 5.5 s for one and at least 4 s for the other", got)
	}
	buy := op(ada, 13, 15, "b", OK)
	buy.Op, buy.Keyspace, buy.Status = buyOp, users, 200
	refused := op(ada, 13, 14.5, "b", OK)
	refused.Op, refused.Keyspace, refused.Status = buyOp, users, 409
	for i := range ops {
		ops[i].Keyspace = users
	}
	if got := RTOOfAny(append(ops, buy, refused), lostA, []topo.BucketID{bucket}, 256); !slices.Equal(got, []time.Duration{5 * time.Second}) {
		t.Errorf("%v; want the purchase's 5 s", got)
	}
	if got := RTOOfAny([]Operation{buy}, lostA, []topo.BucketID{bucket}, 256); len(got) != 0 {
		t.Errorf("%v for a bucket that no register writes", got)
	}
	reads := []Operation{op(ada, 11, 12, "b", OK)}
	reads[0].Op = registerRead
	if got := RTO(reads, lostA, both, 256); len(got) != 0 {
		t.Errorf("a read counts: %v", got)
	}
}

// Two failovers may follow one kill: what was moving then is taken later. The opening says which one it was.
func TestLossBetween(t *testing.T) {
	t.Parallel()
	later := lostA
	later.ID, later.Opened = "h2", second(18)
	losses := []Loss{lostA, later}
	for _, test := range []struct {
		opened   float64
		handover topo.HandoverID
		want     topo.HandoverID
	}{{15, "", "h1"}, {18.2, "", "h2"}, {18.2, "h1", "h1"}, {15, "h2", "h2"}, {9, "h1", ""}, {26, "h1", ""}} {
		var got topo.HandoverID
		if l := lossBetween(losses, &window{site: "a"}, &window{site: "b", open: second(test.opened), handover: test.handover}); l != nil {
			got = l.ID
		}
		if got != test.want {
			t.Errorf("opened at %v by %q: loss %q, want %q", test.opened, test.handover, got, test.want)
		}
	}
	if l := lossBetween(losses, &window{site: "b"}, &window{site: "a", open: second(15)}); l != nil {
		t.Errorf("loss %q of another direction", l.ID)
	}
}
