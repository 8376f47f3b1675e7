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

// story is a hand-made run of one bucket, told in seconds.
type story struct{ e Evidence }

func second(s float64) time.Time { return time.Unix(1_800_000_000, 0).Add(time.Duration(s * 1e9)) }

// open and closed are epoch rows of a site in its own database.
func (s *story) open(at float64, site topo.SiteID, epoch topo.Epoch) *story {
	return s.row(at, site, site, epoch, true)
}

func (s *story) closed(at float64, site topo.SiteID, epoch topo.Epoch) *story {
	return s.row(at, site, site, epoch, false)
}

func (s *story) row(at float64, database, site topo.SiteID, epoch topo.Epoch, open bool) *story {
	s.e.Epochs = append(s.e.Epochs, EpochRow{Database: database, Site: site, Keyspace: users, Bucket: 7, Epoch: epoch, Open: open, At: second(at)})
	return s
}

func (s *story) write(at float64, database topo.SiteID, row string) *story {
	s.e.Changes = append(s.e.Changes, Change{Database: database, XID: uint32(100 + len(s.e.Changes)), Table: "orders", Op: "INSERT", Row: row, Keyspace: users, Bucket: 7, At: second(at)})
	return s
}

// decided is Atoll's own word about a stale change.
func (s *story) decided(at float64, database topo.SiteID, row string) *story {
	s.write(at, database, row)
	s.e.Changes[len(s.e.Changes)-1].Decided = true
	return s
}

// lose says that the lab took a site away.
func (s *story) lose(lost, taker topo.SiteID, killed, opened, settled float64) *story {
	s.e.Losses = append(s.e.Losses, Loss{ID: topo.HandoverID(fmt.Sprintf("h%d", len(s.e.Losses)+1)), Lost: lost, Taker: taker,
		Killed: second(killed), Opened: second(opened), Back: second(settled - 1), Settled: second(settled)})
	return s
}

// log enters the change of a row into b's conflict log.
func (s *story) log(row, decision string) *story {
	for _, c := range s.e.Changes {
		if c.Row == row && !c.Applied && !c.Decided {
			s.e.Conflicts = append(s.e.Conflicts, ConflictRow{Database: "b", Origin: c.Database, XID: uint64(c.XID), Kind: "stale_insert", Table: "public." + c.Table,
				Keyspace: users, Bucket: 7, Handover: "h1", Decision: decision, Remote: json.RawMessage(`{"id":"` + row + `"}`)})
		}
	}
	return s
}

// applied says that a row's newest change elsewhere was applied.
func (s *story) applied(at float64, database topo.SiteID, row string) *story {
	var origin topo.SiteID
	for _, c := range s.e.Changes {
		if c.Row == row && !c.Applied && c.Database != database && !c.At.After(second(at)) {
			origin = c.Database
		}
	}
	s.write(at, database, row)
	c := &s.e.Changes[len(s.e.Changes)-1]
	c.Applied, c.Origin = true, origin
	return s
}

// goodMove: bucket 7 goes from a (epoch 1) to b (epoch 2) as it should.
func goodMove() *story {
	return new(story).open(0, "a", 1).
		write(1, "a", "one").applied(1.1, "b", "one").
		write(2, "a", "two").applied(2.1, "b", "two").
		closed(3, "a", 1).row(3.1, "b", "a", 1, false).
		open(4, "b", 2).row(4.1, "a", "b", 2, true).
		write(5, "b", "three").applied(5.1, "a", "three")
}

// bucketLost: bucket 7 is a's, which is killed at 3 with two changes that b has not. b opens at 6, a comes back at 9, its tail is
// decided at 9.1 and 9.2, and at 12 the bucket goes home.
func bucketLost() *story {
	return new(story).lose("a", "b", 3, 6, 10).open(0, "a", 1).
		write(1, "a", "one").applied(1.1, "b", "one").
		write(2, "a", "two").write(2.5, "a", "three").
		open(6, "b", 2).write(7, "b", "four").
		closed(9, "a", 1).row(9, "b", "a", 1, false).row(9.1, "a", "b", 2, true).
		applied(9, "a", "four").decided(9.1, "b", "two").applied(9.15, "a", "two").decided(9.2, "b", "three").applied(9.25, "a", "three").
		log("two", "applied").log("three", "kept").
		closed(12, "b", 2).row(12.1, "a", "b", 2, false).open(12.5, "a", 3).write(13, "a", "five").applied(13.1, "b", "five")
}

