//go:build !plant_control_row_lock_removed

package plant

// ControlRowLockRemoved: ownership bits change without a lock, so that two handovers in one word overwrite each other.
const ControlRowLockRemoved = false
