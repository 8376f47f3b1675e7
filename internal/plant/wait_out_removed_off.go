//go:build !plant_wait_out_removed

package plant

// WaitOutRemoved makes closing a fence not wait writers out.
const WaitOutRemoved = false