func want(t *testing.T, c Check, violation string) {
	t.Helper()
	switch {
	case violation == "" && !c.Passed():
		t.Errorf("%s: %s, error %q, examples:\n%s", c.Name, c.Result(), c.Error, strings.Join(c.Examples, "\n"))
	case violation != "" && (c.Result() != "fail" || !strings.Contains(strings.Join(c.Examples, "\n"), violation)):
		t.Errorf("%s: %s, error %q, examples:\n%s\nwant one with %q", c.Name, c.Result(), c.Error, strings.Join(c.Examples, "\n"), violation)
	}
}

func TestCheckK1(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		s         *story
		violation string
	}{
		"a good move":               {goodMove(), ""},
		"there and back":            {goodMove().closed(6, "b", 2).open(7, "a", 3).write(8, "a", "four"), ""},
		"an aborted move":           {new(story).open(0, "a", 1).write(1, "a", "x").closed(2, "a", 1).open(3, "a", 2).write(4, "a", "y"), ""},
		"aborted before closing":    {new(story).open(0, "a", 1).write(1, "a", "x").open(3, "a", 2).write(4, "a", "y"), ""},
		"said twice":                {goodMove().open(6, "b", 2).write(7, "b", "z"), ""},
		"write after closing":       {goodMove().write(3.5, "a", "late"), "closed everywhere"},
		"write at the old site":     {goodMove().write(6, "a", "stray"), "the bucket was open for b at epoch 2"},
		"write before opening":      {goodMove().write(3.9, "b", "early"), "closed everywhere"},
		"write at no one's":         {new(story).open(3, "a", 1).write(2, "a", "x"), "no site had opened"},
		"one epoch at two sites":    {new(story).open(0, "a", 1).write(1, "a", "x").closed(2, "a", 1).open(3, "b", 1), "epoch 1 was opened by a and by b"},
		"an epoch goes back":        {new(story).open(0, "a", 5).write(1, "a", "x").closed(2, "a", 5).open(3, "b", 4), "epoch 4 opened"},
		"opened while open":         {new(story).open(0, "a", 1).write(1, "a", "x").open(2, "b", 2), "while it was still open"},
		"a good loss":               {bucketLost(), ""},
		"lost, committing on":       {bucketLost().write(6.5, "a", "stray"), "the bucket was open for b at epoch 2"},
		"lost, back too early":      {bucketLost().open(9.5, "a", 1).write(9.6, "a", "stray"), "epoch 1 opened"},
		"lost, and nobody's yet":    {bucketLost().write(9.05, "a", "stray"), "the bucket was open for b"},
		"taken without a loss":      {&story{Evidence{Changes: bucketLost().e.Changes, Epochs: bucketLost().e.Epochs}}, "while it was still open"},
		"taken before the loss":     {new(story).lose("a", "b", 3, 6, 10).open(0, "a", 1).write(1, "a", "x").open(2, "b", 2), "while it was still open"},
		"the committing site swaps": {goodMove().write(6, "a", "p").write(7, "b", "q"), "the committing site changed 3 times, its owner 1 times"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			want(t, CheckK1(test.s.e, nil, 8), test.violation)
		})
	}
	if c := CheckK1(Evidence{}, nil, 8); c.Passed() {
		t.Error("a check of nothing passes")
	}
}

