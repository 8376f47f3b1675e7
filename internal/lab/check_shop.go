package lab

import (
	"fmt"
	"maps"
	"slices"

	"github.com/atollhq/atoll/topo"
)

// Order is one order as a database has it.
type Order struct {
	ID       string
	Customer string
	Number   int
	Seat     string
	Status   string // pending, confirmed, refunded, cancelled
	Payments int    // rows
}

// Shop is the ticket shop as one site's database has it.
type Shop struct {
	Site   topo.SiteID
	Counts map[string]int    // orders_count by customer
	Orders map[string]Order  // by id
	Sold   map[string]string // seat → order that it is sold to

	Registers map[string]string   // customer → address, where one was ever set
	Lists     map[string][]string // customer → wishes, where there are any
}

// The load generator's names for its writes of orders.
const (
	buyOp    = "buy" // the order's id is the operation's
	cancelOp = "cancel"
)

// CheckK3 compares what clients were told with what the sites' databases have, once traffic has stopped and the sites
// have caught up: nothing acknowledged is missing, nothing is there twice, and nothing that was refused is there. What
// a lost site had acknowledged may instead stand in a conflict log, as a version that was not kept.
func CheckK3(ops []Operation, sites []Shop, conflicts []ConflictRow) Check {
	c := Check{Name: "K3", Claim: "nothing acknowledged is missing, nothing is there twice"}
	out := outvotedIn(conflicts)
	acknowledged := 0
	for i := range ops {
		o := &ops[i]
		if o.Outcome == OK && o.Order != nil && o.Write {
			acknowledged++
		}
		for j := range sites {
			switch o.Op {
			case buyOp:
				checkBuy(&c, o, &sites[j], out)
			case cancelOp:
				checkCancel(&c, o, &sites[j], out)
			}
		}
	}
	checkReceipts(&c, ops, out)
	orders := 0
	for i := range sites {
		orders = max(orders, len(sites[i].Orders))
		checkNumbers(&c, &sites[i])
		checkPayments(&c, &sites[i])
	}
	c.Looked = fmt.Sprintf("%d acknowledged orders and cancellations, %d orders at each of %d sites, %d orders in conflict logs",
		acknowledged, orders, len(sites), len(out.orders))
	if acknowledged == 0 || len(sites) == 0 {
		c.Error = "no order was acknowledged, or no site was read"
	}
	return c
}

// outvoted is what the conflict logs say that lost sites had committed and that was not applied.
type outvoted struct {
	orders  map[string]bool // made
	cancels map[string]bool // orders that were cancelled
	sales   map[sale]bool
}

type sale struct{ seat, order string }

func outvotedIn(conflicts []ConflictRow) outvoted {
	out := outvoted{map[string]bool{}, map[string]bool{}, map[sale]bool{}}
	for i := range conflicts {
		r := &conflicts[i]
		if r.Handover == "" || r.Decision != decisionKept {
			continue
		}
		id := column(r.Remote, "id")
		switch bareTable(r.Table) + " " + r.Kind {
		case "orders stale_insert":
			out.orders[id] = true
			if column(r.Remote, "status") == "cancelled" { // a rebuild logs the row as it was in the end
				out.cancels[id] = true
			}
		case "orders stale_update":
			if column(r.Remote, "status") == "cancelled" {
				out.cancels[id] = true
			}
		case "seats stale_update":
			if order := column(r.Remote, "sold_to"); order != "" {
				out.sales[sale{id, order}] = true
			}
		}
	}
	return out
}

func checkBuy(c *Check, o *Operation, s *Shop, out outvoted) {
	switch {
	case o.Outcome == Unknown:
	case o.Order == nil: // refused, by the shop (4xx) or on the way
		if _, there := s.Orders[o.ID]; there {
			c.found("site %s: order %s was refused and is there: %s", s.Site, o.ID, o)
		}
	default:
		got, there := s.Orders[o.Order.ID]
		switch {
		case !there && out.orders[o.Order.ID]:
		case !there:
			c.found("site %s: order %s was acknowledged and is missing: %s", s.Site, o.Order.ID, o)
		case got.Customer != o.Key || got.Number != o.Order.Number || got.Seat != o.Order.Seat:
			c.found("site %s: order %s was acknowledged as number %d of customer %s for seat %s; it is number %d of %s for seat %s",
				s.Site, o.Order.ID, o.Order.Number, o.Key, o.Order.Seat, got.Number, got.Customer, got.Seat)
		}
	}
}

