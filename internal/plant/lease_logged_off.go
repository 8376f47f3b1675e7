//go:build !plant_lease_logged

package plant

// LeaseLogged: the lease moment survives a crash and reaches a standby.
const LeaseLogged = false