func TestCheckK2(t *testing.T) {
	t.Parallel()
	late := new(story).open(0, "a", 1).
		write(1, "a", "one").write(2, "a", "two").closed(3, "a", 1).
		open(4, "b", 2).write(4.5, "b", "three").
		applied(5, "b", "one").applied(5, "b", "two").row(5.1, "b", "a", 1, false)
	never := new(story).open(0, "a", 1).write(1, "a", "one").applied(1.5, "b", "one").closed(3, "a", 1).open(4, "b", 2)
	partly := goodMove().write(2.5, "a", "lost")
	again := goodMove().closed(6, "b", 2).row(6.1, "a", "b", 2, false).open(7, "a", 3).write(8, "a", "four")
	lost := bucketLost()
	lost.e.Changes = slices.DeleteFunc(lost.e.Changes, func(c Change) bool { return c.Row == "three" && c.Applied })
	want(t, CheckK2(bucketLost().e), "")
	want(t, CheckK2(lost.e), "without having applied INSERT of orders three") // decided, and not home when its bucket went
	want(t, CheckK2(bucketLost().write(11, "b", "six").e), "without having applied INSERT of orders six")
	want(t, CheckK2(bucketLost().closed(14, "a", 3).row(14.1, "b", "a", 3, false).open(15, "b", 4).write(16, "b", "seven").e), "")
	want(t, CheckK2(bucketLost().write(13.5, "a", "six").closed(14, "a", 3).row(14.1, "b", "a", 3, false).open(15, "b", 4).e), "without having applied INSERT of orders six")
	// b's user sends a purchase of a's tail again, and it is made again; a, which has the row, is given an update of it.
	anew := bucketLost().write(8, "b", "two").applied(9.05, "a", "two")
	want(t, CheckK2(anew.e), "")
	anew.e.Changes[len(anew.e.Changes)-1].Op = "UPDATE"
	want(t, CheckK2(anew.e), "")
	anew.e.Changes[len(anew.e.Changes)-1].Op = "DELETE"
	want(t, CheckK2(anew.e), "without having applied INSERT of orders two at b")
	unlost := bucketLost()
	unlost.e.Losses = nil
	want(t, CheckK2(unlost.e), "before the end of a's epoch 1 was applied there")
	behind := goodMove().write(5.5, "b", "five").closed(6, "b", 2).row(6.1, "a", "b", 2, false).open(7, "a", 3)
	want(t, CheckK2(goodMove().e), "")
	want(t, CheckK2(again.e), "")
	want(t, CheckK2(late.e), "before the end of a's epoch 1 was applied")
	want(t, CheckK2(late.e), "without having applied INSERT of orders two")
	want(t, CheckK2(never.e), "never arrived")
	want(t, CheckK2(partly.e), "without having applied INSERT of orders lost")
	want(t, CheckK2(behind.e), "without having applied INSERT of orders five")
	if c := CheckK2(new(story).open(0, "a", 1).write(1, "a", "x").e); c.Passed() {
		t.Error("a check without a handover passes")
	}
}

// A bucket that moved c → a → b carries c's writes over the link from c to b, which a's marker says nothing of.
func TestCheckK2_ThreeSites(t *testing.T) {
	t.Parallel()
	circle := func() *story {
		return new(story).open(0, "c", 1).write(1, "c", "one").applied(1.1, "a", "one").
			closed(2, "c", 1).row(2.1, "a", "c", 1, false).open(3, "a", 2).write(4, "a", "two").applied(4.1, "c", "two").applied(4.1, "b", "two").
			closed(5, "a", 2).row(5.1, "b", "a", 2, false).open(6, "b", 3).write(7, "b", "three")
	}
	want(t, CheckK2(circle().applied(5.5, "b", "one").e), "")
	want(t, CheckK2(circle().applied(6.5, "b", "one").e), "") // before the first write is soon enough
	want(t, CheckK2(circle().applied(7.5, "b", "one").e), "without having applied INSERT of orders one")
	want(t, CheckK2(circle().e), "without having applied INSERT of orders one")
}

