// Package limit decides how many requests are let through: how many may be at a service at the same time ([Limiter]), who of those
// that want to goes in, waits or is turned away ([Door]), and how many a caller may send in a time ([Buckets]).
//
// A [Limiter] learns the limit from how long answers take. It guarantees that a service which can do C at the same time gets
// about as many, and not many more, however many come; and that it finds out within some seconds when that changes.
//
// A [Door] guarantees that nobody waits while there is room, that a higher priority goes first, and that a lower one never
// takes the place of a higher one.
//
// [Buckets] keep a bounded number of callers in memory.
//
// Everything here is pure: no clock, no goroutines. Door and Limiter are not safe for concurrent use; Buckets are.
package limit

// Priority says who goes first where not all can.
type Priority uint8

// The priorities.
const (
	Low Priority = iota
	Normal
	High
	priorities = iota
)
