//go:build !race

package assess

// raceEnabled: the race detector makes computing some ten times as slow, and has nothing to find where there is one goroutine.
const raceEnabled = false
