//go:build plant_early_release

package plant

// EarlyRelease makes gateways release held requests when the fence is closed, before the new owner is open.
const EarlyRelease = true