// The first taker is lost before it has opened the bucket, and the next one takes over from it.
func TestCheckK1_TwoLossesInARow(t *testing.T) {
	t.Parallel()
	twice := func() *story {
		return new(story).open(0, "a", 1).write(1, "a", "one").applied(1.1, "b", "one").applied(1.1, "c", "one").write(2, "a", "two").
			open(9, "c", 3).write(10, "c", "three").closed(14, "a", 1)
	}
	want(t, CheckK1(twice().lose("a", "b", 3, 9, 15).lose("b", "c", 5, 9, 15).e, nil, 8), "")
	want(t, CheckK1(twice().lose("a", "b", 3, 9, 15).e, nil, 8), "while it was still open")
	want(t, CheckK1(twice().lose("b", "c", 5, 9, 15).e, nil, 8), "while it was still open")
	want(t, CheckK2(twice().lose("a", "b", 3, 9, 15).lose("b", "c", 5, 9, 15).closed(16, "c", 3).row(16.1, "b", "c", 3, false).applied(16.1, "b", "three").open(17, "b", 4).e), "")
	want(t, CheckTail(twice().lose("a", "b", 3, 9, 15).lose("b", "c", 5, 9, 15).e), "1 of 1 changes of table orders are not in the conflict log of failover h1")
}

// What b decided in favour of a's tail is at a already when b is lost in its turn; it is no tail of b's.
func TestCheckTail_DecidedForTheTaker(t *testing.T) {
	t.Parallel()
	s := bucketLost()
	for i := range s.e.Changes { // the decisions' transactions, as the log names them
		if c := &s.e.Changes[i]; c.Decided && c.Row == "two" {
			s.e.Conflicts[0].DecidedXID = c.XID
		}
	}
	s.e.Changes = slices.DeleteFunc(s.e.Changes, func(c Change) bool { return c.Row == "two" && c.Applied || c.Row == "five" })
	s.e.Epochs = s.e.Epochs[:6] // b has the bucket until it is lost
	s.lose("b", "a", 11, 13, 20).open(13, "a", 3)
	want(t, CheckTail(s.e), "")
	s.e.Conflicts[0].DecidedXID = 0
	want(t, CheckTail(s.e), "1 of 1 changes of table orders are not in the conflict log of failover h2, the last: INSERT of orders two at b")
}

// A third site, too, applies nothing of a tail as if it were ordinary.
func TestCheckTail_ThirdSite(t *testing.T) {
	t.Parallel()
	all := func() *story {
		s := bucketLost()
		for _, c := range slices.Clone(s.e.Changes) { // c takes what the others have, in order
			if tail := (c.Row == "two" || c.Row == "three") && !c.Decided; !c.Applied && !tail {
				s.applied(13.5, "c", c.Row)
			}
		}
		return s
	}
	want(t, CheckTail(all().e), "")
	want(t, CheckTail(all().applied(5, "c", "two").e), "c applied as ordinary, after b had opened bucket users/7 in failover h1: INSERT of orders two")

	// What c had done to a row when it owned the bucket is not taken for what a did to it later.
	thrice := func() *story {
		return new(story).lose("a", "b", 6, 8, 12).open(0, "c", 1).
			write(1, "c", "one").applied(1.1, "b", "one").applied(1.1, "a", "one").closed(2, "c", 1).open(3, "a", 2).
			write(4, "a", "one").applied(4.1, "b", "one").write(5, "a", "one").open(8, "b", 3)
	}
	want(t, CheckTail(thrice().e), "1 of 1 changes of table orders are not in the conflict log of failover h1, the last: INSERT of orders one at a")
	want(t, CheckTail(thrice().log("one", "kept").e), "")
}

// b dies a moment after a switch to a, and a takes over from it. The last that a saw of b's lease was before the switch: the
// switch is judged as one all the same.
func TestCheckK2_SwitchRightBeforeALoss(t *testing.T) {
	t.Parallel()
	moved := func(arrived float64) *story {
		s := new(story).lose("b", "a", 2, 8, 12).open(0, "b", 1).write(1, "b", "one").applied(1.1, "a", "one").
			closed(3, "b", 1).row(arrived, "a", "b", 1, false).open(4, "a", 2).write(5, "a", "two")
		for i := range s.e.Epochs[1:] {
			s.e.Epochs[1+i].Handover = "switch"
		}
		return s
	}
	want(t, CheckK1(moved(3.1).e, nil, 8), "")
	want(t, CheckK2(moved(3.1).e), "")
	want(t, CheckK2(moved(4.1).e), "before the end of b's epoch 1 was applied there")
	failover := moved(4.1)
	for i := range failover.e.Epochs[1:] {
		failover.e.Epochs[1+i].Handover = "h1"
	}
	if c := CheckK2(failover.e); c.Violated > 0 {
		t.Errorf("a failover is judged as a switch: %v", c.Examples)
	}
}

