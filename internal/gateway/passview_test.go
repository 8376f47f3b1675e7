package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// listenTo opens the stream that a gateway passes on to applications; next returns its lines, end reads on to the end.
func listenTo(t *testing.T, s *site) (next func() api.ViewUpdate, end func()) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.gw.AdminAddr()+"/v1/view", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := newClient(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxLine)
	next = func() api.ViewUpdate {
		t.Helper()
		var u api.ViewUpdate
		if !lines.Scan() {
			t.Fatalf("the stream ended: %v", lines.Err())
		}
		if err := json.Unmarshal(lines.Bytes(), &u); err != nil {
			t.Fatal(err)
		}
		return u
	}
	return next, func() {
		for lines.Scan() {
		}
	}
}

func TestApplicationsAreToldTheView(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", echo("a"))
	s.start(t, s.config())
	next, _ := listenTo(t, s)
	first := next()
	if w := first.Gateway; first.Format != api.ViewFormat || first.Ownership != nil || w == nil || w.Site != "a" || w.Name != "g1" || w.AgeMS >= 0 || w.LeaseMS > 0 {
		t.Fatalf("before the first view: %+v, %+v", first, first.Gateway)
	}
	if tab := first.Gateway.Table; tab == nil || len(tab.Routes) != len(testRoutes) || tab.Keyspaces["users"].Buckets != userBuckets {
		t.Fatalf("table %+v", first.Gateway.Table)
	}
	until := func(what string, ok func(api.ViewUpdate) bool) {
		t.Helper()
		for range 1000 {
			if u := next(); u.Gateway.Table != nil {
				t.Fatal("the table came twice")
			} else if ok(u) {
				return
			}
		}
		t.Fatalf("not among a thousand lines: %s", what)
	}
	o := half()
	has := func(version uint64) func(api.ViewUpdate) bool {
		return func(u api.ViewUpdate) bool {
			if u.Ownership == nil {
				return false
			}
			got, err := topo.DecodeOwnership(u.Ownership)
			return err == nil && got.Version == version
		}
	}
	publish(o, 1, s)
	until("the view", has(1))
	until("a lease and a fresh view", func(u api.ViewUpdate) bool {
		return u.Gateway.LeaseMS > 50_000 && u.Gateway.AgeMS >= 0 && u.OpenedVersion == 1
	})
	moving := change(o.StartMove("users", topo.SpansOf(0), "h1", "b"))
	s.agent.know(moving) // the lease is given under a document that this gateway has not seen
	until("a lease that says nothing about this view", func(u api.ViewUpdate) bool { return u.Gateway.LeaseMS <= 0 && u.Ownership == nil })
	publish(moving, 1, s)
	until("the newer view", has(2))
	until("the lease again", func(u api.ViewUpdate) bool { return u.Gateway.LeaseMS > 0 })
}

// A stream of an application does not put the stop of a gateway off.
func TestAStreamEndsWithItsGateway(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", echo("a"))
	conf := s.config()
	conf.Grace = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	gw, err := New(conf)
	if err != nil {
		t.Fatal(err)
	}
	s.gw = gw
	done := make(chan error, 1)
	go func() { done <- gw.Run(ctx) }()
	next, end := listenTo(t, s)
	next()
	cancel()
	end()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