func checkCancel(c *Check, o *Operation, s *Shop, out outvoted) {
	if o.Outcome != OK || o.Order == nil || out.cancels[o.Order.ID] {
		return
	}
	if got := s.Orders[o.Order.ID]; got.Status != "cancelled" {
		c.found("site %s: the cancellation of order %s was acknowledged, its status is %q: %s", s.Site, o.Order.ID, got.Status, o)
	}
}

// checkReceipts looks at the clients' side alone: no customer was given one number for two orders that count.
func checkReceipts(c *Check, ops []Operation, out outvoted) {
	type numbered struct {
		customer string
		number   int
	}
	given := map[numbered]*Operation{}
	for i := range ops {
		o := &ops[i]
		if o.Outcome != OK || o.Op != buyOp || o.Order == nil || out.orders[o.Order.ID] {
			continue
		}
		k := numbered{o.Key, o.Order.Number}
		if first := given[k]; first != nil && first.Order.ID != o.Order.ID {
			c.found("customer %s was given order number %d twice: %s and %s", o.Key, o.Order.Number, first, o)
		}
		given[k] = o
	}
}

// checkNumbers: a customer's orders are numbered 1 to n, and the customer's row counts n. Numbers are given in the
// order's own transaction, so that one of unknown outcome leaves no gap either.
func checkNumbers(c *Check, s *Shop) {
	byCustomer := map[string][]Order{}
	for _, o := range s.Orders {
		byCustomer[o.Customer] = append(byCustomer[o.Customer], o)
	}
	for _, customer := range slices.Sorted(maps.Keys(byCustomer)) {
		orders := byCustomer[customer]
		slices.SortFunc(orders, func(a, b Order) int { return a.Number - b.Number })
		for i, o := range orders {
			if o.Number != i+1 {
				c.found("site %s: customer %s has order number %d (%s) where %d is expected", s.Site, customer, o.Number, o.ID, i+1)
				break
			}
		}
		if got := s.Counts[customer]; got != len(orders) {
			c.found("site %s: customer %s counts %d orders and has %d", s.Site, customer, got, len(orders))
		}
	}
	for _, customer := range slices.Sorted(maps.Keys(s.Counts)) {
		if n := s.Counts[customer]; n != 0 && len(byCustomer[customer]) == 0 {
			c.found("site %s: customer %s counts %d orders and has none", s.Site, customer, n)
		}
	}
}

func checkPayments(c *Check, s *Shop) {
	for _, id := range slices.Sorted(maps.Keys(s.Orders)) {
		if o := s.Orders[id]; o.Payments != 1 {
			c.found("site %s: order %s of customer %s has %d payments", s.Site, id, o.Customer, o.Payments)
		}
	}
}

// CheckSeats: no seat is sold twice, by the catalogue's word and by the orders'. Seats and customers are written at
// different places: a lost site may have sold a seat to an order that stands, and the sale itself was not kept, because
// the taker had given the seat away; or it may have given back the seat of an order whose cancellation was not kept. The
// conflict log names such a sale or cancellation, and the shop has to make it good.
func CheckSeats(sites []Shop, conflicts []ConflictRow) (Check, int) {
	c := Check{Name: "seats", Claim: "no seat is sold twice; catalogue and orders agree"}
	out := outvotedIn(conflicts)
	twice, sold := 0, 0
	for i := range sites {
		s := &sites[i]
		sold = max(sold, len(s.Sold))
		bySeat := map[string][]string{}
		for _, id := range slices.Sorted(maps.Keys(s.Orders)) {
			if o := s.Orders[id]; o.Status == "confirmed" && !out.sales[sale{o.Seat, id}] && !out.cancels[id] {
				bySeat[o.Seat] = append(bySeat[o.Seat], id)
			}
		}
		here := 0
		for _, seat := range slices.Sorted(maps.Keys(bySeat)) {
			orders := bySeat[seat]
			if len(orders) > 1 {
				here++
				c.found("site %s: seat %s is sold to the orders %v", s.Site, seat, orders)
			}
			if !slices.Contains(orders, s.Sold[seat]) {
				c.found("site %s: seat %s is confirmed to order %s, the catalogue has it sold to %q", s.Site, seat, orders[0], s.Sold[seat])
			}
		}
		twice = max(twice, here)
	}
	c.Looked = fmt.Sprintf("%d seats sold; %d sales and %d cancellations stand in the conflict logs only", sold, len(out.sales), len(out.cancels))
	if sold == 0 {
		c.Error = "no seat was sold"
	}
	return c, twice
}