func TestCheckK1_Acknowledged(t *testing.T) {
	t.Parallel()
	const inSeven = "customer-20" // of 8 buckets
	op := func(from, to float64, site topo.SiteID, epoch topo.Epoch) Operation {
		return Operation{ID: "x", Op: "buy", Write: true, Outcome: OK, Keyspace: users, Key: inSeven, Site: site, Epoch: epoch,
			InvokedUS: second(from).UnixMicro(), ReturnedUS: second(to).UnixMicro()}
	}
	check := func(ops ...Operation) Check { return CheckK1(goodMove().e, ops, 8) }
	want(t, check(op(1, 2, "a", 1), op(4, 5, "b", 2), op(6, 7, "b", 2)), "")
	want(t, check(op(1, 6, "a", 1), op(4, 5, "b", 2)), "") // they overlap
	want(t, check(op(1, 2, "a", 3), op(4, 5, "a", 2)), "") // an epoch that an aborted handover raised
	want(t, check(op(4, 5, "b", 2), op(6, 7, "a", 1)), "was acknowledged by a under epoch 1 after b had acknowledged")
	other := op(6, 7, "a", 1)
	other.Key = bob
	want(t, check(op(4, 5, "b", 2), other), "")

	// The bucket is a's again from 8 to 10, and its gateway was frozen all the while: it names the epoch that it last knew.
	back := func(ops ...Operation) Check {
		return CheckK1(goodMove().closed(6, "b", 2).open(8, "a", 3).closed(10, "a", 3).e, ops, 8)
	}
	want(t, back(op(4, 5, "b", 2), op(7, 9, "a", 1)), "")
	want(t, back(op(4, 5, "b", 2), op(9.5, 11, "a", 1)), "")
	want(t, back(op(4, 5, "b", 2), op(6, 7, "a", 1)), "was acknowledged by a under epoch 1 after b had acknowledged")
	want(t, back(op(4, 5, "b", 2), op(11, 12, "a", 1)), "was acknowledged by a under epoch 1 after b had acknowledged")
	want(t, back(op(4, 5, "b", 3), op(7, 9, "a", 1)), "was acknowledged by a under epoch 1 after b had acknowledged")
	elsewhere := op(7, 9, "a", 1)
	elsewhere.Key = bob
	began := op(4, 5, "b", 2)
	began.Key = bob
	want(t, back(began, elsewhere), "was acknowledged by a under epoch 1 after b had acknowledged")
}

func TestCheckTail(t *testing.T) {
	t.Parallel()
	want(t, CheckTail(bucketLost().e), "")
	unlogged := bucketLost()
	unlogged.e.Conflicts = unlogged.e.Conflicts[:1]
	want(t, CheckTail(unlogged.e), "1 of 1 changes of table orders are not in the conflict log of failover h1")
	want(t, CheckTail(bucketLost().log("two", "kept").e), "2 times")
	want(t, CheckTail(bucketLost().applied(9.1, "b", "two").e), "b applied as ordinary, after it had opened bucket users/7 in failover h1: INSERT of orders two")
	other := bucketLost()
	other.e.Conflicts[0].Handover = "h9"
	want(t, CheckTail(other.e), "not in the conflict log of failover h1")
	if c := CheckTail(goodMove().e); c.Passed() {
		t.Error("a check of nothing passes")
	}
}

