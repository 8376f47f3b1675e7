package gateway

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/atollhq/atoll/topo"
)

// takenOver is half with bucket 0 at b, as a site that lost it does not know it yet.
func takenOver() topo.Ownership {
	return change(change(half().StartMove("users", topo.SpansOf(0), "h", "b")).CommitMove("users", topo.SpansOf(0), "h"))
}

// doorway is an application whose requests of one path wait inside until they may leave.
type doorway struct {
	path           string
	entered, leave chan struct{}
	open           func() // lets everybody out
	name           string
	asked          atomic.Int64 // requests of the path
}

func newDoorway(name, path string) *doorway {
	d := &doorway{name: name, path: path, entered: make(chan struct{}), leave: make(chan struct{})}
	d.open = sync.OnceFunc(func() { close(d.leave) })
	return d
}

func (d *doorway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == d.path {
		d.asked.Add(1)
		d.entered <- struct{}{}
		<-d.leave
	}
	if status, err := strconv.Atoi(r.URL.Query().Get("status")); err == nil {
		w.WriteHeader(status)
		return
	}
	fmt.Fprint(w, d.name)
}

// begin sends a request and returns when the application has it.
func (d *doorway) begin(t *testing.T, s *site, path string) <-chan answer {
	t.Helper()
	t.Cleanup(d.open) // a server does not close while it has a request
	got, c := make(chan answer, 1), newClient(t)
	go func() { got <- do(t, c, "GET", s.url(path), keyIn(0), "") }()
	<-d.entered
	return got
}

func (s *site) lapse(t *testing.T) {
	t.Helper()
	s.agent.setRemaining(0)
	eventually(t, "the lease of "+string(s.id)+" ran out", func() bool { return !s.gw.lease.live() })
}

// An isolated site lives on: what it read from its database might be old, for another site may have taken over.
func TestIsolatedSiteAnswersNoStrongRead(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	a := alone(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/strong") {
			asked.Add(1)
		}
	}), nil)
	a.agent.setRemaining(1500)
	a.gw.kickAck()
	c := newClient(t)
	want(t, do(t, c, "GET", a.url("/strong"), keyIn(0), ""), 200, "")
	eventually(t, "the short lease is known", func() bool { return a.gw.lease.remaining().Milliseconds() < 2000 })
	a.agent.kill()
	eventually(t, "the lease ran out", func() bool { return !a.gw.lease.live() })
	before := asked.Load()
	got := do(t, c, "GET", a.url("/strong"), keyIn(0), "")
	want(t, got, 503, reasonLease)
	if !strings.Contains(got.body, "may be old") || got.header.Get("Retry-After") == "" {
		t.Errorf("%s %v", got, got.header)
	}
	want(t, do(t, c, "HEAD", a.url("/strong"), keyIn(0), ""), 503, reasonLease)
	if n := asked.Load(); n != before {
		t.Errorf("the application was asked %d times without a lease", n-before)
	}
	want(t, do(t, c, "GET", a.url("/users"), keyIn(0), ""), 200, "")
	want(t, do(t, c, "GET", a.url("/"), "", ""), 200, "")
}

// The lease is in force when the read begins and not when its answer comes. Whatever tells what is stored is refused,
// not only a 2xx; a 5xx tells nothing.
func TestStrongReadIsLate(t *testing.T) {
	t.Parallel()
	for status, reason := range map[int]string{200: "deadline", 304: "deadline", 404: "deadline", 500: ""} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			app := newDoorway("a", "/strong")
			a := alone(t, app, nil)
			got := app.begin(t, a, fmt.Sprintf("/strong?status=%d", status))
			a.lapse(t)
			app.open()
			late := <-got
			if reason == "" {
				want(t, late, status, "")
				return
			}
			want(t, late, 503, reasonDeadline)
			if strings.Contains(late.body, "not known") || !strings.Contains(late.body, "nothing was changed") {
				t.Errorf("a read has no unknown outcome: %q", late.body)
			}
		})
	}
}

// Reads of other routes are answered however late they are.
func TestPlainReadIsNeverLate(t *testing.T) {
	t.Parallel()
	app := newDoorway("a", "/users")
	a := alone(t, app, nil)
	got := app.begin(t, a, "/users")
	a.lapse(t)
	app.open()
	want(t, <-got, 200, "")
}

// A switch waits for strong reads under way, and not for others; the one that it waited for is answered.
func TestAcknowledgementsCountStrongReads(t *testing.T) {
	t.Parallel()
	for path, counted := range map[string]int{"/strong": 1, "/users": 0} {
		t.Run(path[1:], func(t *testing.T) {
			t.Parallel()
			app := newDoorway("a", path)
			a := alone(t, app, nil)
			got := app.begin(t, a, path)
			moving := change(half().StartMove("users", topo.SpansOf(0, 1), "h", "b"))
			publish(moving, 1, a)
			eventually(t, "acknowledged", func() bool {
				ack := a.agent.acked("a/g1")
				n, named := ack.InFlight["h"]
				return ack.Version == moving.Version && named && n == counted
			})
			app.open()
			want(t, <-got, 200, "")
			eventually(t, "acknowledged with none", func() bool {
				n, named := a.agent.acked("a/g1").InFlight["h"]
				return named && n == 0
			})
		})
	}
}

