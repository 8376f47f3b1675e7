//go:build plant_fence_removed

package plant

// FenceRemoved makes the fence triggers let every write pass.
const FenceRemoved = true