func TestCheckK6(t *testing.T) {
	t.Parallel()
	op := func(id, gateway string, from, to float64, view string) Operation {
		return Operation{ID: id, Gateway: gateway, View: view, Outcome: OK, InvokedUS: second(from).UnixMicro(), ReturnedUS: second(to).UnixMicro()}
	}
	good := []Operation{op("1", "a/g1", 0, 1, "1.4"), op("2", "a/g1", 2, 3, "1.5"), op("3", "a/g2", 4, 5, "1.4"),
		op("4", "a/g1", 2.5, 6, "1.4"), // it began before 2 had ended
		op("5", "a/g1", 7, 8, "2.1"), op("6", "a/g1", 9, 10, "")}
	want(t, CheckK6(good), "")
	want(t, CheckK6(append(good, op("7", "a/g1", 9, 10, "1.9"))), "answered 7 with view 1.9 after it had answered 5 with view 2.1")
	want(t, CheckK6([]Operation{op("1", "g", 0, 1, "1.10"), op("2", "g", 2, 3, "1.9")}), "view 1.9") // by number, not by text
	want(t, CheckK6([]Operation{op("1", "g", 0, 1, "soon")}), "a view that is none")
	if c := CheckK6(nil); c.Passed() {
		t.Error("a check of nothing passes")
	}
}

// aShop is a shop with two orders of one customer, the first sold, the second cancelled.
func aShop(site topo.SiteID) Shop {
	return Shop{Site: site, Counts: map[string]int{"ada": 2, "bob": 0}, Sold: map[string]string{"s1": "o1"},
		Orders: map[string]Order{
			"o1": {ID: "o1", Customer: "ada", Number: 1, Seat: "s1", Status: "confirmed", Payments: 1},
			"o2": {ID: "o2", Customer: "ada", Number: 2, Seat: "s2", Status: "cancelled", Payments: 1},
		}}
}

func aHistory() []Operation {
	return []Operation{
		{ID: "o1", Op: buyOp, Key: "ada", Write: true, Outcome: OK, Status: 201, Order: &Receipt{"o1", 1, "s1"}},
		{ID: "o2", Op: buyOp, Key: "ada", Write: true, Outcome: OK, Status: 201, Order: &Receipt{"o2", 2, "s2"}},
		{ID: "c1", Op: cancelOp, Key: "ada", Write: true, Outcome: OK, Status: 200, Order: &Receipt{"o2", 2, "s2"}},
		{ID: "o3", Op: buyOp, Key: "bob", Write: true, Outcome: Fail, Status: 503},
		{ID: "o4", Op: buyOp, Key: "bob", Write: true, Outcome: OK, Status: 409},
		{ID: "o5", Op: buyOp, Key: "bob", Write: true, Outcome: Unknown},
	}
}

