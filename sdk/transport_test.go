package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

func TestTransport_SendsToTheOwnersGateway(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo)
	publish(half(), a, b)
	v := viewAt(t, a)
	tr := newTransport(t, sdk.TransportConfig{View: v, Local: []string{a.users()}, Remote: map[topo.SiteID][]string{"b": {b.users()}}})
	near := newTransport(t, sdk.TransportConfig{View: v, Local: []string{a.users()}})
	blind := newTransport(t, sdk.TransportConfig{Local: []string{a.users()}})
	for i := range 100 {
		key := fmt.Sprintf("user-%d", i)
		place, err := v.Place("users", key)
		if err != nil || place.Bucket != bucketOf(key) || place.Epoch != 1 || place.Moving {
			t.Fatalf("%s: %+v, %v", key, place, err)
		}
		for _, c := range []struct {
			how     string
			tr      *sdk.Transport
			gateway string
		}{{"directly", tr, string(place.Owner) + "/g1"}, {"without an address of b", near, "a/g1"}, {"without a view", blind, "a/g1"}} {
			got := ask(t, c.tr, request(t, "POST", "/users", key, strings.NewReader("x")))
			if got.status != 200 || got.header.Get("Atoll-Site") != string(place.Owner) || got.header.Get("Atoll-Gateway") != c.gateway || got.body != string(place.Owner)+" POST x" {
				t.Fatalf("%s, %s: %d %q by %s through %s, want %s", key, c.how, got.status, got.body, got.header.Get("Atoll-Site"), got.header.Get("Atoll-Gateway"), c.gateway)
			}
		}
	}
	for path, gateway := range map[string]string{"/users/" + keyIn(15): "b/g1", "/catalog": "a/g1", "/": "a/g1"} {
		if got := ask(t, tr, request(t, "GET", path, "", nil)); got.status != 200 || got.header.Get("Atoll-Gateway") != gateway {
			t.Errorf("%s: %d through %s, want %s", path, got.status, got.header.Get("Atoll-Gateway"), gateway)
		}
	}
	// What the routes refuse, the gateway refuses, in its own words; nothing is sent again.
	for path, reason := range map[string]string{"/users": "no-key", "/users/../x": "bad-path"} {
		got := ask(t, tr, request(t, "GET", path, "", nil))
		if got.status != 400 || got.header.Get("Atoll-Reason") != reason {
			t.Errorf("%s: %d %s", path, got.status, got.header.Get("Atoll-Reason"))
		}
	}
}

func TestTransport_AReadFromTheCopyStaysHere(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo)
	publish(half(), a, b)
	a.agent.stands.Store(&api.Seen{Epoch: 1, Site: "b", Position: 0x70})
	b.agent.stands.Store(&api.Seen{Epoch: 1, Site: "b", Position: 0x90})
	tr := newTransport(t, sdk.TransportConfig{View: viewAt(t, a), Local: []string{a.users()}, Remote: map[topo.SiteID][]string{"b": {b.users()}}})
	if got := ask(t, tr, request(t, "GET", "/near", keyIn(9), nil)); got.header.Get("Atoll-Site") != "a" {
		t.Errorf("answered by %s", got.header.Get("Atoll-Site"))
	}
	// A session: what was written at b is remembered, and the next request brings it along.
	s := &sdk.Session{}
	in := func(method string) answer {
		req := request(t, method, "/near", keyIn(9), nil)
		return ask(t, tr, req.WithContext(sdk.WithSession(req.Context(), s)))
	}
	if got := in("POST"); got.header.Get("Atoll-Gateway") != "b/g1" {
		t.Fatalf("written through %s", got.header.Get("Atoll-Gateway"))
	}
	if got := s.Token(); got != "1~users.9.1.b.90" {
		t.Fatalf("token %q", got)
	}
	a.agent.stands.Store(&api.Seen{Epoch: 1, Site: "b", Position: 0x80}) // behind what was written
	if got := in("GET"); got.header.Get("Atoll-Site") != "b" {
		t.Errorf("a session that has seen more than this site has was answered by %s", got.header.Get("Atoll-Site"))
	}
	if got := sdk.NewSession(s.Token()).Token(); got != "1~users.9.1.b.90" {
		t.Errorf("token %q", got)
	}
}

