package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// An agent in a process of its own, to be killed: the test binary starts itself with these.
const (
	childSpec = "ATOLL_TEST_AGENT_SPEC"
	childDSN  = "ATOLL_TEST_AGENT_DSN"
)

// runChild is the agent of site a.
func runChild() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	s, err := spec.Load(os.Getenv(childSpec))
	if err == nil {
		var id *pki.Identity
		if id, err = pki.Load(s.PKI, "site-a"); err == nil {
			log := slog.New(slog.NewTextHandler(os.Stderr, nil))
			err = Run(ctx, Config{Spec: s, Site: "a", DSN: os.Getenv(childDSN), Identity: id, Log: log})
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// withStandby gives site a a second agent.
func withStandby(w *world) {
	w.t.Helper()
	second := &spec.AgentAddr{API: freeAddr(w.t), Link: freeAddr(w.t)}
	w.spec.Sites["a"].Standby = second
	first := w.spec.Sites["a"].Agent
	was := fmt.Sprintf(`agent: {api: %q, link: %q}`, first.API, first.Link)
	text := strings.Replace(w.text, was, fmt.Sprintf(`%s, standby_agent: {api: %q, link: %q}`, was, second.API, second.Link), 1)
	if text == w.text {
		w.t.Fatalf("%s is not in the spec", was)
	}
	if err := os.WriteFile(filepath.Join(w.dir, "atoll.yaml"), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
	w.people = w.clientAt(first.API, second.API)
}

func (w *world) clientAt(addrs ...string) *api.Client {
	w.t.Helper()
	ann, err := pki.Load(w.spec.PKI, "operator-ann")
	if err != nil {
		w.t.Fatal(err)
	}
	c := api.NewSiteClient(addrs, ann.ClientTLS("a"), nil)
	w.t.Cleanup(c.Close)
	return c
}

// startChild runs a's agent as a process.
func (w *world) startChild() *exec.Cmd {
	w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childSpec+"="+filepath.Join(w.dir, "atoll.yaml"), childDSN+"="+w.sites["a"].agent)
	cmd.Stderr = testWriter{w.t}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
	})
	return cmd
}

