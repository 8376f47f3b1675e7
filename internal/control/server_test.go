package control

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/registry"
	"github.com/atollhq/atoll/topo"
)

// served is an API on loopback with real certificates, in front of a world in memory.
type served struct {
	t    *testing.T
	w    *memWorld
	hub  *Hub
	dir  string
	addr string
}

func serve(t *testing.T) *served {
	t.Helper()
	s := &served{t: t, w: newMemWorld(t), hub: NewHub(), dir: t.TempDir()}
	if err := pki.Init(s.dir, "shop"); err != nil {
		t.Fatal(err)
	}
	for _, r := range []pki.Role{{Kind: pki.Site, Name: "a"}, {Kind: pki.Site, Name: "b"}, {Kind: pki.Operator, Name: "ann"}, {Kind: pki.Service, Name: "shop"}, {Kind: pki.Service, Name: "basket"}} {
		if err := pki.Issue(s.dir, r); err != nil {
			t.Fatal(err)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	c := s.w.controller("a")
	c.cfg.Survivor = &memSurvivor{}
	deadline := time.Now().Add(5 * time.Second)
	server := NewServer(ServerConfig{Site: "a", Identity: s.identity("site-a"), Controller: c, Hub: s.hub, Local: s.w.sites["a"],
		Status:   func(context.Context, bool) api.Status { return api.Status{Deployment: "shop", Site: "a"} },
		Health:   func(context.Context) api.Health { return api.Health{Site: "a"} },
		Deadline: func() (time.Time, bool) { return deadline, true }, Conflicts: memConflicts{}, Page: http.HandlerFunc(somePage), Instances: registry.New("a", "one", map[string]time.Duration{"shop": 30 * time.Second, "basket": time.Minute}), Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- server.Serve(ctx, ln) }()
	go func() { ended <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		}
	})
	return s
}

func (s *served) identity(name string) *pki.Identity {
	s.t.Helper()
	id, err := pki.Load(s.dir, name)
	if err != nil {
		s.t.Fatal(err)
	}
	return id
}

func (s *served) as(name string) *api.Client {
	c := api.NewClient(s.addr, s.identity(name).ClientTLS("a"), nil)
	s.t.Cleanup(c.Close)
	return c
}

// TestRolesAreKept: every path is for somebody; everybody else is told so.
func TestRolesAreKept(t *testing.T) {
	t.Parallel()
	s := serve(t)
	for _, c := range []struct {
		name string
		call func(context.Context, *api.Client) error
		who  string // may
	}{
		{"status", func(ctx context.Context, c *api.Client) error { _, err := c.Status(ctx, true); return err }, "operator-ann site-a site-b"},
		{"health", func(ctx context.Context, c *api.Client) error { _, err := c.Health(ctx); return err }, "operator-ann site-a site-b"},
		{"handovers", func(ctx context.Context, c *api.Client) error { _, err := c.Handovers(ctx, 5); return err }, "operator-ann site-a site-b"},
		{"switch", func(ctx context.Context, c *api.Client) error {
			_, err := c.Switch(ctx, api.SwitchRequest{Keyspace: "users", Buckets: "0", To: "b", DryRun: true})
			return err
		}, "operator-ann"},
		{"failover", func(ctx context.Context, c *api.Client) error {
			_, err := c.Failover(ctx, api.FailoverRequest{Site: "b", To: "a"})
			var coded *api.Error
			if errors.As(err, &coded) && coded.Code == api.CodeRefused {
				return nil // b never had a lease
			}
			return err
		}, "operator-ann"},
		{"explain", func(ctx context.Context, c *api.Client) error { _, err := c.Explain(ctx, "b"); return err }, "operator-ann site-a site-b"},
		{"conflicts", func(ctx context.Context, c *api.Client) error {
			_, err := c.Conflicts(ctx, api.ConflictQuery{})
			return err
		}, "operator-ann"},
		{"conflict", func(ctx context.Context, c *api.Client) error { _, err := c.Conflict(ctx, 1); return err }, "operator-ann"},
		{"ready", func(ctx context.Context, c *api.Client) error { _, err := c.Ready(ctx, api.ReadyRequest{}); return err }, "site-a site-b"},
		{"close", func(ctx context.Context, c *api.Client) error {
			_, err := c.CloseBuckets(ctx, api.CloseRequest{Handover: "h"})
			return err
		}, "site-a site-b"},
		{"ack", func(ctx context.Context, c *api.Client) error {
			_, err := c.Ack(ctx, api.ViewAck{Gateway: "g1"})
			return err
		}, "site-a"},
		{"view", func(ctx context.Context, c *api.Client) error {
			seen := errors.New("a line came")
			if err := c.View(ctx, "g1", func(api.ViewUpdate) error { return seen }); !errors.Is(err, seen) {
				return err
			}
			return nil
		}, "site-a site-b"},
		{"register", func(ctx context.Context, c *api.Client) error {
			_, err := c.Register(ctx, api.RegisterRequest{Service: "shop", Instance: api.Instance{Address: "h:1"}})
			return err
		}, "service-shop"},
		{"leave", func(ctx context.Context, c *api.Client) error {
			_, err := c.Leave(ctx, api.LeaveRequest{Service: "shop", Address: "h:1"})
			return err
		}, "service-shop"},
		{"services", func(ctx context.Context, c *api.Client) error { _, err := c.Services(ctx); return err }, "operator-ann site-a site-b"},
		{"instances", func(ctx context.Context, c *api.Client) error {
			_, err := c.Instances(ctx, "shop", "", 0)
			return err
		}, "site-a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, name := range []string{"operator-ann", "site-a", "site-b", "service-shop", "service-basket"} {
				err := c.call(t.Context(), s.as(name))
				var coded *api.Error
				refused := errors.As(err, &coded) && coded.Code == api.CodeForbidden && coded.Status == 403
				if may := strings.Contains(c.who, name); may && err != nil || !may && !refused {
					t.Errorf("%s: %v; may call: %v", name, err, may)
				}
			}
		})
	}
	t.Run("without a certificate", func(t *testing.T) {
		conf := s.identity("operator-ann").ClientTLS("a")
		conf.GetClientCertificate = nil
		c := api.NewClient(s.addr, conf, nil)
		defer c.Close()
		if _, err := c.Status(t.Context(), true); err == nil {
			t.Error("answered a caller without a certificate")
		}
	})
}

