package dashboard

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atollhq/atoll/internal/api"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			_, _ = os.Stderr.WriteString(err.Error() + "\n")
			code = 1
		}
	}
	os.Exit(code)
}

func get(t *testing.T, p http.Handler, target string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	p.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, target, nil))
	return w
}

func pageOf(st api.Status) *Page {
	return New(Config{Status: func(context.Context, bool) api.Status { return st }})
}

// TestSnapshot: without JavaScript everything is there, problems first.
func TestSnapshot(t *testing.T) {
	t.Parallel()
	w := get(t, pageOf(stormy()), "/")
	body := w.Body.String()
	if w.Code != 200 || !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", w.Code, w.Header())
	}
	at := -1
	for _, want := range []string{"3 problems", "no route to host", "487 buckets", "2.1 s of 10.0 s", "gone for 31 s", "does not answer", "epochs 2 to 10",
		"0/16B3748", "failover", "ran out after 10.1 s", "estimated loss: 310 ms", "settled 13 Mar 06:00:30: 41 stale changes applied, 3 kept out"} {
		next := strings.Index(body[at+1:], want)
		if next < 0 {
			t.Errorf("the page does not say %q after what stands before it", want)
			continue
		}
		at += next + 1
	}
	csp := w.Header().Get("Content-Security-Policy")
	if !strings.HasPrefix(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") {
		t.Errorf("content policy %q", csp)
	}
	for _, bad := range []string{"style=", "http://", "https://", "<script>", "onclick"} {
		if strings.Contains(body, bad) {
			t.Errorf("the page has %q: it may load nothing from elsewhere and run nothing inline", bad)
		}
	}
}

// TestForeignText: whatever a status carries is text, in the page and in an event.
func TestForeignText(t *testing.T) {
	t.Parallel()
	st := calm()
	const bad = "</main><script>alert(1)</script>\r\n\ndata: x\nevent: y\revent: z"
	st.Deployment, st.Problems, st.Sites[0].Site = bad, []string{bad}, "<b>"
	st.Sites[1].Error, st.Handovers[1].Why, st.Handovers[2].Reasons = bad, bad, []string{bad}
	st.Sites[0].Links[0].Error, st.Sites[0].Links[0].Connected, st.Handovers[0].Steps[0].Phase = bad, false, bad
	p := pageOf(st)
	if body := get(t, p, "/").Body.String(); strings.Contains(body, "<script>") || strings.Contains(body, "<b>") {
		t.Error("the page carries markup of a status")
	}
	srv := httptest.NewServer(p)
	defer srv.Close()
	event := oneEvent(t, srv.URL)
	if strings.Contains(event, "<script>") || strings.Contains(event, "\r") { // to a browser, \r alone ends a line
		t.Errorf("the event carries markup or lines of a status:\n%s", event)
	}
	for line := range strings.Lines(event) {
		if !strings.HasPrefix(line, "data: ") && line != "event: status\n" && line != "retry: 1000\n" && line != "\n" {
			t.Errorf("line %q is none of an event's", line)
		}
	}
}

// TestNothingKnown: a page of an agent that knows nothing yet says so.
func TestNothingKnown(t *testing.T) {
	t.Parallel()
	for name, st := range map[string]api.Status{
		"empty": {}, "odd": {Ownership: &api.OwnershipStatus{Keyspaces: []api.KeyspaceStatus{{Keyspace: "k", Owners: []api.OwnerStatus{{Site: "x", Count: 5, Buckets: "?"}},
			Moving: []api.MovingStatus{{Buckets: "9-1", From: "x"}}}}}, Handovers: []api.Handover{{ID: "h", Reasons: []string{"written by a newer version"}}, {ID: "f", Kind: "failover", Failover: &api.Failover{LossMS: -1}}}},
	} {
		if w := get(t, pageOf(st), "/"); w.Code != 200 || !strings.Contains(w.Body.String(), "</html>") {
			t.Errorf("%s: %d\n%s", name, w.Code, w.Body)
		}
	}
}