func TestCheckK3(t *testing.T) {
	t.Parallel()
	ada := func(s *Shop, id string, change func(*Order)) {
		o := s.Orders[id]
		change(&o)
		s.Orders[id] = o
	}
	for name, test := range map[string]struct {
		spoil     func(ops []Operation, b *Shop) []Operation
		violation string
	}{
		"as it should be":         {func(ops []Operation, _ *Shop) []Operation { return ops }, ""},
		"unknown that took place": {func(ops []Operation, b *Shop) []Operation { ada(b, "o2", func(*Order) {}); return ops }, ""},
		"missing": {func(ops []Operation, b *Shop) []Operation {
			delete(b.Orders, "o1")
			return ops
		}, "site b: order o1 was acknowledged and is missing"},
		"refused and there": {func(ops []Operation, b *Shop) []Operation {
			b.Orders["o3"] = Order{ID: "o3", Customer: "bob", Number: 1, Payments: 1}
			b.Counts["bob"] = 1
			return ops
		}, "order o3 was refused and is there"},
		"taken and there": {func(ops []Operation, b *Shop) []Operation {
			b.Orders["o4"] = Order{ID: "o4", Customer: "bob", Number: 1, Payments: 1}
			b.Counts["bob"] = 1
			return ops
		}, "order o4 was refused and is there"},
		"another number": {func(ops []Operation, b *Shop) []Operation {
			ada(b, "o1", func(o *Order) { o.Number = 2 })
			ada(b, "o2", func(o *Order) { o.Number = 1 })
			return ops
		}, "order o1 was acknowledged as number 1"},
		"another seat": {func(ops []Operation, b *Shop) []Operation { ada(b, "o1", func(o *Order) { o.Seat = "s9" }); return ops }, "for seat s9"},
		"not cancelled": {func(ops []Operation, b *Shop) []Operation {
			ada(b, "o2", func(o *Order) { o.Status = "confirmed" })
			return ops
		}, "the cancellation of order o2"},
		"a gap":           {func(ops []Operation, b *Shop) []Operation { ada(b, "o2", func(o *Order) { o.Number = 3 }); return ops }, "order number 3 (o2) where 2 is expected"},
		"a number twice":  {func(ops []Operation, b *Shop) []Operation { ada(b, "o2", func(o *Order) { o.Number = 1 }); return ops }, "where 2 is expected"},
		"a wrong count":   {func(ops []Operation, b *Shop) []Operation { b.Counts["ada"] = 1; return ops }, "counts 1 orders and has 2"},
		"a count of none": {func(ops []Operation, b *Shop) []Operation { b.Counts["bob"] = 1; return ops }, "customer bob counts 1 orders and has none"},
		"paid twice": {func(ops []Operation, b *Shop) []Operation {
			ada(b, "o1", func(o *Order) { o.Payments = 2 })
			return ops
		}, "has 2 payments"},
		"given twice": {func(ops []Operation, _ *Shop) []Operation {
			return append(ops, Operation{ID: "o6", Op: buyOp, Key: "ada", Write: true, Outcome: OK, Status: 201, Order: &Receipt{"o6", 2, "s6"}})
		}, "customer ada was given order number 2 twice"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := aShop("a"), aShop("b")
			ops := test.spoil(aHistory(), &b)
			want(t, CheckK3(ops, []Shop{a, b}, nil), test.violation)
		})
	}
	kept := func(kind, table, remote string) ConflictRow {
		return ConflictRow{Database: "b", Handover: "h1", Kind: kind, Table: "public." + table, Decision: decisionKept, Remote: json.RawMessage(remote)}
	}
	a, b := aShop("a"), aShop("b")
	for _, s := range []*Shop{&a, &b} { // o2 was made and cancelled by a site that was lost; its number was given again
		delete(s.Orders, "o2")
		s.Orders["o6"] = Order{ID: "o6", Customer: "ada", Number: 2, Seat: "s6", Status: "confirmed", Payments: 1}
	}
	ops := append(aHistory(), Operation{ID: "o6", Op: buyOp, Key: "ada", Write: true, Outcome: OK, Status: 201, Order: &Receipt{"o6", 2, "s6"}})
	log := []ConflictRow{kept("stale_insert", "orders", `{"id":"o2","status":"pending"}`), kept("stale_update", "orders", `{"id":"o2","status":"cancelled"}`)}
	want(t, CheckK3(ops, []Shop{a, b}, log), "")
	want(t, CheckK3(ops, []Shop{a, b}, log[1:]), "order o2 was acknowledged and is missing")
	want(t, CheckK3(ops, []Shop{a, b}, log[:1]), "the cancellation of order o2")
	log[0].Decision = decisionApplied
	want(t, CheckK3(ops, []Shop{a, b}, log), "order o2 was acknowledged and is missing")
	log[0].Decision, log[0].Handover = decisionKept, ""
	want(t, CheckK3(ops, []Shop{a, b}, log), "order o2 was acknowledged and is missing")
	if c := CheckK3(nil, []Shop{aShop("a")}, nil); c.Passed() {
		t.Error("a check of nothing passes")
	}
}

func TestCheckSeats(t *testing.T) {
	t.Parallel()
	good := aShop("a")
	c, twice := CheckSeats([]Shop{good}, nil)
	want(t, c, "")
	if twice != 0 {
		t.Errorf("%d seats sold twice", twice)
	}
	bad := aShop("a")
	bad.Orders["o7"] = Order{ID: "o7", Customer: "bob", Number: 1, Seat: "s1", Status: "confirmed", Payments: 1}
	c, twice = CheckSeats([]Shop{good, bad}, nil)
	want(t, c, "seat s1 is sold to the orders [o1 o7]")
	if twice != 1 {
		t.Errorf("%d seats sold twice, want 1", twice)
	}
	sale := []ConflictRow{{Handover: "h1", Kind: "stale_update", Table: "public.seats", Decision: decisionKept, Remote: json.RawMessage(`{"id":"s1","sold_to":"o7"}`)}}
	c, twice = CheckSeats([]Shop{good, bad}, sale) // a lost site sold it, and the taker sold it again
	want(t, c, "")
	if twice != 0 {
		t.Errorf("%d seats sold twice", twice)
	}
	unsold := aShop("b")
	unsold.Sold = map[string]string{"s5": "o9"}
	c, _ = CheckSeats([]Shop{unsold}, nil)
	want(t, c, "the catalogue has it sold to")
}

