package lab

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// HoldBenchOptions say how to measure what it costs to hold requests.
type HoldBenchOptions struct {
	Atoll    string    // binary
	Out      string    // folder of the report
	Requests int       // default 10000
	Keys     int       // default 1000
	JSON     bool      // print the report as JSON to Stdout, the progress to Stderr
	Stdout   io.Writer // default os.Stdout
	Stderr   io.Writer // default os.Stderr
}

// What is to be kept.
const (
	holdMostMiB  = 300
	holdReleased = 2 * time.Second
)

// HoldBenchReport is out/bench-hold.json.
type HoldBenchReport struct {
	Requests   int      `json:"requests"`
	Keys       int      `json:"keys"`
	RSSIdleMiB float64  `json:"rss_idle_mib"`
	RSSHeldMiB float64  `json:"rss_held_mib"`
	RSSMostMiB float64  `json:"rss_most_mib"` // during the release
	AboveMiB   float64  `json:"rss_above_idle_mib"`
	PerKiB     float64  `json:"rss_per_request_kib"`
	ReleasedMS float64  `json:"released_ms"` // from the view that ends the hold to the last answer
	Answered   int      `json:"answered"`
	Failed     int      `json:"failed"`
	OutOfOrder int      `json:"out_of_order"` // came to the application before one of the same key that had arrived earlier
	Kept       bool     `json:"kept"`
	Broken     []string `json:"broken,omitempty"`
	Cores      int      `json:"cores"`
	MemoryMiB  int      `json:"memory_mib"`
	Kernel     string   `json:"kernel"`
	At         string   `json:"at"`
	LoadBefore float64  `json:"load_average_before"`
	LoadAfter  float64  `json:"load_average_after"`
}

const holdKeyspace = topo.KeyspaceID("users")

// heldApp is an application that notes in which order the requests of each key came.
type heldApp struct {
	mu         sync.Mutex
	last       map[string]int
	outOfOrder int
}

func (a *heldApp) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.Atoi(r.Header.Get("X-Turn"))
	if err != nil {
		return // one that only warms up
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := r.Header.Get("X-User")
	if n < a.last[key] {
		a.outOfOrder++
	}
	a.last[key] = max(a.last[key], n)
}

