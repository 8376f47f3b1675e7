package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// loneSite is the site of a gateway that is measured alone.
const loneSite = topo.SiteID("a")

// loneGateway is a gateway in a process of its own, without a database and a store: an agent that says what the bench wants it
// to say stands in for the rest of the site.
type loneGateway struct {
	users, admin string // addresses
	processes    *Processes
	agent        *scriptedAgent
	dir          string
}

// scriptedAgent streams the views that it is given, and grants a lease.
type scriptedAgent struct {
	server *http.Server
	mu     struct {
		sync.Mutex
		line    []byte
		version viewNumber
		changed chan struct{}
	}
}

type viewNumber struct{ generation, version uint64 }

// startLoneGateway starts the binary with a spec of one site, which shape completes, and waits until it can route.
func startLoneGateway(ctx context.Context, atoll string, shape func(*spec.Spec)) (_ *loneGateway, err error) {
	dir, err := os.MkdirTemp("", "atoll-lone-gateway")
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	g := &loneGateway{dir: dir, processes: NewProcesses(dir, nil)}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.close())
		}
	}()
	if err := errors.Join(pki.Init(filepath.Join(dir, "pki"), "bench"), pki.Issue(filepath.Join(dir, "pki"), pki.Role{Kind: pki.Site, Name: string(loneSite)})); err != nil {
		return g, err
	}
	s, err := g.spec(shape)
	if err != nil {
		return g, err
	}
	id, err := pki.Load(s.PKI, "site-"+string(loneSite))
	if err != nil {
		return g, err
	}
	if g.agent, err = newScriptedAgent(s.Sites[loneSite].Agent.API, id); err != nil {
		return g, err
	}
	g.agent.publish(s.FirstOwnership(), true)
	err = g.processes.Start(Command{Name: "gateway", Path: atoll, Args: []string{"gateway", "-f", filepath.Join(dir, "atoll.yaml"), "--site", string(loneSite), "--name", "g1"}})
	if err != nil {
		return g, err
	}
	patience, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if status, err := http.Get("http://" + g.admin + "/healthz"); err == nil {
			_ = status.Body.Close()
			if status.StatusCode == http.StatusOK {
				return g, nil
			}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-patience.Done():
		}
		if patience.Err() != nil || !g.processes.Running("gateway") {
			log, _ := os.ReadFile(g.processes.LogFile("gateway"))
			return g, fmt.Errorf("lab: the gateway did not start: %s", log)
		}
	}
}

func (g *loneGateway) spec(shape func(*spec.Spec)) (*spec.Spec, error) {
	var addrs [7]string
	for i := range addrs {
		addr, err := loopback.Addr()
		if err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		addrs[i] = addr
	}
	g.users, g.admin = addrs[4], addrs[6]
	s := &spec.Spec{Version: spec.Version, Deployment: "bench", Seed: loneSite,
		Sites: map[topo.SiteID]*spec.Site{loneSite: {
			Store:    &spec.StoreAddr{Client: addrs[0], Peer: addrs[1]},
			Agent:    &spec.AgentAddr{API: addrs[2], Link: addrs[3]},
			Gateways: map[string]*spec.Gateway{"g1": {Listen: g.users, Peer: addrs[5], Admin: g.admin}},
			Database: &spec.Database{DSNEnv: "ATOLL_DSN"}, // nobody connects
		}},
	}
	shape(s)
	return writeSpec(filepath.Join(g.dir, "atoll.yaml"), s)
}

func (g *loneGateway) close() error {
	err := g.processes.Close()
	if g.agent != nil {
		_ = g.agent.server.Close()
	}
	return errors.Join(err, os.RemoveAll(g.dir))
}

// rssMiB is what the gateway has in memory.
func (g *loneGateway) rssMiB() float64 {
	proc, err := g.processes.find("gateway", false)
	if err != nil {
		return 0
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", proc.child.Process.Pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib float64
		if _, err := fmt.Sscanf(s.Text(), "VmRSS: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	return 0
}

// metric reads one of the gateway's figures, by its name and labels as they are printed.
func (g *loneGateway) metric(name string) float64 {
	resp, err := http.Get("http://" + g.admin + "/metrics")
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	for s := bufio.NewScanner(resp.Body); s.Scan(); {
		if text, found := strings.CutPrefix(s.Text(), name+" "); found {
			var v float64
			_, _ = fmt.Sscan(text, &v)
			return v
		}
	}
	return 0
}

func newScriptedAgent(addr string, id *pki.Identity) (*scriptedAgent, error) {
	a := &scriptedAgent{}
	a.mu.changed = make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/view", a.stream)
	mux.HandleFunc("POST /v1/view/ack", a.ack)
	a.server = &http.Server{Handler: mux, TLSConfig: id.ServerTLS(nil), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	go func() { _ = a.server.ServeTLS(ln, "", "") }() // ends with Close
	return a, nil
}

// publish streams an ownership document; opened: the site's fence is open for it.
func (a *scriptedAgent) publish(o topo.Ownership, opened bool) {
	u := api.ViewUpdate{Format: api.ViewFormat, Ownership: o.Encode()}
	if opened {
		u.OpenedVersion = o.Version
	}
	line, err := json.Marshal(u)
	if err != nil {
		panic("BUG: a view does not marshal: " + err.Error())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.line, a.mu.version = append(line, '\n'), viewNumber{o.Generation, o.Version}
	close(a.mu.changed)
	a.mu.changed = make(chan struct{})
}

func (a *scriptedAgent) stream(w http.ResponseWriter, r *http.Request) {
	alive := time.NewTicker(time.Second)
	defer alive.Stop()
	for {
		a.mu.Lock()
		line, changed := a.mu.line, a.mu.changed
		a.mu.Unlock()
		if _, err := w.Write(line); err != nil || http.NewResponseController(w).Flush() != nil {
			return
		}
		select {
		case <-changed:
		case <-alive.C:
		case <-r.Context().Done():
			return
		}
	}
}

func (a *scriptedAgent) ack(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	v := a.mu.version
	a.mu.Unlock()
	_ = json.NewEncoder(w).Encode(api.LeaseState{RemainingMS: 60_000, Generation: v.generation, Version: v.version})
}
