package load

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

func config(url string) Config {
	return Config{
		Gateways: []Gateway{{"a/g1", url}, {"b/g1", url}},
		Shape:    seed.Shape{Seed: 1, Events: 2, Customers: 20},
		Mix:      Mix{Writes: 0.5, Hot: 0.2, HotCustomers: 2},
		Rate:     300, Duration: time.Second, Timeout: 20 * time.Second, Clients: 8, Seed: 1,
		History: io.Discard, Progress: io.Discard,
	}
}

// shopLike answers like the shop behind a gateway; every buy makes an order.
func shopLike(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Atoll-Gateway", "a/g1")
	h.Set("Atoll-Site", "b")
	h.Set("Atoll-View", "1.17")
	h.Set("Atoll-Epoch", "7")
	h.Set("Atoll-Held", "12")
	switch {
	case r.URL.Path == "/buy":
		w.WriteHeader(http.StatusCreated)
		json.NewEncoder(w).Encode(map[string]any{"id": r.Header.Get("Idempotency-Key"), "number": 3, "seat": "s", "site": "b"})
	case strings.HasSuffix(r.URL.Path, "/cancel"):
		json.NewEncoder(w).Encode(map[string]any{"id": strings.Split(r.URL.Path, "/")[2], "number": 3, "seat": "s"})
	default:
		io.WriteString(w, "{}")
	}
}

func TestRun_HistoryIsComplete(t *testing.T) {
	t.Parallel()
	var served atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		shopLike(w, r)
	}))
	defer server.Close()
	var history, progress bytes.Buffer
	cfg := config(server.URL)
	cfg.Duration = 2500 * time.Millisecond
	cfg.History, cfg.Progress = &history, &progress
	sum, err := Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if sum.Sent < 500 || sum.Sent > 1000 || sum.OK != sum.Sent || sum.InFlight != 0 || int(served.Load()) != sum.Sent || sum.Held != sum.Sent {
		t.Errorf("%s; served %d", sum, served.Load())
	}
	if share := float64(sum.Writes) / float64(sum.Sent); math.Abs(share-0.5) > 0.1 {
		t.Errorf("share of writes %.2f, want about 0.5", share)
	}
	ids, ops, targets, orders := map[string]bool{}, map[string]int{}, map[string]int{}, map[string]bool{}
	fields := []string{"client", "epoch", "error", "gateway", "held_ms", "id", "invoked_us", "key", "keyspace", "op", "order",
		"outcome", "reason", "returned_us", "site", "status", "target", "view", "write"}
	for line := range strings.Lines(history.String()) {
		var raw map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &raw); err != nil {
			t.Fatal(err)
		}
		var names []string
		for name := range raw {
			names = append(names, name)
		}
		if slices.Sort(names); !slices.Equal(names, fields) {
			t.Fatalf("fields %v, want %v", names, fields)
		}
		var r Record
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		ids[r.ID] = true
		ops[r.Op]++
		targets[r.Target]++
		now := time.Now().UnixMicro()
		if r.InvokedUS < now-60e6 || r.ReturnedUS < r.InvokedUS || r.ReturnedUS > now {
			t.Errorf("times: %s", line)
		}
		if r.Outcome != OK || r.Gateway != "a/g1" || r.Site != "b" || r.View != "1.17" || r.Epoch != 7 || r.HeldMS != 12 {
			t.Errorf("answer: %s", line)
		}
		if r.Write != (r.Op == "buy" || r.Op == "cancel") || r.Write != (r.Order != nil) || (r.Keyspace == "catalog") != (r.Key == "") {
			t.Errorf("operation: %s", line)
		}
		switch r.Op {
		case "buy":
			orders[r.Order.ID] = true
			if r.Order.ID != r.ID || r.Order.Number != 3 || r.Order.Seat != "s" {
				t.Errorf("order: %s", line)
			}
		case "cancel":
			if !orders[r.Order.ID] {
				t.Errorf("cancelled what was not bought before: %s", line)
			}
		}
	}
	if len(ids) != sum.Sent {
		t.Errorf("%d ids in the history, %d requests", len(ids), sum.Sent)
	}
	for _, op := range []string{"buy", "cancel", "orders", "me", "seats"} {
		if ops[op] == 0 {
			t.Errorf("no %s among %v", op, ops)
		}
	}
	if half := float64(targets["a/g1"]) / float64(sum.Sent); math.Abs(half-0.5) > 0.1 {
		t.Errorf("gateways asked: %v", targets)
	}
	var last Summary
	lines := strings.Split(strings.TrimSpace(progress.String()), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || len(lines) < 3 || last.Sent != sum.Sent {
		t.Errorf("progress: %v\n%s", err, progress.String())
	}
}

