//go:build !plant_vector_ignored

package plant

// VectorIgnored: markers are applied before this site has what their vector asks for (I3).
const VectorIgnored = false
