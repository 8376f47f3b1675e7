//go:build !plant_marker_skipped

package plant

// MarkerSkipped makes a switch commit without waiting for the old owner's marker at the new owner.
const MarkerSkipped = false