func oneEvent(t *testing.T, url string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url+"/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s %s", resp.Status, resp.Header)
	}
	in := bufio.NewReader(resp.Body)
	var out strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		out.WriteString(line)
		if line == "\n" {
			return out.String()
		}
	}
}

// TestManyViewersAskOnce: the agent is asked once for all who look within an interval.
func TestManyViewersAskOnce(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	p := New(Config{Every: time.Hour, Status: func(context.Context, bool) api.Status { asked.Add(1); return calm() }})
	srv := httptest.NewServer(p)
	defer srv.Close()
	done := make(chan bool)
	const viewers = 20
	for range viewers {
		go func() { defer func() { done <- true }(); oneEvent(t, srv.URL) }()
	}
	for range viewers {
		<-done
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("%d viewers asked the agent %d times", viewers, n)
	}
}

// TestViewerWhoGoes: what was asked for a viewer who went away is not kept for the others.
func TestViewerWhoGoes(t *testing.T) {
	t.Parallel()
	gone, cancel := context.WithCancel(t.Context())
	calls := 0
	p := New(Config{Every: time.Hour, Status: func(ctx context.Context, _ bool) api.Status {
		if calls++; calls == 1 {
			cancel()
			<-ctx.Done()
			return api.Status{Deployment: "nobody answered"}
		}
		return api.Status{Deployment: "well"}
	}})
	if _, err := p.status(gone); err == nil {
		t.Error("answered a viewer who has gone")
	}
	if st, err := p.status(t.Context()); err != nil || st.Deployment != "well" {
		t.Errorf("%+v, %v", st, err)
	}
}

func TestServedPaths(t *testing.T) {
	t.Parallel()
	served := servePage(t, calm())
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	ask := func(method, path, host string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, served.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
	for _, c := range []struct {
		method, path, host string
		status             int
		want               string
	}{
		{"GET", "/", "127.0.0.1:9", 200, "<h1>tickets</h1>"},
		{"GET", "/", "localhost:9", 200, "<h1>tickets</h1>"},
		{"GET", "/", "[::1]:9", 200, "<h1>tickets</h1>"},
		{"GET", "/healthz", "localhost", 200, `"lease": true`},
		{"GET", "/assets/page.css", "localhost", 200, "font-variant-numeric"},
		{"GET", "/assets/page.js", "localhost", 200, "EventSource"},
		{"GET", "/assets/nothing.js", "localhost", 404, ""},
		{"GET", "/assets/..%2fpage.html", "localhost", 404, ""},
		{"GET", "/", "evil.example", 421, "for http://127.0.0.1"},
		{"GET", "/status.json", "127.0.0.1.evil.example:80", 421, ""},
		{"POST", "/", "localhost", 405, ""},
		{"GET", "/v1/status", "localhost", 404, ""},
	} {
		if resp, body := ask(c.method, c.path, c.host); resp.StatusCode != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s %s at %s: %s %.200s; want %d %q", c.method, c.path, c.host, resp.Status, body, c.status, c.want)
		}
	}
	_, body := ask("GET", "/status.json", "localhost")
	var st api.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil || st.Deployment != "tickets" || len(st.Sites) != 2 {
		t.Errorf("status.json: %v", err)
	}
}

// TestSharesFillTheBar: whatever is there can be seen, and a bar is as wide as its panel.
func TestSharesFillTheBar(t *testing.T) {
	t.Parallel()
	for _, counts := range [][]int{{1}, {1024}, {537, 487}, {1, 1023}, {1, 1, 1022}, {341, 341, 342}, {25, 512, 487}} {
		var parts []segment
		buckets := 0
		for _, n := range counts {
			parts, buckets = append(parts, segment{Width: share(n)}), buckets+n
		}
		end := share(0)
		for i, p := range layOut(parts, buckets) {
			if p.X != end || p.Width < 8 {
				t.Errorf("%v: part %d is %+v", counts, i, p)
			}
			end = p.X + p.Width
		}
		if end != 1000 {
			t.Errorf("%v: the bar ends at %d", counts, end)
		}
	}
}