// The count is kept where the request came in, too: the owner's gateway may have acknowledged long before it arrives.
func TestForwardedStrongReadIsCountedOnBothSides(t *testing.T) {
	t.Parallel()
	app := newDoorway("a", "/strong")
	a, b := pair(t, app, echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	got := app.begin(t, b, "/strong")
	moving := change(half().StartMove("users", topo.SpansOf(0), "h", "b"))
	publish(moving, 1, a, b)
	for _, s := range []*site{a, b} {
		eventually(t, "acknowledged with one under way by "+string(s.id), func() bool {
			return s.agent.acked(s.gw.name).InFlight["h"] == 1
		})
	}
	app.open()
	want(t, <-got, 200, "")
}

// A site is back after a failover and has a lease again, but its gateway has not heard of the failover: under such a
// view the lease vouches for nothing.
func TestStaleViewUnderANewLease(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	after := takenOver()
	publish(after, after.Version, b)
	b.ready(t, after.Version)
	a.agent.know(after)
	a.gw.kickAck()
	eventually(t, "the lease names the document", func() bool { return a.gw.lease.current.Load().view.version == after.Version })
	c := newClient(t)
	want(t, do(t, c, "GET", a.url("/strong"), keyIn(0), ""), 503, reasonBehind)
	if got := do(t, c, "GET", a.url("/users"), keyIn(0), ""); got.status != 200 || got.header.Get(hSite) != "a" {
		t.Errorf("a plain read: %s %v", got, got.header)
	}
	got := make(chan answer, 1)
	go func() { got <- do(t, c, "GET", a.url("/strong"), keyIn(0), "") }()
	publish(after, after.Version, a)
	answer := <-got
	want(t, answer, 200, "")
	if answer.header.Get(hSite) != "b" || answer.header.Get(hEpoch) != "2" {
		t.Errorf("headers %v", answer.header)
	}
}

// The bucket leaves while the old owner's application reads, and its answer comes when another site may have written.
func TestStrongReadIsOvertakenByAnOwner(t *testing.T) {
	t.Parallel()
	for name, live := range map[string]bool{"lease in force": true, "lease lapsed": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			app := newDoorway("a", "/strong")
			a, b := pair(t, app, echo("b"), nil)
			publish(half(), 1, a, b)
			a.ready(t, 1)
			b.ready(t, 1)
			here, there := app.begin(t, a, "/strong"), app.begin(t, b, "/strong")
			after := takenOver()
			publish(after, after.Version, a, b)
			a.ready(t, after.Version)
			b.ready(t, after.Version)
			if !live {
				a.lapse(t)
			}
			app.open()
			for _, got := range []<-chan answer{here, there} {
				answer := <-got
				want(t, answer, 200, "")
				if answer.header.Get(hSite) != "b" || answer.header.Get(hEpoch) != "2" {
					t.Errorf("%s %v", answer, answer.header)
				}
			}
			if n := app.asked.Load(); n != 2 {
				t.Errorf("the old owner was asked %d times", n)
			}
		})
	}
}

// Only the owner's lease counts for a forwarded read, and the owner's gateway looks at it.
func TestForwardedStrongReads(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo("a"), echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	c := newClient(t)
	b.lapse(t)
	if got := do(t, c, "GET", b.url("/strong"), keyIn(0), ""); got.status != 200 || got.header.Get(hSite) != "a" {
		t.Errorf("the forwarding site's lease does not count: %s %v", got, got.header)
	}
	a.lapse(t)
	b.agent.setRemaining(60_000)
	b.ready(t, 1)
	// b's view is stale as long as it shows a as the owner; a's gateway does not answer all the same.
	want(t, do(t, c, "GET", b.url("/strong"), keyIn(0), ""), 503, reasonLease)
	want(t, do(t, c, "GET", b.url("/users"), keyIn(0), ""), 200, "")
	after := takenOver()
	publish(after, after.Version, b)
	b.ready(t, after.Version)
	if got := do(t, c, "GET", b.url("/strong"), keyIn(0), ""); got.status != 200 || got.header.Get(hSite) != "b" {
		t.Errorf("the new owner: %s %v", got, got.header)
	}
}

// A forwarded read whose answer is late at the owner is refused there, and the user hears why.
func TestForwardedStrongReadIsLate(t *testing.T) {
	t.Parallel()
	app := newDoorway("a", "/strong")
	a, b := pair(t, app, echo("b"), nil)
	publish(half(), 1, a, b)
	a.ready(t, 1)
	b.ready(t, 1)
	got := app.begin(t, b, "/strong")
	a.lapse(t)
	app.open()
	late := <-got
	want(t, late, 503, reasonDeadline)
	if late.header.Get(hGateway) != "b/g1" {
		t.Errorf("headers %v", late.header)
	}
}
