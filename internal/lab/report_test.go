package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

// aDemo has switched bucket 7's neighbours from a to b at seconds 2 to 4 of the story goodMove, and was cut at 20.
func aDemo() *demo {
	m := &demo{opts: DemoOptions{Options: Options{Buckets: 1024, RTT: 30 * time.Millisecond}}}
	m.opts.setDefaults()
	m.switches = []switchRun{{phase: nominal, keyspace: users, buckets: topo.Spans{{First: 7, Last: 7}}, from: "a", to: "b", start: second(2), end: second(4.5)}}
	m.switching = [2]time.Time{second(2), second(10)}
	m.cut = [2]time.Time{second(20), second(30)}
	m.caughtUp = second(32)
	m.loaded = [2]time.Time{second(0), second(40)}
	return m
}

// keyIn finds a key of a bucket.
func keyIn(bucket topo.BucketID) string {
	for n := 0; ; n++ {
		if key := strings.Repeat("x", n%7) + time.Duration(n).String(); bucketOf(key, 1024) == bucket {
			return key
		}
	}
}

func request(from, to float64, key string, status int, held int64) Operation {
	return Operation{ID: "r", Keyspace: users, Key: key, Status: status, HeldMS: held, InvokedUS: second(from).UnixMicro(), ReturnedUS: second(to).UnixMicro()}
}

func TestFailuresOfSwitches(t *testing.T) {
	t.Parallel()
	m := aDemo()
	m.switches = append(m.switches, switchRun{phase: afterCut, keyspace: users, buckets: topo.Spans{{First: 7, Last: 7}}, from: "b", to: "a", start: second(35), end: second(36)})
	in, out := keyIn(7), keyIn(8)
	for _, test := range []struct {
		what string
		o    Operation
		want int
	}{
		{"answered", request(2, 3, in, 200, 0), 0},
		{"refused by the shop", request(2, 3, in, 409, 0), 0},
		{"failed in the bucket", request(1, 2.5, in, 503, 0), 1},
		{"no answer", request(4, 4.2, in, 0, 0), 1},
		{"failed beside it while switches were made", request(2, 3, out, 503, 0), 1},
		{"failed in the cut", request(21, 22, in, 503, 0), 0},
		{"failed in the bucket after the cut", request(35.5, 37, in, 503, 0), 1},
		{"failed beside it after the cut", request(35.5, 37, out, 503, 0), 0},
	} {
		if got := m.failuresOfSwitches([]Operation{test.o}); len(got) != test.want {
			t.Errorf("%s: %d failures, want %d", test.what, len(got), test.want)
		}
	}
	want(t, checkFailures(m.failuresOfSwitches([]Operation{request(2, 3, in, 503, 0)})), "status 503")
}

func TestSumUp(t *testing.T) {
	t.Parallel()
	m := aDemo()
	story := goodMove()
	for i := range story.e.Epochs { // the story's handover has a name where it closes
		story.e.Epochs[i].Handover = map[bool]topo.HandoverID{false: "h1", true: ""}[story.e.Epochs[i].Open]
	}
	hold := func(at float64, begin bool) Hold {
		return Hold{Gateway: "a/g1", Begin: begin, Handover: "h1", Keyspace: users, Buckets: topo.SpansOf(7), At: second(at)}
	}
	e := &evidence{Evidence: story.e, ops: []Operation{request(3, 4.1, keyIn(7), 200, 900)}, holds: []Hold{hold(2.8, true), hold(4.05, false)}}
	s := m.sumUp(e, m.of(nominal))
	if s.Count != 1 || s.Buckets != 1 || s.HeldRequests != 1 || s.FailedRequests != 0 || s.WritePauseMS.Max != 1250 || s.RTTms != 30 {
		t.Errorf("%+v", s)
	}
	m.switches[0].to, m.switches[0].err = "c", errors.New("aborted")
	if s := m.sumUp(e, m.of(nominal)); s.Count != 0 || s.Tried != 1 || len(s.Errors) != 1 {
		t.Errorf("a switch that moved nothing counts: %+v", s)
	}
	r := &Report{Switch: s}
	want(t, m.checkSwitches(r), "want at least 10 with 200")
}

func TestSumUpCut(t *testing.T) {
	t.Parallel()
	c := aDemo().sumUpCut([]Operation{request(5, 6, "k", 503, 0), request(21, 22, "k", 200, 0), request(19, 21, "k", 0, 0),
		request(31, 31.5, "k", 503, 0), request(33, 34, "k", 200, 0)})
	if c != (Cut{Seconds: 10, AnsweredRequests: 1, FailedRequests: 1, FailedAfter: 1, LastFailureAfterMS: 1500, CaughtUpAfterMS: 2000}) {
		t.Errorf("%+v", c)
	}
}

func aReport() *Report {
	good, bad := Check{Name: "K1", Claim: "x"}, Check{Name: "K3", Claim: "y"}
	bad.found("order %s is missing", "o1")
	return &Report{Checks: map[string]string{"K1": good.Result(), "K3": bad.Result()}, Details: []Check{good, bad},
		Environment: Environment{Planted: plantedIn("atoll devel planted: marker-skipped,early-release")},
		Goals:       []Goal{{"pause", 310, 412.5, false}}}
}

func TestReport(t *testing.T) {
	t.Parallel()
	r := aReport()
	if !slices.Equal(r.Environment.Planted, []string{"marker-skipped", "early-release"}) || plantedIn("atoll devel") != nil {
		t.Errorf("planted %v", r.Environment.Planted)
	}
	text := r.text(&screen{})
	for _, part := range []string{"FAILED  K3", "planted: marker-skipped, early-release; caught by: K3", "order o1 is missing", "missed  pause: 412.5, wanted at most 310"} {
		if !strings.Contains(text, part) {
			t.Errorf("the report lacks %q:\n%s", part, text)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("colours outside a terminal")
	}
	data, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"ok", "requests", "switch", "checks", "sites_equal", "seats_sold_twice", "goals", "environment"} {
		if _, there := fields[name]; !there {
			t.Errorf("demo.json lacks %q", name)
		}
	}
	requests, _ := fields["requests"].(map[string]any)
	if _, there := requests["unknown"]; !there {
		t.Errorf("requests: %v", requests)
	}
}

func TestScreen(t *testing.T) {
	t.Parallel()
	var plain, terminal bytes.Buffer
	s := newScreen(&plain)
	s.say("first")
	s.live([]string{"site a", "site b"})
	s.live([]string{"too soon"})
	s.done()
	if got := plain.String(); !strings.Contains(got, "site a | site b") || strings.Contains(got, "too soon") || strings.Contains(got, "\x1b") {
		t.Errorf("plain: %q", got)
	}
	s = newScreen(&terminal)
	s.tty = true
	s.say("first")
	s.live([]string{"site a"})
	s.live([]string{"site b"})
	s.done()
	if got := terminal.String(); strings.Count(got, "\x1b[1A\x1b[2K") != 4 {
		t.Errorf("terminal: %q; want two erased blocks of two lines", got)
	}
}

func TestEvery(t *testing.T) {
	t.Parallel()
	n := 0
	err := every(t.Context(), time.Millisecond, func() (bool, error) { n++; return n == 3, nil })
	if err != nil || n != 3 {
		t.Errorf("%d calls, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := every(ctx, time.Hour, func() (bool, error) { return false, nil }); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := rest(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
