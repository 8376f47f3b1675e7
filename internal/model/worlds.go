package model

import (
	"fmt"
	"time"
)

// slowest are clock rates at the bounds of the claim: everything at a is slow by the whole rate error as b sees it.
var slowest = [2]Rates{{99, 99}, {100, 100}}

// The worlds below are searched whole by `make explore`, and for a few steps by `go test`. Each leaves out what its
// question does not need, so that the rest can be gone through without exception.

// Failover is a lost site: both buckets are a's, b watches.
func Failover() Config {
	return Config{Name: "failover", Horizon: 7000, Grid: 1000, Faults: 2, May: Sound, Writes: 1, To: []int{0}, Watches: [2]bool{false, true},
		W: time.Second, Rates: slowest}
}

// Handover is a switch of bucket 0 from a to b, driven at a, with nobody watching.
func Handover() Config {
	return Config{Name: "switch", Switches: []Switch{{Bucket: 0, To: 1, Driver: 0, At: 1000}}, Horizon: 4000, Grid: 1000, Faults: 1, May: Sound, Writes: 1,
		To: []int{0}, W: time.Second, Rates: slowest}
}

// Interleaved is Handover without faults, in which everything may come between two effects of a keeper.
func Interleaved() Config {
	c := Handover()
	c.Name, c.Faults, c.Writes, c.Fine = "switch, step by step", 0, 2, true
	return c
}

// Rivals is Handover with controllers that take the switch from each other while both live: two mistakes, no other fault.
func Rivals() Config {
	c := Handover()
	c.Name, c.Faults, c.Writes, c.May = "switch, two drivers", 2, 2, 0
	return c
}

// Both is a switch during which a site may be lost.
func Both() Config {
	c := Handover()
	c.Name, c.Horizon, c.Watches = "switch and failover", 6000, [2]bool{false, true}
	return c
}

// Mutual is a site each, and each watches the other; who was taken over from returns, settles, and may own again.
func Mutual() Config {
	c := Failover()
	c.Name, c.Owners, c.Watches, c.Horizon, c.Faults, c.Returns = "there and back", [2]int{0, 1}, [2]bool{true, true}, 10000, 1, true
	return c
}

// Worlds are those that must hold.
func Worlds() []Config {
	return []Config{Failover(), Handover(), Interleaved(), Rivals(), Both(), Mutual()}
}

// Paused is Failover in which the machine of a's database may stand still while no agent of a lives. That is what the
// claim excludes, and it must be possible to see why.
func Paused() Config {
	c := Failover()
	c.Name, c.May, c.Here, c.Horizon, c.Outcomes = "a paused database clock, its keeper dead", CrashAgents|StopClock, []int{0}, 4100, true
	return c
}

// PausedAlive is Paused with a keeper that lives: until its next heartbeat behind the pause it cannot know.
func PausedAlive() Config {
	c := Failover()
	c.Name, c.May, c.Here, c.Horizon, c.Faults, c.Outcomes = "a paused database clock, its keeper alive", StopAnyClock, []int{0}, 4100, 1, true
	return c
}

// Planted is a world with a bug planted into it: the smallest in which it shows.
func Planted(p Plant) Config {
	c := Failover()
	switch p {
	case WaitOutRemoved, MarkerSkipped, EpochKept:
		c = Handover()
		c.Faults = 0
	case OpenUnconditional:
		c = Interleaved()
		c.Horizon = 1000
	case BitsUnchecked:
		c = Rivals()
		c.Faults, c.Fine = 1, true
	case AttemptIgnored: // all in one moment, with keepers at rest
		c = Rivals()
		c.Switches, c.Horizon = []Switch{{Bucket: 0, To: 1, Driver: 0}}, 0
	case TakeoverUnconditional, FenceRemoved:
		c.Faults = 0
	case DeadlineFromAnswer:
		c.Faults, c.May, c.Here = 1, FreezeAgents, []int{0}
	default:
		c.Faults, c.May, c.Here = 1, CrashAgents, []int{0}
	}
	c.Plant, c.Name, c.NoMargin = p, fmt.Sprintf("%s, with %s", c.Name, p), p == RateIgnored
	return c
}

// Plants are the bugs that can be planted.
func Plants() []Plant {
	return []Plant{TakeoverUnconditional, LeaseRelative, WaitOutRemoved, OpenBeforeApplierIdle, MarkerSkipped, FenceRemoved, EpochKept, AttemptIgnored,
		OpenUnconditional, BitsUnchecked, DeadlineFromAnswer, GapIgnored, RateIgnored, RestrictSkipped, CutIgnored, EpochIgnored}
}
