//go:build !plant_lease_relative

package plant

// LeaseRelative: the lease moment is computed when the database executes the write, not before it is sent.
const LeaseRelative = false