func TestRun_OpenLoop(t *testing.T) {
	t.Parallel()
	var waiting atomic.Int64
	release := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if waiting.Add(1) == 150 { // nobody was answered before
			close(release)
		}
		<-release
		shopLike(w, r)
	}))
	defer server.Close()
	sum, err := Run(t.Context(), config(server.URL))
	if err != nil {
		t.Fatal(err)
	}
	if sum.Sent < 200 || sum.OK != sum.Sent {
		t.Errorf("%s", sum)
	}
	// 150 of about 300 requests came in the half second that the server stood still, evenly: their wait counts.
	if sum.P99 < 300 {
		t.Errorf("p99 %v ms: the wait of the first requests is missing", sum.P99)
	}
}

func TestRun_LatencyCountsFromTheIntendedStart(t *testing.T) {
	t.Parallel()
	c := config("http://127.0.0.1:1")
	g := &generator{Config: c, history: make(chan Record, 1), base: time.Now()}
	intended := time.Now().Add(-3 * time.Second)
	g.tally.start()
	g.perform(newClient(0, c.Gateways[0]), c.Gateways[0], operation{id: "1", method: "GET", path: "/me"}, intended)
	rec := <-g.history
	if took := rec.ReturnedUS - rec.InvokedUS; took < 3e6 || g.tally.summary(0).P50 < 2900 {
		t.Errorf("took %d µs, p50 %v ms", took, g.tally.summary(0).P50)
	}
}

func TestRun_StopsAndWaitsForWhatIsUnderWay(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var arrived atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if arrived.Add(1) == 20 {
			cancel()
		}
		<-ctx.Done()
		shopLike(w, r)
	}))
	defer server.Close()
	cfg := config(server.URL)
	cfg.Duration = 0
	sum, err := Run(ctx, cfg)
	if err != nil || sum.OK != sum.Sent || sum.InFlight != 0 || sum.Sent < 20 {
		t.Errorf("%s, %v", sum, err)
	}
}

type fullDisk struct{ lines int }

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.lines++; d.lines > 10 {
		return 0, errors.New("no space left on device")
	}
	return len(p), nil
}

func TestRun_EndsWhenTheHistoryCannotBeWritten(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(http.HandlerFunc(shopLike))
	defer server.Close()
	cfg := config(server.URL)
	cfg.Duration = 0
	cfg.History = &fullDisk{}
	if _, err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("error %v", err)
	}
}

