package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/control"
	"github.com/atollhq/atoll/internal/discover"
	"github.com/atollhq/atoll/internal/gateway"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/registry"
	"github.com/atollhq/atoll/sdk"
)

// noSite stands for the part of a site that nobody asks for here.
type noSite struct{ control.Site }

// registering is the API of one of site a's agents, with the registry and the certificates of a real one. It can be started again.
type registering struct {
	addr string
	runs int
	stop func()
}

func newRegistering(t testing.TB) *registering {
	t.Helper()
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return &registering{addr: addr}
}

// start begins a run, which knows nobody.
func (r *registering) start(t testing.TB) {
	t.Helper()
	r.runs++
	server := control.NewServer(control.ServerConfig{Site: "a", Identity: identities["a"], Local: noSite{}, Logger: slog.New(slog.DiscardHandler),
		Instances: registry.New("a", fmt.Sprintf("%s-%d", r.addr, r.runs), map[string]time.Duration{"app": 3 * time.Second})})
	ln, err := net.Listen("tcp", r.addr)
	if err != nil {
		t.Fatal(err)
	}
	r.stop = running(t, "agent", func(ctx context.Context) error { return server.Serve(ctx, ln) })
}

// application is a server that answers with its name.
func application(t testing.TB, name string) (address string) {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

func registrar(t testing.TB, address string, agents ...*registering) *sdk.Registrar {
	t.Helper()
	conf := sdk.RegistrarConfig{Site: "a", PKI: pkiDir, Service: "app", Address: address}
	for _, a := range agents {
		conf.Agents = append(conf.Agents, a.addr)
	}
	r, err := sdk.NewRegistrar(conf)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// registeredSite is a gateway of site a that finds its application's instances at the agents.
func registeredSite(t testing.TB, agents ...*registering) (answers func(n int) []string) {
	t.Helper()
	view := newTestAgent(t)
	view.hub.Publish(half())
	view.hub.SetOpened(half().Version)
	var addrs []string
	for _, a := range agents {
		addrs = append(addrs, a.addr)
	}
	client := api.NewSiteClient(addrs, identities["a"].ClientTLS("a"), nil)
	t.Cleanup(client.Close)
	find := discover.Registered{Service: "app", Ask: client.Instances, KeepIn: filepath.Join(t.TempDir(), "instances"), Log: slog.New(slog.DiscardHandler)}.Find
	gw, err := gateway.New(gateway.Config{
		Site: "a", Name: "g1", Listen: gateway.Listen{Users: "127.0.0.1:0"}, Routes: testRoutes, Keyspaces: testSpaces,
		Upstreams: map[string]gateway.Upstream{"app": {URL: "http://app.test", Sources: []gateway.Source{find}}},
		Agents:    []gateway.Agent{{Site: "a", URL: view.URL}},
	})
	if err != nil {
		t.Fatal(err)
	}
	running(t, "gateway", gw.Run)
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return func(n int) []string { // who answered to n requests; "503" and such, where the gateway did
		var who []string
		for range n {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+gw.UserAddr()+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			got := ask(t, transport, req)
			if got.status != http.StatusOK {
				got.body = fmt.Sprint(got.status)
			}
			who = append(who, got.body)
		}
		slices.Sort(who)
		return slices.Compact(who)
	}
}

// The whole way: instances register, requests reach them; the agents restart, one after the other and both at once, and no request
// fails; an instance leaves, and gets none any more; when all have left, the gateway says so.
func TestInstancesRegisterThemselves(t *testing.T) {
	t.Parallel()
	first, second := newRegistering(t), newRegistering(t)
	first.start(t)
	second.start(t)
	answers := registeredSite(t, first, second)
	if got := answers(1); !slices.Equal(got, []string{"503"}) {
		t.Fatalf("%v answered, and nobody is there", got)
	}
	leave := map[string]func(){}
	for _, name := range []string{"one", "two"} {
		leave[name] = running(t, "registrar "+name, registrar(t, application(t, name), first, second).Run)
	}
	both := func() bool { return slices.Equal(answers(30), []string{"one", "two"}) }
	eventually(t, "both are asked", both)

	for _, restart := range [][]*registering{{first}, {second}, {first, second}} {
		for _, a := range restart {
			a.stop()
		}
		if !both() {
			t.Error("an agent that is away takes instances away")
		}
		for _, a := range restart {
			a.start(t)
		}
		client := api.NewClient(restart[0].addr, identities["a"].ClientTLS("a"), nil)
		eventually(t, "they have come back, and the agent knows all", func() bool {
			if !both() {
				t.Fatal("an agent that is new takes instances away")
			}
			list, err := client.Instances(t.Context(), "app", "", 0)
			return err == nil && list.Complete && len(list.Instances) == 2
		})
		client.Close()
		if !both() {
			t.Error("not both are asked any more")
		}
	}

	leave["one"]()
	eventually(t, "one has left", func() bool { return slices.Equal(answers(30), []string{"two"}) })
	leave["two"]()
	eventually(t, "all have left", func() bool { return slices.Equal(answers(3), []string{"503"}) })
}

// An instance that ends without a word gets nothing more when its time is over, as long as another one is heard.
func TestInstanceEndsWithoutAWord(t *testing.T) {
	t.Parallel()
	agent := newRegistering(t)
	agent.start(t)
	answers := registeredSite(t, agent)
	running(t, "registrar", registrar(t, application(t, "one"), agent).Run)
	id, err := pki.Load(pkiDir, "service-app")
	if err != nil {
		t.Fatal(err)
	}
	client := api.NewClient(agent.addr, id.ClientTLS("a"), nil)
	defer client.Close()
	two := api.Instance{Address: application(t, "two")}
	if _, err := client.Register(t.Context(), api.RegisterRequest{Service: "app", Instance: two}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are asked", func() bool { return slices.Equal(answers(30), []string{"one", "two"}) })
	eventually(t, "one of them is", func() bool { return slices.Equal(answers(30), []string{"one"}) })
}

// Only a service's own certificate registers it, and only at an agent of its site; the error says which.
func TestRegistrarIsRefused(t *testing.T) {
	t.Parallel()
	agent := newRegistering(t)
	agent.start(t)
	good := sdk.RegistrarConfig{Site: "a", PKI: pkiDir, Service: "app", Address: "h:1", Agents: []string{agent.addr}}
	for name, c := range map[string]struct {
		edit func(*sdk.RegistrarConfig)
		want string
	}{
		"no such certificate": {func(c *sdk.RegistrarConfig) { c.Service = "third" }, "run `atoll ca issue service third`"},
		"no agent":            {func(c *sdk.RegistrarConfig) { c.Agents = nil }, "no agent to register at"},
		"agent's address":     {func(c *sdk.RegistrarConfig) { c.Agents = []string{"https://h:1"} }, "agent: address"},
		"address":             {func(c *sdk.RegistrarConfig) { c.Address = ":9000" }, "instance of service app: address"},
		"zone":                {func(c *sdk.RegistrarConfig) { c.Zone = "Z" }, "zone"},
		"TTL":                 {func(c *sdk.RegistrarConfig) { c.TTL = -time.Second }, "TTL -1s"},
		"site":                {func(c *sdk.RegistrarConfig) { c.Site = "" }, "site"},
	} {
		conf := good
		c.edit(&conf)
		if _, err := sdk.NewRegistrar(conf); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
	}
	for name, c := range map[string]struct {
		edit func(*sdk.RegistrarConfig)
		want string
	}{
		"another site's agent":   {func(c *sdk.RegistrarConfig) { c.Site = "b" }, "the server is site a; want site b"},
		"not of the spec":        {func(c *sdk.RegistrarConfig) { c.Service = "other" }, "do not register themselves at site a"},
		"longer than is allowed": {func(c *sdk.RegistrarConfig) { c.TTL = time.Minute }, "ttl_ms 60000"},
	} {
		conf := good
		c.edit(&conf)
		said := &said{}
		conf.Log = slog.New(slog.NewTextHandler(said, nil))
		r, err := sdk.NewRegistrar(conf)
		if err != nil {
			t.Fatal(err)
		}
		stop := running(t, "registrar", r.Run)
		eventually(t, name+": it says why", func() bool { return said.contains(c.want) })
		stop()
	}
	client := api.NewClient(agent.addr, identities["a"].ClientTLS("a"), nil)
	defer client.Close()
	var refused *api.Error
	if _, err := client.Register(t.Context(), api.RegisterRequest{Service: "app", Instance: api.Instance{Address: "h:1"}}); !errors.As(err, &refused) || refused.Code != api.CodeForbidden {
		t.Errorf("a site's certificate registers: %v", err)
	}
}

// said is a log that can be searched.
type said struct {
	mu   sync.Mutex
	text []byte
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	return len(p), nil
}

func (s *said) contains(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(string(s.text), text)
}
