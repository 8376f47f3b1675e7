//go:build plant_dropped_conflict

package plant

// DroppedConflict: a stale change that is not applied is not logged either.
const DroppedConflict = true
