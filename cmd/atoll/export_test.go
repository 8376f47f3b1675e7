package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/export"
	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

func TestExport_RefusesWhatMakesNoSense(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"--site", "w"}, "is a witness"},
		{[]string{"--site", "x"}, "x"},
		{[]string{"--site", "a", "--follow"}, "--follow needs --socket"},
		{[]string{"--site", "a", "--socket", "/s"}, "--socket is for --follow"},
		{[]string{"--site", "a", "--follow", "--socket", "/s", "--first"}, "does not change"},
		{[]string{"--site", "a", "--map", "/a b"}, "cannot name such a file"},
		{[]string{"--site", "a", "--bind", "8080"}, "want ip:port"},
		{[]string{"--site", "a", "--gateway", "b"}, "want SITE=URL"},
		{[]string{"--site", "a", "--gateway", "b=b.example:8080"}, "want SITE=URL"},
		{[]string{"--site", "a", "--gateway", "a=http://a.example"}, "the other sites are [b]"},
		{[]string{"--site", "a", "--gateway", "w=http://w.example"}, "the other sites are [b]"},
		{[]string{"--site", "a", "--view", "nowhere"}, "not a base URL"},
	} {
		_, err := run(t, append([]string{"export", "haproxy", "-f", p.file, "--out", filepath.Join(p.dir, "refused")}, c.args...)...)
		wantError(t, err, c.want)
	}
	if _, err := os.Stat(filepath.Join(p.dir, "refused")); err == nil {
		t.Error("something was written")
	}
}

// passesOn is a gateway's admin address, as far as the view goes.
func passesOn(t *testing.T, o topo.Ownership) string {
	t.Helper()
	line, err := json.Marshal(api.ViewUpdate{Format: api.ViewFormat, Ownership: o.Encode(), OpenedVersion: o.Version, Gateway: &api.GatewayWord{Site: "a", Name: "g1"}})
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = fmt.Fprintf(w, "%s\n", line)
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// The commands of docs/export.md, in their order: files of a new deployment, files of the ownership as it is, and a running
// HAProxy that is brought to that.
func TestExport_HAProxy(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s, err := spec.Load(p.file)
	if err != nil {
		t.Fatal(err)
	}
	// A Unix socket's path may have 107 bytes.
	dir, err := os.MkdirTemp("", "atoll-export")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	read := func(name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	command := []string{"export", "haproxy", "-f", p.file, "--site", "a", "--out", dir}
	out, err := run(t, append(command, "--first", "--gateway", "b=https://b.example.com")...)
	if err != nil || !strings.Contains(out, "view 1.1") || !strings.Contains(read("atoll.map"), "users/1023 a\n") || !strings.Contains(read("atoll.cfg"), "verifyhost b.example.com") {
		t.Fatalf("%v\n%s\n%s", err, out, read("atoll.cfg"))
	}
	moving, err := s.FirstOwnership().StartMove("users", topo.SpansOf(83), "h1", "b")
	if err != nil {
		t.Fatal(err)
	}
	view := passesOn(t, moving)
	if out, err := run(t, append(command, "--view", view)...); err != nil || !strings.Contains(read("atoll.map"), "users/83 _hold\n") || !strings.Contains(read("atoll.map"), "_view 1.2\n") {
		t.Fatalf("%v\n%s", err, out)
	}

	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("no HAProxy on this machine for the rest; `bash scripts/install-tools haproxy` installs it")
	}
	bind, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, append(command, "--first", "--bind", bind)...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	socket := filepath.Join(dir, "s")
	if err := os.WriteFile(filepath.Join(dir, "global.cfg"), []byte("global\n    stats socket "+socket+" mode 600 level admin\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(haproxy, "-c", "-f", filepath.Join(dir, "atoll.cfg")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := exec.Command(haproxy, "-db", "-f", filepath.Join(dir, "global.cfg"), "-f", filepath.Join(dir, "atoll.cfg"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	ctx, stop := context.WithCancel(t.Context())
	root := newRoot()
	root.SetArgs(append([]string{"--log-level", "error"}, append(command, "--view", view, "--socket", socket, "--follow")...))
	ended := make(chan error, 1)
	go func() { ended <- root.ExecuteContext(ctx) }()
	inStep := func(ctx context.Context) bool {
		v, err := export.NewRuntime(socket, filepath.Join(dir, "atoll.map")).Version(ctx)
		return err == nil && v == (export.Version{Generation: 1, Version: 2})
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for !strings.Contains(read("atoll.map"), "_view 1.2\n") || !inStep(ctx) {
		select {
		case err := <-ended:
			t.Fatalf("ended: %v", err)
		case <-limit:
			t.Fatal("the running HAProxy is not in step after 30 s")
		case <-tick.C:
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
