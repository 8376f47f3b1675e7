// Package split decides which part of a route's requests goes another way, and when that has to end: for moving a path from one
// service to another, step by step.
//
// [Point] places a key in [0, 1); a share takes the keys below it. The place is a function of the route's name and the key alone,
// the same in every gateway and build (vectors in the tests). So a larger share takes all keys of a smaller one: to raise it
// moves keys one way only.
//
// A [Watch] counts answers of both ways over a window, and says when the new one fails more often than the old one, by more than
// is allowed and than chance explains.
//
// Everything here is pure: no clock, no goroutines. A Watch is not safe for concurrent use.
package split

import (
	"crypto/sha256"
	"encoding/binary"
)

// Point is where a key of a route stands. The route is part of it, so that not the same keys come first everywhere; and it has
// nothing in common with the key's bucket, so that a share takes as much of each site.
func Point(route, key string) float64 {
	var room [128]byte
	text := append(append(append(room[:0], route...), 0), key...)
	sum := sha256.Sum256(text)
	return float64(binary.BigEndian.Uint64(sum[:8])>>11) / (1 << 53)
}

// Within tells whether a key of a route is in a share of [0, 1].
func Within(share float64, route, key string) bool {
	return share > 0 && Point(route, key) < share
}