func TestAckIsAnsweredWithTheLease(t *testing.T) {
	t.Parallel()
	s := serve(t)
	state, err := s.as("site-a").Ack(t.Context(), api.ViewAck{Gateway: "g1", Generation: 1, Version: 3})
	if err != nil || state.RemainingMS < 1 || state.RemainingMS > 5000 {
		t.Errorf("lease %+v, %v", state, err)
	}
	if state.Generation != 0 || state.Version != 0 {
		t.Errorf("lease %+v names a document, and there is none", state)
	}
	s.hub.Publish(topo.Ownership{Generation: 1, Version: 7})
	if state, err := s.as("site-a").Ack(t.Context(), api.ViewAck{Gateway: "g1", Generation: 1, Version: 3}); err != nil || state.Generation != 1 || state.Version != 7 {
		t.Errorf("lease %+v, %v; want it to name the newest document", state, err)
	}
	if g := s.hub.Gateways(); len(g) != 1 || g[0].Version != 3 {
		t.Errorf("gateways %+v", g)
	}
}

// TestBadRequests: what cannot be meant is refused with words, and nothing panics.
func TestBadRequests(t *testing.T) {
	t.Parallel()
	s := serve(t)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: s.identity("operator-ann").ClientTLS("a")}}
	defer client.CloseIdleConnections()
	for _, c := range []struct {
		name, method, path, body string
		status                   int
		want                     string
	}{
		{"misspelt dry_run", "POST", "/v1/switches", `{"keyspace":"users","buckets":"0","to":"b","dryrun":true}`, 400, `unknown field \"dryrun\"`},
		{"not JSON", "POST", "/v1/switches", `keyspace: users`, 400, "request body"},
		{"two documents", "POST", "/v1/switches", `{} {}`, 400, "more than one JSON document"},
		{"too large", "POST", "/v1/switches", `{"why":"` + strings.Repeat("x", api.MaxBody) + `"}`, 413, "larger than"},
		{"no such path", "GET", "/v2/status", "", 404, "not part of the API"},
		{"no such handover", "GET", "/v1/handovers/h77", "", 404, "handover h77 does not exist"},
		{"bad wait", "GET", "/v1/handovers/h77?wait=soon", "", 400, "for example 30s"},
		{"bad limit", "GET", "/v1/handovers?limit=0", "", 400, "want a number from 1 on"},
		{"misspelt filter", "GET", "/v1/conflicts?tabel=x", "", 400, `unknown parameter \"tabel\"`},
		{"too many conflicts", "GET", "/v1/conflicts?limit=1001", "", 400, "from 1 to 1000"},
		{"bad page", "GET", "/v1/conflicts?before=-1", "", 400, "want the id of a conflict"},
		{"no number", "GET", "/v1/conflicts/x7", "", 400, "want a number from 1 on"},
		{"no such conflict", "GET", "/v1/conflicts/77", "", 404, "site a has no conflict 77"},
		{"the status page", "GET", "/", "", 200, "a page"},
		{"its events", "GET", "/events", "", 200, "a page"},
	} {
		t.Run(c.name, func(t *testing.T) {
			req, err := http.NewRequestWithContext(t.Context(), c.method, "https://"+s.addr+c.path, strings.NewReader(c.body))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			text := new(strings.Builder)
			if _, err := io.Copy(text, resp.Body); err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != c.status || !strings.Contains(text.String(), c.want) {
				t.Errorf("%d %s; want %d %q", resp.StatusCode, text, c.status, c.want)
			}
		})
	}
}