// Writes go on while their bucket moves there and back, each carried out once.
func TestTransport_ThroughSwitches(t *testing.T) {
	t.Parallel()
	var done sync.Map
	a, b := pair(t, func(id topo.SiteID) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if _, twice := done.LoadOrStore(r.Header.Get("X-Number"), id); twice {
				t.Errorf("%s came twice", r.Header.Get("X-Number"))
			}
		})
	})
	o := half()
	publish(o, a, b)
	tr := newTransport(t, sdk.TransportConfig{View: viewAt(t, a), Local: []string{a.users()}, Remote: map[topo.SiteID][]string{"b": {b.users()}}})
	var sent atomic.Int64
	writers, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for n := 0; writers.Err() == nil; n++ {
				req := request(t, "POST", "/users", keyIn(topo.BucketID(w)), strings.NewReader("x"))
				req.Header.Set("X-Number", fmt.Sprintf("%d-%d", w, n))
				if got := ask(t, tr, req); got.status != 200 {
					t.Errorf("%d %s", got.status, got.body)
				}
				sent.Add(1)
			}
		})
	}
	to := topo.SiteID("b")
	for n := range 10 {
		seen := sent.Load()
		eventually(t, "writes between switches", func() bool { return sent.Load() > seen+20 })
		id := topo.HandoverID(fmt.Sprintf("h%d", n))
		o = must(o.StartMove("users", topo.Spans{{First: 0, Last: 3}}, id, to))
		publish(o, a, b)
		o = must(o.CommitMove("users", topo.Spans{{First: 0, Last: 3}}, id))
		if n%2 == 0 { // now one site hears of it first, now the other
			publish(o, b, a)
			to = "a"
		} else {
			publish(o, a, b)
			to = "b"
		}
	}
	stop()
	wg.Wait()
}

// gatewayThat answers as a gateway would, one answer after another; the last one stays.
func gatewayThat(t *testing.T, answers ...http.HandlerFunc) (url string, asked *atomic.Int64) {
	t.Helper()
	asked = new(atomic.Int64)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		answers[min(int(n), len(answers))-1](w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL, asked
}

func refuses(status int, reason string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Atoll-Reason", reason)
		w.WriteHeader(status)
	}
}

func takes(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	_, _ = fmt.Fprintf(w, "took %s", text)
}

func breaks(w http.ResponseWriter, r *http.Request) {
	_, _ = io.Copy(io.Discard, r.Body)
	panic(http.ErrAbortHandler)
}

// onlyOnce is a body without GetBody, that knows how often it was closed.
type onlyOnce struct {
	io.Reader
	closed atomic.Int64
}

func (o *onlyOnce) Close() error { o.closed.Add(1); return nil }

