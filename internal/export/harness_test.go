package export

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/topo"
)

var discard = slog.New(slog.DiscardHandler)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// haproxyBinary finds the real HAProxy.
func haproxyBinary(t testing.TB) string {
	t.Helper()
	for _, name := range []string{os.Getenv("ATOLL_HAPROXY"), "haproxy", "/usr/sbin/haproxy"} {
		if name == "" {
			continue
		}
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no HAProxy on this machine; `bash scripts/install-tools haproxy` installs it")
	return ""
}

// proxy is a running HAProxy with an exported configuration.
type proxy struct {
	t         testing.TB
	bin, conf string
	socket    string
	addr      string
	h         HAProxy
	stop      func()
}

// newProxy writes what is exported for a view; start starts HAProxy on it.
func newProxy(t testing.TB, h HAProxy, view *topo.View) *proxy {
	t.Helper()
	dir, err := os.MkdirTemp("", "atoll-haproxy") // short: a Unix socket's path may have 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &proxy{t: t, bin: haproxyBinary(t), conf: filepath.Join(dir, "atoll.cfg"), socket: filepath.Join(dir, "s"), h: h}
	if p.addr, err = loopback.Addr(); err != nil {
		t.Fatal(err)
	}
	p.h.File, p.h.Bind = filepath.Join(dir, "atoll.map"), p.addr
	text, err := p.h.Config()
	if err != nil {
		t.Fatal(err)
	}
	global := "global\n    nbthread 2\n    stats socket " + p.socket + " mode 600 level admin\n    stats timeout 10s\n\n"
	if err := os.WriteFile(p.conf, []byte(global+text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewMap(view).WriteFile(p.h.File); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(p.bin, "-c", "-f", p.conf).CombinedOutput()
	if err != nil || strings.Contains(string(out), "WARNING") {
		t.Fatalf("haproxy -c: %v\n%s\n%s", err, out, text)
	}
	return p
}

func (p *proxy) start() {
	p.t.Helper()
	cmd := exec.Command(p.bin, "-db", "-f", p.conf)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	p.t.Cleanup(p.stop)
	eventually(p.t, "HAProxy answers", func() bool {
		_, err := p.runtime().Version(context.Background())
		return err == nil
	})
	p.t.Cleanup(func() {
		if p.t.Failed() {
			p.t.Logf("haproxy says:\n%s", out)
		}
	})
}

func (p *proxy) runtime() Runtime { return Runtime{p.socket, p.h.File} }

// follow keeps the proxy in step with what publish is given.
func (p *proxy) follow(first *topo.View) (publish func(*topo.View), swapped <-chan Version) {
	views, done := make(chan *topo.View, 100), make(chan Version, 100)
	views <- first
	f := Follower{File: p.h.File, Socket: p.socket, Log: discard, Swapped: func(v Version) { done <- v },
		Next: func(ctx context.Context, _ *topo.View) (*topo.View, error) {
			select {
			case v := <-views:
				return v, nil
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		}}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = f.Run(ctx) }()
	p.t.Cleanup(func() { cancel(); <-ended })
	return func(v *topo.View) { views <- v }, done
}

func await(t testing.TB, swapped <-chan Version, v *topo.View) {
	t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case got := <-swapped:
			if got == (Version{v.Ownership.Generation, v.Ownership.Version}) {
				return
			}
		case <-limit:
			t.Fatalf("view %d.%d did not arrive", v.Ownership.Generation, v.Ownership.Version)
		}
	}
}

type output struct {
	mu sync.Mutex
	b  strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// standIn stands for the gateways of a site: it says its name.
func standIn(t testing.TB, name string) *url.URL {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name) }))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// client keeps its connections.
func client(t testing.TB) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// where asks through the proxy and returns who answered.
func (p *proxy) where(c *http.Client, req *http.Request) (string, error) {
	req.URL.Scheme, req.URL.Host = "http", p.addr
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", resp.Status)
	}
	return string(text), err
}

func mustView(o topo.Ownership, err error) *topo.View {
	if err == nil {
		var v *topo.View
		if v, err = topo.NewView(o); err == nil {
			return v
		}
	}
	panic(err)
}

// vectors are the test vectors of package route.
func vectors(t testing.TB) (out []struct {
	Form     topo.KeyForm
	Raw, Key string
	Buckets  int
	Bucket   topo.BucketID
}) {
	t.Helper()
	text, err := os.ReadFile("../../route/testdata/vectors.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}
