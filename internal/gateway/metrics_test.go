package gateway

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// series are the gateway's metrics, each with its labels.
func (s *site) series() []string {
	families, err := s.gw.metrics.registry.Gather()
	must0(err)
	all := map[string]bool{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := f.GetName()
			for _, l := range m.GetLabel() {
				name += fmt.Sprintf(" %s=%s", l.GetName(), l.GetValue())
			}
			all[name] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// Whatever users send, the metrics are those that the gateway began with: none of their words is a label.
func TestMetricsAreBounded(t *testing.T) {
	t.Parallel()
	a := alone(t, echo("a"), nil)
	before := a.series()
	c := newClient(t)
	for n := range 50 {
		req, err := http.NewRequest([]string{"GET", "POST", "PURGE", fmt.Sprintf("M%d", n)}[n%4], a.url(fmt.Sprintf("/users/?q=%d", n)), strings.NewReader("x"))
		must0(err)
		req.Host = fmt.Sprintf("h%d.example", n)
		if key := fmt.Sprintf("someone-%d", n); n%5 > 0 && bucketOf(key) < userBuckets/2 { // a's; else there is no key
			req.Header.Set("X-User", key)
		}
		req.Header.Set("Atoll-Session", fmt.Sprintf("token-%d", n))
		req.Header.Set("Traceparent", fmt.Sprintf("00-%032x-%016x-01", n+1, n+1))
		send(t, c, req)
	}
	for _, raw := range []string{"GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n", "GET /users/../x HTTP/1.1\r\nHost: h\r\n\r\n"} {
		rawly(t, a.gw.UserAddr(), raw)
	}
	if after := a.series(); !slices.Equal(after, before) {
		t.Errorf("new: %q", slices.DeleteFunc(after, func(s string) bool { return slices.Contains(before, s) }))
	}
}

// Every end of a hold is counted under its own name.
func TestEndsOfHoldsAreCounted(t *testing.T) {
	t.Parallel()
	moving := change(half().StartMove("users", topo.SpansOf(0, 1, 2), "h", "b"))
	begin := func(hold Hold) *site {
		a := newSite(t, "a", echo("a"))
		conf := a.config()
		conf.Hold, conf.Grace = hold, time.Millisecond
		a.start(t, conf)
		publish(moving, 2, a)
		a.ready(t, moving.Version)
		return a
	}
	c := newClient(t)
	counted := func(s *site, end holdEnd) {
		t.Helper()
		eventually(t, string(end)+" is counted", func() bool { return s.counter("hold_ended_total", "reason", string(end)) == 1 })
	}
	impatient := begin(Hold{MaxTime: time.Millisecond, MaxPerBucket: 1, MaxRequests: 1})
	want(t, do(t, c, "POST", impatient.url("/users"), keyIn(0), "x"), 503, reasonHoldTimeout)
	counted(impatient, holdTimeout)

	a := begin(Hold{MaxTime: time.Minute, MaxPerBucket: 1, MaxRequests: 2})
	hold := func(ctx context.Context, b topo.BucketID) <-chan answer {
		req, err := http.NewRequestWithContext(ctx, "POST", a.url("/users"), strings.NewReader("x"))
		must0(err)
		req.Header.Set("X-User", keyIn(b))
		got, before := make(chan answer, 1), a.gw.room.held()
		go func() {
			if resp, err := c.Do(req); err == nil {
				resp.Body.Close()
				got <- answer{status: resp.StatusCode, header: resp.Header}
			}
		}()
		eventually(t, "held", func() bool { return a.gw.room.held() == before+1 })
		return got
	}
	first := hold(t.Context(), 0)
	want(t, do(t, c, "POST", a.url("/users"), keyIn(0), "x"), 503, reasonHoldFull)
	counted(a, holdBucketFull)
	hurried, err := http.NewRequest("POST", a.url("/users"), strings.NewReader("x"))
	must0(err)
	hurried.Header = http.Header{"X-User": {keyIn(1)}, hDeadline: {"50ms"}}
	want(t, send(t, c, hurried), 504, reasonExpired)
	counted(a, holdExpired)
	gone, leave := context.WithCancel(t.Context())
	defer leave()
	hold(gone, 1)
	want(t, do(t, c, "POST", a.url("/users"), keyIn(2), "x"), 503, reasonHoldFull)
	counted(a, holdFull)
	leave()
	counted(a, holdClientGone)
	second := hold(t.Context(), 1)
	aborted := change(moving.AbortMove("users", topo.SpansOf(0), "h"))
	publish(aborted, aborted.Version, a)
	want(t, <-first, 200, "")
	counted(a, holdReleased)
	a.stop()
	want(t, <-second, 503, reasonStopping)
	counted(a, holdStopping)
}
