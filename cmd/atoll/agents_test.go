package main

import (
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// agents are a place whose sites' agents answer as a test wants, over real mutual TLS.
type agents struct {
	*place
	t    *testing.T
	spec *spec.Spec
}

func newAgents(t *testing.T) *agents {
	t.Helper()
	a := &agents{place: newPlace(t), t: t}
	if out, err := run(t, "ca", "issue", "site", "b", "-f", a.file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var err error
	if a.spec, err = spec.Load(a.file); err != nil {
		t.Fatal(err)
	}
	return a
}

// answer starts the agent of a site. Paths are as in http.ServeMux; a status is always there.
func (a *agents) answer(site topo.SiteID, paths map[string]any) {
	a.t.Helper()
	id, err := pki.Load(a.spec.PKI, "site-"+string(site))
	if err != nil {
		a.t.Fatal(err)
	}
	mux := http.NewServeMux()
	if paths["GET /v1/status"] == nil {
		mux.HandleFunc("GET /v1/status", a.reply(someStatus(site)))
	}
	for path, body := range paths {
		if h, ok := body.(http.HandlerFunc); ok {
			mux.HandleFunc(path, h)
			continue
		}
		mux.HandleFunc(path, a.reply(body))
	}
	ln, err := net.Listen("tcp", a.spec.Sites[site].Agent.API)
	if err != nil {
		a.t.Fatal(err)
	}
	srv := &http.Server{Handler: mux, TLSConfig: id.ServerTLS(nil), ReadHeaderTimeout: 5 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.ServeTLS(ln, "", "") }()
	a.t.Cleanup(func() { _ = srv.Close(); <-ended })
}

func (a *agents) reply(body any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		if e, bad := body.(*api.Error); bad {
			w.WriteHeader(e.Status)
		}
		_ = json.NewEncoder(w).Encode(body)
	}
}

func (a *agents) run(args ...string) (string, error) {
	a.t.Helper()
	return run(a.t, append(args, "-f", a.file)...)
}

func wantText(t *testing.T, out string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(out, w) {
			t.Errorf("want %q in:\n%s", w, out)
		}
	}
}

func someStatus(site topo.SiteID) api.Status {
	return api.Status{Deployment: "tickets", Site: site, At: time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC), Problems: []string{"site a: it is lost\x1b[31m"},
		Ownership: &api.OwnershipStatus{Generation: 1, Version: 7, Keyspaces: []api.KeyspaceStatus{{Keyspace: "users", Buckets: 1024, Owners: []api.OwnerStatus{{Site: "b", Count: 1024, Buckets: "0-1023", MinEpoch: 2, MaxEpoch: 2}}}},
			Unsettled: []api.UnsettledStatus{{Handover: "f1", Site: "a", Owner: "b", Buckets: 1024, Position: 0x16B3748}}},
		Sites: []api.SiteStatus{{Site: site, Lease: api.LeaseStatus{Live: true, RemainingMS: 2000}, Database: api.DatabaseStatus{Connected: true},
			Links: []api.LinkStatus{{Origin: "a", Target: site, State: "retrying", LagMS: -1, Halted: "f1"}}}},
		Handovers: []api.Handover{aFailover(), {ID: "s1", Kind: "switch", Keyspace: "users", Buckets: "0-511", Count: 512, From: "a", To: "b", Phase: "DONE", Outcome: "done", Pause: &api.Pause{HoldMS: 180, ClosedMS: 80}}}}
}

func aFailover() api.Handover {
	return api.Handover{ID: "f1", Kind: "failover", From: "a", To: "b", Who: "operator kim", Phase: "DONE", Outcome: "done", Failover: &api.Failover{
		Taken:    []topo.Taken{{Keyspace: "catalog", Buckets: []topo.EpochSpan{{First: 0, Last: 0, Epoch: 1}}}, {Keyspace: "users", Buckets: []topo.EpochSpan{{First: 0, Last: 99, Epoch: 1}, {First: 512, Last: 1023, Epoch: 3}}}},
		Position: 0x16B3748, ExpiredMS: 3030, WaitedMS: 4055, OpenMS: 4211, LossMS: 310, Override: []string{"max-loss"}}}
}

func TestStatusText(t *testing.T) {
	t.Parallel()
	a := newAgents(t)
	a.answer("b", nil)
	out, err := a.run("status")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantText(t, out, "! site a: it is lost\ufffd[31m", "LOST", "0/16B3748", "halted for f1", "1 of catalog, 612 of users", "a → b", "open after 4.2 s", "by an operator; estimated loss 310 ms", "held 180 ms")
	_, err = a.run("status", "--check")
	if wantError(t, err, "1 problem(s)"); exitStatus(err) != 2 {
		t.Errorf("--check ends with %d", exitStatus(err))
	}
	_, err = a.run("status", "--check", "--watch")
	if wantError(t, err, "without it"); exitStatus(err) != 1 {
		t.Errorf("a wrong command line ends with %d", exitStatus(err))
	}
	_, err = a.run("status", "--watch", "--every", "1ms")
	wantError(t, err, "--every 1ms", "at least 100ms")
}

// TestWatchGoesOn: what a watch shows is one document after the other, and an agent that goes away does not end it.
func TestWatchGoesOn(t *testing.T) {
	t.Parallel()
	a := newAgents(t)
	asked := 0
	stop := make(chan struct{})
	a.answer("b", map[string]any{"GET /v1/status": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked++; asked == 3 {
			a.reply(&api.Error{Status: 503, Code: api.CodeUnavailable, Message: "not now"})(w, r)
			return
		}
		if asked == 8 {
			close(stop)
		}
		a.reply(someStatus("b"))(w, r)
	})})
	for _, c := range []struct {
		args []string
		want []string
	}{{[]string{"--json"}, []string{`{"deployment":"tickets"`, `{"error":"`}}} {
		read, write := io.Pipe()
		root := newRoot()
		root.SetOut(write)
		root.SetArgs(append([]string{"status", "--watch", "--every", "100ms", "-f", a.file}, c.args...))
		ctx, cancel := contextUntil(t, stop)
		ended := make(chan error, 1)
		go func() {
			ended <- root.ExecuteContext(ctx)
			_ = write.Close()
		}()
		data, err := io.ReadAll(read)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		if err != nil {
			t.Fatal(err)
		}
		wantText(t, string(data), c.want...)
		for line := range strings.Lines(string(data)) {
			var doc map[string]any
			if err := json.Unmarshal([]byte(line), &doc); err != nil {
				t.Errorf("line %q: %v", line, err)
			}
		}
	}
}