// TestSwitchOverTheAPI is the whole way of an operator: ask, wait, look.
func TestSwitchOverTheAPI(t *testing.T) {
	t.Parallel()
	s := serve(t)
	ann := s.as("operator-ann")
	a, err := ann.Switch(t.Context(), api.SwitchRequest{Keyspace: "users", Buckets: "0-24", To: "b", Why: "test"})
	if err != nil {
		t.Fatal(err)
	}
	h, err := ann.Handover(t.Context(), a.ID, 30*time.Second)
	if err != nil || h.Outcome != "done" || h.Who != "operator ann" || h.Count != 25 {
		t.Fatalf("handover %+v, %v", h, err)
	}
	list, err := ann.Handovers(t.Context(), 5)
	if err != nil || len(list) != 1 || list[0].ID != a.ID || list[0].Outcome != "done" {
		t.Errorf("handovers %+v, %v", list, err)
	}
	_, err = ann.Switch(t.Context(), api.SwitchRequest{Keyspace: "users", Buckets: "20-30", To: "a"})
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Code != api.CodeRefused || len(refused.Problems) != 1 || refused.Problems[0].Check != "one-owner" {
		t.Errorf("switch of buckets at two owners: %v", err)
	}
}

// TestViewStreamOverTheAPI: documents and opened versions come as they are published.
func TestViewStreamOverTheAPI(t *testing.T) {
	t.Parallel()
	s := serve(t)
	o := firstOwnership()
	s.hub.Publish(o)
	done := errors.New("all came")
	var versions []uint64
	err := s.as("site-a").View(t.Context(), "g1", func(u api.ViewUpdate) error {
		if len(u.Ownership) > 0 {
			got, err := topo.DecodeOwnership(u.Ownership)
			if err != nil {
				return err
			}
			versions = append(versions, got.Version)
			if got.Version == 1 {
				s.hub.Publish(moving(t, o, "h1"))
				s.hub.SetOpened(2)
			}
		}
		if u.OpenedVersion == 2 && len(versions) == 2 {
			return done
		}
		return nil
	})
	if !errors.Is(err, done) {
		t.Errorf("stream ended with %v after %v", err, versions)
	}
}
