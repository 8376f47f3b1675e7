package gateway

import (
	"fmt"
	"net/http"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// sessionCookie carries the token of a browser.
const sessionCookie = "atoll_session"

// lost tells whether a failover ended what was seen: its owner was lost, and had come further than the cut. As long as
// the cut stands in the view; later the owner that took over has decided about the rest, and logged it.
func lost(seen api.Seen, slot topo.Slot) bool {
	if seen.Epoch >= slot.Epoch {
		return false
	}
	for c := slot.Cut; c != nil; c = c.Earlier {
		if c.From == seen.Site && seen.Epoch <= c.Epoch && seen.Position > c.Position {
			return true
		}
	}
	return false
}

// readSession finds the token of a request: in the header, else in the cookie. asked is whether there is one: nobody pays for
// a session that nobody wants.
func readSession(r *http.Request) (s api.Session, asked bool, err error) {
	switch headers := r.Header[hSession]; {
	case len(headers) > 1:
		return s, true, fmt.Errorf("%w: header %s occurs %d times", api.ErrSession, hSession, len(headers))
	case len(headers) == 1 && headers[0] == api.SessionNew:
		return s, true, nil
	case len(headers) == 1 && headers[0] != "":
		s, err = api.ParseSession(headers[0])
		return s, true, err
	}
	if cookies := r.CookiesNamed(sessionCookie); len(cookies) == 1 {
		s, err = api.ParseSession(cookies[0].Value)
		return s, true, err
	} else if len(cookies) > 1 {
		return s, true, fmt.Errorf("%w: cookie %s occurs %d times", api.ErrSession, sessionCookie, len(cookies))
	}
	return s, false, nil
}
