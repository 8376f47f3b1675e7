package gateway

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// TestH2Spec: what h2spec holds against the gateway it holds against net/http's own server, on which the gateway stands.
// Those cases are in the test's log. h2spec has global state, so this test runs alone.
func TestH2Spec(t *testing.T) {
	g := alone(t, echo("a"), nil)
	bare := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "bare")
	}), Protocols: new(http.Protocols), ReadHeaderTimeout: 10 * time.Second}
	bare.Protocols.SetHTTP1(true)
	bare.Protocols.SetUnencryptedHTTP2(true)
	ln, err := net.Listen("tcp", freeAddr(t))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = bare.Serve(ln) }() // ends with Close
	t.Cleanup(func() { _ = bare.Close() })

	known, tried := failsH2Spec(t, ln.Addr().String())
	ours, again := failsH2Spec(t, g.gw.UserAddr())
	if tried < 140 || again != tried {
		t.Fatalf("%d cases with net/http, %d with the gateway; want all of about 145", tried, again)
	}
	t.Logf("of %d cases net/http fails %q", tried, known)
	for _, name := range ours {
		if !slices.Contains(known, name) {
			t.Errorf("the gateway fails %s, which net/http passes", name)
		}
	}
}

// failsH2Spec plays all cases, and returns those that fail and how many there were.
func failsH2Spec(t *testing.T, addr string) (failed []string, tried int) {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Host: host, Port: n, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000}
	stdout := os.Stdout // it prints as it goes
	if os.Stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Stdout.Close(); os.Stdout = stdout }()
	var look func(*spec.TestGroup)
	look = func(g *spec.TestGroup) {
		for _, each := range append(g.Tests, g.StrictTests...) {
			if each.Result == nil {
				continue
			}
			tried++
			if each.Result.Failed {
				failed = append(failed, fmt.Sprintf("%s/%d %s", g.ID(), each.Result.Sequence, each.Desc))
			}
		}
		for _, sub := range g.Groups {
			look(sub)
		}
	}
	for _, group := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		group.Test(c)
		look(group)
	}
	return failed, tried
}
