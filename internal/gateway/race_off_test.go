//go:build !race

package gateway

// raceEnabled: the race detector makes everything some ten times as slow.
const raceEnabled = false
