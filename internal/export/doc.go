// Package export lets other proxies route by the ownership: HAProxy by a map file and a piece of configuration, kept in step
// with the ownership while it runs.
//
// The main type is [HAProxy]: what of a specification the proxy needs. Its Config computes the bucket of a request as package
// route does, its [Map] says which site owns each bucket, and [Follower] swaps a running proxy's map at each new view.
//
// It guarantees that a swap is all or nothing, and that a map never goes back to an older view. It guarantees no more
// than that about where a request goes: a proxy knows no epoch and holds nothing. So it sends everything to gateways, of the
// owner's site or of its own, and those decide again: what a proxy gets wrong costs a hop. What moves, and what it cannot
// read as a gateway would, goes to the gateways of its own site.
package export

// The layout of the map: KEYSPACE/BUCKET → site, or hold while it moves; and which view that is. Neither word is a site's name.
const (
	hold    = "_hold"
	viewKey = "_view"
)