func TestTransport_SendsAgainOnlyWhatWasNotExecuted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		answers []http.HandlerFunc
		bare    bool // the body cannot be had again
		status  int
		asked   int64
	}{
		{"a lease that comes back", []http.HandlerFunc{refuses(503, "lease"), takes}, false, 200, 2},
		{"misdirected", []http.HandlerFunc{refuses(421, "not-owner"), takes}, false, 200, 2},
		{"fenced", []http.HandlerFunc{refuses(503, "fenced"), refuses(503, "fenced"), takes}, false, 200, 3},
		{"an application that starts", []http.HandlerFunc{refuses(502, "upstream-unreachable"), takes}, false, 200, 2},
		{"refused for good", []http.HandlerFunc{refuses(503, "no-view")}, false, 503, 3},
		{"held for long enough", []http.HandlerFunc{refuses(503, "hold-timeout"), takes}, false, 503, 1},
		{"outcome unknown", []http.HandlerFunc{refuses(502, "upstream-lost"), takes}, false, 502, 1},
		{"a reason of a newer gateway", []http.HandlerFunc{refuses(503, "full-moon"), takes}, false, 503, 1},
		{"the application's own 503", []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, takes}, false, 503, 1},
		{"a body that is gone", []http.HandlerFunc{refuses(503, "lease"), takes}, true, 503, 1},
		{"a broken connection", []http.HandlerFunc{breaks, takes}, false, 0, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			url, asked := gatewayThat(t, c.answers...)
			tr := newTransport(t, sdk.TransportConfig{Local: []string{url}})
			req := request(t, "POST", "/", "", strings.NewReader("it"))
			req.Header.Set("Idempotency-Key", "17") // with which net/http would send it again on its own
			body := &onlyOnce{Reader: strings.NewReader("it")}
			if c.bare {
				req.Body, req.GetBody = body, nil
			}
			resp, err := tr.RoundTrip(req)
			if c.status == 0 {
				if err == nil || sdk.NotSent(err) {
					t.Errorf("error %v, not sent %v", err, sdk.NotSent(err))
				}
			} else if err != nil {
				t.Fatal(err)
			} else {
				text, _ := io.ReadAll(resp.Body)
				resp.Body.Close()
				if resp.StatusCode != c.status || c.status == 200 && string(text) != "took it" {
					t.Errorf("%d %q", resp.StatusCode, text)
				}
			}
			if asked.Load() != c.asked {
				t.Errorf("sent %d times, want %d", asked.Load(), c.asked)
			}
			if c.bare {
				eventually(t, "the body is closed", func() bool { return body.closed.Load() == 1 })
			}
		})
	}
}

// A gateway that cannot be reached is passed over, whatever the body: nothing of it was read.
func TestTransport_PassesOverWhatCannotBeReached(t *testing.T) {
	t.Parallel()
	gone, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	url, asked := gatewayThat(t, takes)
	tr := newTransport(t, sdk.TransportConfig{Local: []string{"http://" + gone, url}})
	for n := range 6 {
		body := &onlyOnce{Reader: strings.NewReader("it")}
		if got := ask(t, tr, request(t, "POST", "/", "", body)); got.body != "took it" {
			t.Errorf("%d: %d %q", n, got.status, got.body)
		}
		eventually(t, "the body is closed", func() bool { return body.closed.Load() == 1 })
	}
	if asked.Load() != 6 {
		t.Errorf("asked %d times", asked.Load())
	}
	none := newTransport(t, sdk.TransportConfig{Local: []string{"http://" + gone}})
	body := &onlyOnce{Reader: strings.NewReader("it")}
	if _, err := none.RoundTrip(request(t, "POST", "/", "", body)); !sdk.NotSent(err) || body.closed.Load() != 1 {
		t.Errorf("error %v, body closed %d times", err, body.closed.Load())
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("the user left"))
	if _, err := none.RoundTrip(request(t, "POST", "/", "", nil).WithContext(ctx)); !sdk.NotSent(err) || !errors.Is(err, context.Canceled) && !strings.Contains(err.Error(), "the user left") {
		t.Errorf("error %v", err)
	}
}

func TestTransport_RefusesWhatIsNoAddress(t *testing.T) {
	t.Parallel()
	for _, conf := range []sdk.TransportConfig{
		{}, {Local: []string{"127.0.0.1:8080"}}, {Local: []string{"http://h/path"}}, {Local: []string{"ftp://h"}},
		{Local: []string{"http://h"}, Remote: map[topo.SiteID][]string{"b": nil}},
		{Local: []string{"http://h"}, Remote: map[topo.SiteID][]string{"b": {"h"}}},
	} {
		if _, err := sdk.NewTransport(conf); err == nil {
			t.Errorf("%+v: no error", conf)
		}
	}
}
