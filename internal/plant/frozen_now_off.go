//go:build !plant_frozen_now

package plant

// FrozenNow: the fence compares the lease with the start of the transaction, not with the clock.
const FrozenNow = false