// BenchHold holds requests, each on a connection of its own, in a gateway in a process of its own, and lets them go. It
// fails if what is to be kept is not.
func BenchHold(ctx context.Context, o HoldBenchOptions) (err error) {
	o.Requests, o.Keys, o.Out = cmp.Or(o.Requests, 10_000), cmp.Or(o.Keys, 1000), cmp.Or(o.Out, "out")
	if o.Stdout == nil {
		o.Stdout, o.Stderr = os.Stdout, os.Stderr
	}
	progress := o.Stdout
	if o.JSON {
		progress = o.Stderr
	}
	say := func(format string, args ...any) { fmt.Fprintf(progress, format+"\n", args...) }
	r := &HoldBenchReport{Requests: o.Requests, Keys: o.Keys, At: time.Now().UTC().Format(time.RFC3339), LoadBefore: loadAverage()}
	app := &heldApp{last: make(map[string]int)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	server := &http.Server{Handler: app}
	go func() { _ = server.Serve(ln) }() // ends with Close
	defer server.Close()
	g, err := startLoneGateway(ctx, o.Atoll, func(s *spec.Spec) {
		s.Sites[loneSite].Upstreams = map[string]*spec.Upstream{"app": {URL: "http://" + ln.Addr().String()}}
		s.Keyspaces = map[topo.KeyspaceID]*spec.Keyspace{holdKeyspace: {Buckets: 1024}}
		s.Routes = []*spec.Route{{Name: "app", Match: spec.Match{Path: "/"}, Upstream: "app", Keyspace: holdKeyspace, Key: []topo.KeySource{{Header: "X-User"}}, WithoutKey: topo.RefuseKeyless}}
		s.Policies.Hold = spec.HoldPolicy{MaxTime: 10 * time.Minute, MaxRequests: o.Requests, MaxPerBucket: o.Requests}
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.close()) }()
	if err := r.measure(ctx, o, g, say); err != nil {
		return err
	}
	app.mu.Lock()
	r.OutOfOrder = app.outOfOrder
	app.mu.Unlock()
	r.finish()
	say("%d requests of %d keys were held: %.0f MiB idle, %.0f MiB held (%.1f KiB each), %.0f MiB at most", r.Requests, r.Keys, r.RSSIdleMiB, r.RSSHeldMiB, r.PerKiB, r.RSSMostMiB)
	say("released within %.0f ms: %d answered, %d failed, %d out of order", r.ReleasedMS, r.Answered, r.Failed, r.OutOfOrder)
	if err := writeReport(filepath.Join(o.Out, "bench-hold.json"), r, o.JSON, o.Stdout); err != nil {
		return err
	}
	if !r.Kept {
		return fmt.Errorf("lab: not kept: %v", r.Broken)
	}
	say("all is kept")
	return nil
}

// measure holds the requests round by round: the first one of every key, then the second one of every key, and so on, so that
// it is known in which order they arrived.
func (r *HoldBenchReport) measure(ctx context.Context, o HoldBenchOptions, g *loneGateway, say func(string, ...any)) error {
	for range 200 {
		if err := holdOne(ctx, g.users, "warm", ""); err != nil {
			return err
		}
	}
	r.RSSIdleMiB = round(g.rssMiB(), 1)
	open := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{holdKeyspace: {Buckets: 1024, Hash: topo.HashMD5,
		Ranges: []topo.Range{{First: 0, Last: 1023, Owner: loneSite, Epoch: 1, State: topo.Open}}}})
	all := topo.Spans{{First: 0, Last: 1023}}
	moving, err := open.StartMove(holdKeyspace, all, "h", "b")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	back, err := moving.AbortMove(holdKeyspace, all, "h")
	if err != nil {
		return fmt.Errorf("lab: %w", err)
	}
	g.agent.publish(moving, false)
	if err := until(ctx, func() bool { return g.metric("atoll_gateway_view_version") >= float64(moving.Version) }); err != nil {
		return err
	}
	say("holding %d requests, each on its own connection", o.Requests)
	ended := make(chan error, o.Requests)
	for sent := 0; sent < o.Requests; {
		round := min(o.Keys, o.Requests-sent)
		for i := range round {
			key, turn := fmt.Sprint("user-", i), sent/o.Keys+1
			go func() { ended <- holdOne(ctx, g.users, key, strconv.Itoa(turn)) }()
		}
		sent += round
		if err := until(ctx, func() bool { return g.metric("atoll_gateway_held") >= float64(sent) || len(ended) > 0 }); err != nil || len(ended) > 0 {
			return errors.Join(err, fmt.Errorf("lab: %d requests were not held", len(ended)))
		}
	}
	r.RSSHeldMiB = round(g.rssMiB(), 1)
	r.RSSMostMiB = r.RSSHeldMiB
	began := time.Now()
	g.agent.publish(back, true)
	for range o.Requests {
		if err := <-ended; err != nil {
			r.Failed++
			say("%v", err)
		} else {
			r.Answered++
		}
	}
	r.ReleasedMS = round(time.Since(began).Seconds()*1000, 0)
	r.RSSMostMiB = max(r.RSSMostMiB, round(g.rssMiB(), 1))
	return nil
}

// until asks every few milliseconds.
func until(ctx context.Context, ok func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !ok() {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// holdOne sends a write with a small body on a connection of its own and waits for its answer.
func holdOne(ctx context.Context, addr, key, turn string) error {
	conn, err := (&net.Dialer{Timeout: 10 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := fmt.Fprintf(conn, "POST /held HTTP/1.1\r\nHost: bench.test\r\nX-User: %s\r\nX-Turn: %s\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n{\"seats\": [1]}", key, turn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReaderSize(conn, 512), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 200))
		return fmt.Errorf("%s: %s", resp.Status, text)
	}
	return nil
}

func (r *HoldBenchReport) finish() {
	r.AboveMiB = round(r.RSSHeldMiB-r.RSSIdleMiB, 1)
	r.PerKiB = round(1024*r.AboveMiB/float64(r.Requests), 1)
	for _, one := range []struct {
		what string
		kept bool
	}{
		{fmt.Sprintf("%.0f MiB above idle, at most %d", r.AboveMiB, holdMostMiB), r.AboveMiB <= holdMostMiB},
		{fmt.Sprintf("released within %.0f ms, at most %s", r.ReleasedMS, holdReleased), r.ReleasedMS <= float64(holdReleased.Milliseconds())},
		{fmt.Sprintf("%d failed", r.Failed), r.Failed == 0},
		{fmt.Sprintf("%d out of order", r.OutOfOrder), r.OutOfOrder == 0},
	} {
		if !one.kept {
			r.Broken = append(r.Broken, one.what)
		}
	}
	r.Kept = len(r.Broken) == 0
	r.Cores, r.MemoryMiB, r.Kernel, r.LoadAfter = runtime.NumCPU(), memoryMiB(), kernel(), loadAverage()
}