func TestSend_Outcomes(t *testing.T) {
	t.Parallel()
	hang := make(chan struct{})
	answers := map[string]func(http.ResponseWriter, *http.Request){
		"order":   shopLike,
		"empty":   func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "{}") },
		"taken":   func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "taken", http.StatusConflict) },
		"refused": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) },
		"moving": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Atoll-Reason", "moving")
			w.WriteHeader(503)
		},
		"late": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Atoll-Reason", "deadline")
			w.WriteHeader(503)
		},
		"500":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500) },
		"504":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(504) },
		"away": func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Location", "/"); w.WriteHeader(303) },
		"hang": func(http.ResponseWriter, *http.Request) { <-hang },
		"cut":  func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"cut-in-body": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(201)
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers[r.URL.Query().Get("answer")](w, r)
	}))
	defer server.Close()
	defer close(hang)
	for _, c := range []struct {
		answer      string
		write, read Outcome
		status      int
	}{
		{"order", OK, OK, 0},
		{"empty", Unknown, OK, 200},
		{"taken", OK, OK, 409},
		{"refused", Fail, Fail, 503},
		{"moving", Fail, Fail, 503},
		{"late", Unknown, Fail, 503},
		{"500", Unknown, Fail, 500},
		{"504", Unknown, Fail, 504},
		{"away", OK, OK, 303},
		{"hang", Unknown, Fail, 0},
		{"cut", Unknown, Fail, 0},
		{"cut-in-body", Unknown, Fail, 0},
	} {
		for _, write := range []bool{true, false} {
			op := operation{id: "1", name: "me", method: "GET", path: "/me?answer=" + c.answer}
			if write {
				op = operation{id: "1", name: "buy", method: "POST", path: "/buy?answer=" + c.answer, write: true, body: []byte("{}"), key: "k"}
			}
			rec := Record{Write: write}
			timeout := 5 * time.Second
			if c.answer == "hang" {
				timeout = 50 * time.Millisecond
			}
			newClient(0, Gateway{}).send(Gateway{URL: server.URL}, op, timeout, &rec)
			want := c.read
			if write {
				want = c.write
			}
			if rec.Outcome != want || c.answer != "order" && rec.Status != c.status {
				t.Errorf("%s, write %v: %+v, want %s %d", c.answer, write, rec, want, c.status)
			}
			if made := write && c.answer == "order"; made != (rec.Order != nil) {
				t.Errorf("%s, write %v: order %+v", c.answer, write, rec.Order)
			}
			if want != OK && rec.Status < 500 && rec.Error == "" {
				t.Errorf("%s, write %v: no error is told", c.answer, write)
			}
		}
	}
	// Nothing listens: surely not sent.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	rec := Record{Write: true}
	op := operation{name: "buy", method: "POST", path: "/buy", write: true, body: []byte("{}")}
	newClient(0, Gateway{}).send(Gateway{URL: "http://" + listener.Addr().String()}, op, time.Second, &rec)
	if rec.Outcome != Fail || rec.Error == "" {
		t.Errorf("%+v", rec)
	}
}

// TestSend_NeverTwice breaks kept connections under the client: each request is seen at most once.
func TestSend_NeverTwice(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	seen := map[string]int{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		seen[r.URL.Query().Get("n")]++
		if r.Method == "GET" && (len(body) > 0 || len(r.TransferEncoding) > 0 || r.ContentLength != 0) {
			t.Errorf("a GET with a body: %v %q", r.TransferEncoding, body)
		}
		if r.URL.Query().Get("n") != "warm" {
			panic(http.ErrAbortHandler) // close without an answer
		}
	}))
	defer server.Close()
	c := newClient(0, Gateway{})
	for name, op := range map[string]operation{
		"get":    {method: "GET"},
		"post":   {method: "POST", write: true, body: []byte("{}")},
		"cancel": {method: "POST", write: true, body: []byte("{}"), id: "k"},
	} {
		for _, n := range []string{"warm", name} { // the second one uses the connection of the first
			op.path = "/?n=" + n
			rec := Record{Write: op.write}
			c.send(Gateway{URL: server.URL}, op, 5*time.Second, &rec)
			if want := n != "warm"; want != (rec.Status == 0) {
				t.Errorf("%s: %+v", n, rec)
			}
		}
	}
	server.Close() // waits for what may still arrive
	mu.Lock()
	defer mu.Unlock()
	for _, name := range []string{"get", "post", "cancel"} {
		if seen[name] != 1 {
			t.Errorf("%s was sent %d times", name, seen[name])
		}
	}
}

func TestParseGateways(t *testing.T) {
	t.Parallel()
	got, err := ParseGateways("a/g1=http://127.0.0.1:8080/, b/g1=https://b.example")
	if err != nil || !slices.Equal(got, []Gateway{{"a/g1", "http://127.0.0.1:8080"}, {"b/g1", "https://b.example"}}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, text := range []string{"", "a", "a=", "=http://x", "a=x:8080", "a=ftp://x", "a=http://x,"} {
		if got, err := ParseGateways(text); err == nil {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestHistogram(t *testing.T) {
	t.Parallel()
	var h histogram
	if h.quantile(0.5) != 0 {
		t.Error("empty")
	}
	for ms := range 1000 {
		h.add(time.Duration(ms+1) * time.Millisecond)
	}
	h.add(-time.Second)
	h.add(100 * time.Hour)
	for q, want := range map[float64]float64{0.5: 500, 0.99: 990} {
		if got := h.quantile(q); math.Abs(got-want) > want*0.02 {
			t.Errorf("quantile %v: %v ms, want about %v", q, got, want)
		}
	}
}
