//go:build !plant_takeover_unconditional

package plant

// TakeoverUnconditional: a failover compares neither the ownership's version nor the lost site's lease, and does not revoke it; and the observer sees no renewal, as if its watch were frozen.
const TakeoverUnconditional = false
