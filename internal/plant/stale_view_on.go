//go:build plant_stale_view

package plant

// StaleView: a gateway takes a view of a lower version (I8).
const StaleView = true
