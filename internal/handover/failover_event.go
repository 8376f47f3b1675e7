package handover

import (
	"time"

	"github.com/atollhq/atoll/topo"
)

type (
	// Sight answers a look: the lease was read linearizably, the facts after it.
	Sight struct {
		At    time.Time       // when the read of the lease had returned
		ID    topo.HandoverID // that was never used; a failover that begins because of this look gets it
		Lease LeaseSeen
		Facts Facts
	}
	// Unseen answers a look at which the store did not answer.
	Unseen struct{ Text string }
	// Order is an operator's. It begins a failover if its conditions hold as of the last look, else nothing.
	Order struct {
		ID       topo.HandoverID // that was never used
		Who, Why string
		Override []string
	}

	// Halted answers Halt: nothing of the lost site is applied here beyond this durable position, and none of the survivors
	// that have stopped too stands beyond it. Silent are those that were left out because they did not answer for too long.
	Halted struct {
		Position  uint64
		Survivors map[topo.SiteID]uint64
		Silent    []topo.SiteID
	}
	// Unhalted answers Unhalt.
	Unhalted struct{}
	// TakeStands answers Take: the taker owns what is named, in this version.
	TakeStands struct {
		Version uint64
		Taken   []topo.Taken
	}
	// GivenUp answers GiveUp: the record is a refusal, for ever.
	GivenUp struct{}
)

func (Sight) event()      {}
func (Unseen) event()     {}
func (Order) event()      {}
func (Halted) event()     {}
func (Unhalted) event()   {}
func (TakeStands) event() {}
func (GivenUp) event()    {}