// startStandby runs a's second agent in this process.
func (w *world) startStandby() (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended, ready := make(chan error, 1), make(chan struct{})
	log := slog.New(slog.NewTextHandler(testWriter{w.t}, nil))
	go func() {
		ended <- Run(ctx, Config{Spec: w.spec, Site: "a", Standby: true, DSN: w.sites["a"].agent, Identity: w.identity("a"), Log: log,
			Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-ended:
		w.t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			w.t.Errorf("standby agent: %v", err)
		}
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *world) standsBy(c *api.Client) bool {
	st, err := c.Status(w.t.Context(), true)
	return err == nil && st.Sites[0].Standby && st.Sites[0].Keeper != nil && st.Sites[0].Keeper.Doing == "standby" && st.Ownership != nil
}

func (w *world) serves(c *api.Client) bool {
	st, err := c.ActiveStatus(w.t.Context())
	return err == nil && st.Sites[0].Lease.Live && st.Ownership != nil && st.Sites[0].Opened >= st.Ownership.Version
}

// TestStandbyAgentTakesOver: of two agents the standby touches nothing, and takes over when the active one is killed,
// and at once when it ends in good order. Writes, links, switches and gateways go on.
func TestStandbyAgentTakesOver(t *testing.T) {
	w := newWorld(t)
	withStandby(w)
	first, second := w.clientAt(w.spec.Sites["a"].Agent.API), w.clientAt(w.spec.Sites["a"].Standby.API)
	child := w.startChild()
	w.eventually("the first agent serves", func() bool { return w.serves(first) })
	w.start("b")
	stopStandby := w.startStandby()
	w.linked()
	w.eventually("the second agent stands by", func() bool { return w.standsBy(second) })
	keys := w.keysIn(0, 24, 5)
	w.exec(w.sites["a"].app, insert(keys[0], 1))
	w.arrives("b", keys[0], 1)
	w.checkStandby(second)

	if err := errors.Join(child.Process.Kill(), ignoreExit(child.Wait())); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	w.eventually("the second agent serves", func() bool { return w.serves(second) })
	t.Logf("serves %s after the kill of the first", time.Since(killed).Round(time.Millisecond))
	w.exec(w.sites["a"].app, insert(keys[1], 1))
	w.arrives("b", keys[1], 1)
	w.linked()
	w.await(w.people, w.begin("b", "0-24"), "done")
	w.exec(w.sites["b"].app, insert(keys[2], 1))
	w.arrives("a", keys[2], 1)

	w.startChild()
	w.eventually("the first agent is back and stands by", func() bool { return w.standsBy(first) })
	left := time.Now()
	stopStandby()
	w.eventually("the first agent serves again", func() bool { return w.serves(first) })
	if took := time.Since(left); took > 2500*time.Millisecond {
		t.Errorf("an orderly handing over took %s, about the lease of 3 s", took)
	}
	w.linked()
	w.await(w.people, w.begin("a", "0-24"), "done")
	w.exec(w.sites["a"].app, insert(keys[3], 1))
	w.arrives("b", keys[3], 1)
}

func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// checkStandby: it answers, streams the document, and refuses everything else; the fence and the slots know nothing of it.
func (w *world) checkStandby(second *api.Client) {
	t := w.t
	t.Helper()
	before := w.value("a", "SELECT sum(restricts)::int FROM atoll.keyspace")
	if _, err := second.Switch(t.Context(), api.SwitchRequest{Keyspace: "users", Buckets: "3", To: "b", DryRun: true}); err == nil || !strings.Contains(err.Error(), "stands by") {
		t.Errorf("a standby takes a switch: %v", err)
	}
	here := api.NewClient(w.spec.Sites["a"].Standby.API, w.identity("a").ClientTLS("a"), nil)
	defer here.Close()
	if lease, err := here.Ack(t.Context(), api.ViewAck{Gateway: "g9", Generation: 1, Version: 1}); err == nil {
		t.Errorf("a standby answers for the lease: %+v", lease)
	}
	if _, err := here.CloseBuckets(t.Context(), api.CloseRequest{Handover: "x", Keyspace: "users", Buckets: []topo.EpochSpan{{First: 0, Last: 1, Epoch: 1}}, BoundMS: 100}); err == nil {
		t.Error("a standby closes buckets")
	}
	enough := errors.New("enough")
	err := here.View(t.Context(), "g9", func(u api.ViewUpdate) error {
		if !u.Standby || len(u.Ownership) == 0 || u.OpenedVersion != 0 {
			t.Errorf("view line %+v", u)
		}
		return enough
	})
	if !errors.Is(err, enough) {
		t.Errorf("view: %v", err)
	}
	in, err := link.Dial(t.Context(), link.DialConfig{Addr: w.spec.Sites["a"].Standby.Link, TLS: w.identity("b").ClientTLS("a"),
		Hello: link.Hello{Deployment: w.spec.Deployment, Site: "b", Origin: "a", Start: link.StartFresh}})
	if err != nil {
		t.Fatalf("link: %v", err)
	}
	if err := in.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "stands by") {
		t.Errorf("a standby's link says: %v", err)
	}
	if after := w.value("a", "SELECT sum(restricts)::int FROM atoll.keyspace"); after != before {
		t.Errorf("the fence was restricted %d times under a standby", after-before)
	}
	// Both answer the whole deployment's status, with the active agent's word for the site.
	st, err := second.Status(t.Context(), false)
	if err != nil || len(st.Sites) != 2 || st.Sites[0].Standby || !st.Sites[0].Lease.Live || len(st.Problems) > 0 {
		t.Errorf("status by the standby: %+v, %v", st, err)
	}
}
