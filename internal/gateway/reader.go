package gateway

import (
	"net/http"
	"strconv"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// sessionEnd says how a session decided about its request, or what it learned.
type sessionEnd string

const (
	sessionHere    sessionEnd = "here"    // read from this site's copy, which has what was seen
	sessionOwner   sessionEnd = "owner"   // read at the owner, because this site does not have it
	sessionLost    sessionEnd = "lost"    // a failover lost something that was seen
	sessionUnread  sessionEnd = "unread"  // the token cannot be read; answered by the owner
	sessionUnknown sessionEnd = "unknown" // where the database stands was not to be learned: the next read goes to the owner
)

var sessionEnds = []sessionEnd{sessionHere, sessionOwner, sessionLost, sessionUnread, sessionUnknown}

// reader is whoever asks, as far as its session goes.
type reader struct {
	carries bool        // the route's answers carry a session
	session api.Session // what it has seen, this answer included
	shown   bool        // the answer has something to say about it
	lost    string      // KEYSPACE/BUCKET/EPOCH of what a failover lost
	orStale bool        // where the owner cannot be reached, a copy that is too old will do
	stale   bool        // it did
}

// begin reads the session of a request. The bucket's owner has all that a token that cannot be read may stand for, as has
// the site to which another gateway sent the request.
func (x *exchange) begin() {
	if x.from != nil {
		x.target.Nearest = false
	}
	if !x.target.Keyed || x.target.Route.Session == topo.NoSessions {
		return
	}
	session, asked, err := readSession(x.r)
	x.reader.carries = asked || x.from == nil && x.target.Route.Session == topo.CookieSessions
	if x.from != nil {
		return
	}
	if x.reader.session = session; err != nil {
		x.g.log.Debug("session not read", "route", x.target.Route.Name, "error", err)
		x.g.metrics.sessions[sessionUnread].Inc()
		x.target.Nearest = false
	}
}

// behind returns what to do first where what the session has seen is not known to be at the place that is to answer; nil:
// it is. The owner has everything of the epochs before its own (I3), so only a view that is behind matters there.
func (x *exchange) behind(d route.Decision) func() step {
	if x.from != nil || d.Verdict != route.Local && d.Verdict != route.Forward {
		return nil
	}
	if wait := x.behindSession(d); wait != nil {
		return wait
	}
	return x.tooOld(d)
}

func (x *exchange) behindSession(d route.Decision) func() step {
	if !x.reader.carries {
		return nil
	}
	seen, ok := x.reader.session.Of(x.target.Route.Keyspace, x.target.Bucket)
	switch {
	case !ok:
		return nil
	case lost(seen, d.Slot):
		return func() step { return x.startAnew(seen) }
	case seen.Epoch > d.Slot.Epoch:
		return func() step { return x.awaitEpoch(seen) }
	case d.Verdict == route.Forward || d.Slot.Owner == x.g.conf.Site || plant.SessionIgnored:
		return nil
	}
	here, later := x.g.readers.await(x.ctx, seen, seen.Epoch == d.Slot.Epoch)
	switch {
	case here && later > d.Slot.Epoch: // only the view that says so knows what a failover cut off
		seen.Epoch = later
		return func() step { return x.awaitEpoch(seen) }
	case here:
		x.g.metrics.sessions[sessionHere].Inc()
		return nil
	}
	return func() step {
		x.g.metrics.sessions[sessionOwner].Inc()
		x.target.Nearest = false
		return again
	}
}

// tooOld returns what to do instead of reading from a copy that is older than the route allows.
func (x *exchange) tooOld(d route.Decision) func() step {
	rt := x.target.Route
	if !x.target.Nearest || rt.MaxStaleness == 0 || d.Slot.Owner == x.g.conf.Site || x.reader.stale {
		return nil
	}
	if age, known := x.g.readers.age(d.Slot.Owner, time.Now()); known && age <= rt.MaxStaleness {
		return nil
	}
	x.g.metrics.stale.Inc()
	if rt.WhenStale == topo.StaleRefused {
		return func() step { return x.refuse(reasonStale) }
	}
	return func() step {
		x.target.Nearest, x.reader.orStale = false, rt.WhenStale == topo.StaleServed
		return again
	}
}

// unreachable answers for an owner that cannot be reached: by a refusal, or from this site's copy, however old.
func (x *exchange) unreachable(reason route.Reason) step {
	if !x.reader.orStale {
		return x.refuse(reason)
	}
	x.target.Nearest, x.reader.orStale, x.reader.stale = true, false, true
	return again
}

// startAnew forgets what a failover lost. The answer says so, or is a refusal where the route wants that.
func (x *exchange) startAnew(seen api.Seen) step {
	x.g.metrics.sessions[sessionLost].Inc()
	x.reader.session, x.reader.shown = x.reader.session.Without(seen.Keyspace, seen.Bucket), true
	x.reader.lost = string(seen.Keyspace) + "/" + strconv.FormatUint(uint64(seen.Bucket), 10) + "/" + strconv.FormatUint(uint64(seen.Epoch), 10)
	x.target.Nearest = false
	if !x.target.Route.Strict {
		return again
	}
	x.carry(x.w.Header())
	return x.refuse(reasonSessionLost)
}

// awaitEpoch waits for the view under which the session's last answer was given.
func (x *exchange) awaitEpoch(seen api.Seen) step {
	_, ok := x.g.views.await(x.ctx, viewWait, func(now *snapshot) bool {
		slot, known := now.site.View.Slot(seen.Keyspace, seen.Bucket)
		return known && slot.Epoch >= seen.Epoch
	})
	if !ok && x.ctx.Err() == nil {
		return x.refuse(reasonBehind)
	}
	return again
}

// saw adds to the session what this site's application answered: all that its database has by now.
func (x *exchange) saw(resp *http.Response, d route.Decision) {
	if !x.reader.carries || resp.StatusCode >= 500 {
		return
	}
	seen, ok := x.g.readers.seen(x.ctx, x.target.Route.Keyspace, x.target.Bucket)
	x.learn(seen, ok, d)
}

// told adds what another site's gateway says of its answer.
func (x *exchange) told(resp *http.Response, d route.Decision) {
	if !x.reader.carries || resp.StatusCode >= 500 {
		return
	}
	theirs, err := api.ParseSession(resp.Header.Get(hSession))
	seen, ok := theirs.Of(x.target.Route.Keyspace, x.target.Bucket)
	x.learn(seen, ok && err == nil, d)
}

// learn adds a place to the session; one that is not known is as far as the bucket's owner may be.
func (x *exchange) learn(seen api.Seen, known bool, d route.Decision) {
	if !known {
		x.g.metrics.sessions[sessionUnknown].Inc()
		seen = api.Seen{Keyspace: x.target.Route.Keyspace, Bucket: x.target.Bucket, Epoch: d.Slot.Epoch, Site: d.Slot.Owner, Position: api.Everything}
	}
	x.reader.session, x.reader.shown = x.reader.session.With(seen), true
}

// carry puts the session into an answer.
func (x *exchange) carry(h http.Header) {
	if x.reader.stale {
		text := "unknown"
		slot, _ := x.g.views.load().site.View.Slot(x.target.Route.Keyspace, x.target.Bucket)
		if age, known := x.g.readers.age(slot.Owner, time.Now()); known {
			text = strconv.FormatInt(age.Milliseconds(), 10)
		}
		h[hStale] = []string{text}
	}
	if x.reader.lost != "" {
		h[hLost] = []string{x.reader.lost}
	}
	if !x.reader.shown {
		return
	}
	token := x.reader.session.String()
	h[hSession] = []string{token}
	if x.from == nil && x.target.Route.Session == topo.CookieSessions {
		c := http.Cookie{Name: sessionCookie, Value: token, Path: "/", MaxAge: 86400, HttpOnly: true, Secure: x.r.TLS != nil, SameSite: http.SameSiteLaxMode}
		h.Add("Set-Cookie", c.String())
	}
}