func TestCheckEqual(t *testing.T) {
	t.Parallel()
	site := func(rows rowHashes) map[string]rowHashes { return map[string]rowHashes{"public.orders": rows} }
	a := site(rowHashes{"1": "x", "2": "y"})
	compare := func(b rowHashes) Check { return CheckEqual(map[topo.SiteID]map[string]rowHashes{"a": a, "b": site(b)}) }
	want(t, compare(rowHashes{"1": "x", "2": "y"}), "")
	want(t, compare(rowHashes{"1": "x"}), "public.orders 2 is at a and not at b")
	want(t, compare(rowHashes{"1": "x", "2": "y", "3": "z"}), "public.orders 3 is at b and not at a")
	want(t, compare(rowHashes{"1": "x", "2": "other"}), "public.orders 2 differs between a and b")
	if c := CheckEqual(map[topo.SiteID]map[string]rowHashes{"a": a}); c.Passed() {
		t.Error("one site is equal to itself")
	}
}

func TestCheckReleases(t *testing.T) {
	t.Parallel()
	hold := func(at float64, gateway string, begin bool) Hold {
		return Hold{Gateway: gateway, Begin: begin, Handover: "h1", Keyspace: users, Buckets: topo.SpansOf(7), At: second(at)}
	}
	good := []Hold{hold(2.5, "a/g1", true), hold(2.6, "b/g1", true), hold(3.95, "a/g1", false), hold(4.1, "b/g1", false)}
	want(t, CheckReleases(good, goodMove().e), "") // a's gateway passes them on to b's, which still holds them
	want(t, CheckReleases(append(good, hold(3.5, "b/g2", false)), goodMove().e), "gateway b/g2 let go the writes of bucket users/7")
	never := new(story).open(0, "a", 1).closed(3, "a", 1)
	want(t, CheckReleases(good, never.e), "no fence opened for them after")
	back := func(by topo.HandoverID) Evidence { // it had gone to b, which was lost before it opened; or was aborted
		s := new(story).open(0, "a", 1).closed(3, "a", 1).open(9, "a", 3)
		s.e.Epochs[len(s.e.Epochs)-1].Handover = by
		return s.e
	}
	want(t, CheckReleases([]Hold{hold(2.5, "a/g1", true), hold(3.95, "a/g1", false)}, back("f1")), "")
	want(t, CheckReleases([]Hold{hold(2.5, "a/g1", true), hold(3.95, "a/g1", false)}, back("h1")), "gateway a/g1 let go the writes of bucket users/7")
	taken := new(story).open(0, "a", 1).closed(3, "a", 1).open(9, "b", 3) // aborted, and a was lost before it opened again
	taken.e.Epochs[len(taken.e.Epochs)-1].Handover = "f1"
	want(t, CheckReleases([]Hold{hold(2.5, "b/g1", true), hold(3.95, "b/g1", false)}, taken.e), "gateway b/g1 let go the writes of bucket users/7")
	taken.e.Losses = []Loss{{ID: "f1", Lost: "a", Taker: "b"}}
	want(t, CheckReleases([]Hold{hold(2.5, "b/g1", true), hold(3.95, "b/g1", false)}, taken.e), "")
	aborted := new(story).open(0, "a", 1).closed(3, "a", 1).open(9, "a", 2) // nobody else had it in between
	aborted.e.Epochs[len(aborted.e.Epochs)-1].Handover = "f1"
	want(t, CheckReleases([]Hold{hold(2.5, "a/g1", true), hold(3.95, "a/g1", false)}, aborted.e), "gateway a/g1 let go the writes of bucket users/7")
	if c := CheckReleases(nil, goodMove().e); c.Passed() {
		t.Error("a check of nothing passes")
	}
}
