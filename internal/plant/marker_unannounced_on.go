//go:build plant_marker_unannounced

package plant

// MarkerUnannounced: no word in front of a marker says that everything before it was sent.
const MarkerUnannounced = true
