// Package discover finds the instances of a service: by DNS ([DNS]), or those that have registered themselves at the site's
// agent ([Registered]).
//
// Each is a function of the form that a gateway wants: it calls found with all instances whenever these changed, until ctx ends. What
// was found last stays: a name server or an agent that is away, or that knows nothing any more, takes no instance away.
package discover
