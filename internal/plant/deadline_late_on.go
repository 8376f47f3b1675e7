//go:build plant_deadline_late

package plant

// DeadlineLate: the keeper's deadline counts from the store's answer, not from the start of the renewal.
const DeadlineLate = true
