package handover

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/topo"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

func testRecord(driver string) Record {
	return Record{
		ID: "h1", Driver: driver, Who: "ann", Why: "rebalance", Sites: []topo.SiteID{"a", "b"},
		Move:   Move{Keyspace: "users", Buckets: topo.Spans{{First: 0, Last: 24}}, To: "b"},
		Bounds: Bounds{MaxLagMS: 5000, DrainMS: 1000, FenceMS: 5000, CatchMS: 10000},
	}
}

func testMove() Move {
	m := testRecord("").Move
	m.From, m.Epochs = "a", []topo.EpochSpan{{First: 0, Last: 24, Epoch: 7}}
	return m
}

func testMarker() change.Marker {
	return change.Marker{Kind: change.MarkerClosed, Site: "a", Handover: "h1", Keyspace: "users",
		Buckets: testMove().Epochs, Vector: topo.Vector{"b": 42}}
}

// story is one scenario file: a clock, a machine, and the record as the store had it last.
type story struct {
	now    time.Time
	state  State
	stored Record
}

func (s *story) event(t *testing.T, d *datadriven.TestData) Event {
	var site, text string
	version, epoch := 0, 7
	d.MaybeScanArgs(t, "site", &site)
	d.MaybeScanArgs(t, "text", &text)
	d.MaybeScanArgs(t, "version", &version)
	d.MaybeScanArgs(t, "epoch", &epoch)
	text = strings.ReplaceAll(text, "_", " ")
	marker := testMarker()
	marker.Buckets = []topo.EpochSpan{{First: 0, Last: 24, Epoch: topo.Epoch(epoch)}}
	switch d.Cmd {
	case "tick":
		return Tick{}
	case "ready":
		return Ready{Move: testMove(), Facts: map[string]string{"lag at b": "3ms"}}
	case "refused":
		return Refused{[]Problem{{Check: "target-lag", Site: "b", Text: text}}}
	case "claimed":
		return Claimed{uint64(version)}
	case "commit-stands":
		return CommitStands{uint64(version)}
	case "abort-stands":
		return AbortStands{uint64(version)}
	case "conflict":
		var do string
		d.ScanArgs(t, "do", &do)
		return Conflict{Verb(do)}
	case "observed":
		if d.HasArg("nothing") {
			return Observed{}
		}
		var phase string
		d.ScanArgs(t, "phase", &phase)
		r := s.stored
		r.Phase, r.Decided = Phase(phase), uint64(version)
		if r.Claimed == 0 {
			r.Claimed = uint64(version)
		}
		return Observed{Exists: true, Record: r}
	case "settled":
		return Settled{topo.SiteID(site), text}
	case "closed":
		return Closed{marker}
	case "writers-remain":
		return WritersRemain{text}
	case "marker":
		return MarkerArrived{marker}
	case "reached":
		return Reached{topo.SiteID(site), uint64(version)}
	case "released":
		return Released{topo.SiteID(site), text}
	case "saved":
		return Saved{s.state.Record.Outcome}
	case "failed":
		var do string
		d.ScanArgs(t, "do", &do)
		return Failed{Verb(do), topo.SiteID(site), text}
	}
	d.Fatalf(t, "unknown command %s", d.Cmd)
	return nil
}

func (s *story) run(t *testing.T, d *datadriven.TestData) string {
	var wait string
	d.MaybeScanArgs(t, "wait", &wait)
	if wait != "" {
		pause, err := time.ParseDuration(wait)
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		s.now = s.now.Add(pause)
	}
	var todo []Action
	switch d.Cmd {
	case "start":
		s.state, todo = Start(testRecord("a/1"), d.HasArg("dry-run"), s.now)
	case "resume": // the driver died; another controller has the record as it was stored last
		var driver string
		d.ScanArgs(t, "driver", &driver)
		r, err := DecodeRecord(s.stored.Encode())
		if err != nil {
			return "refused: " + err.Error()
		}
		s.state, todo = Resume(r, driver, s.now)
	case "record":
		out, err := json.MarshalIndent(s.state.Record, "", "  ")
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		return string(out)
	default:
		ev := s.event(t, d)
		s.state, todo = Next(s.state, ev, s.now)
		switch ev.(type) {
		case Claimed, CommitStands, AbortStands, Saved: // these the store has
			s.stored = s.state.Record
		}
	}
	return s.print(todo)
}

func (s *story) print(todo []Action) string {
	var b strings.Builder
	r := s.state.Record
	fmt.Fprintf(&b, "%s %s", s.now.Sub(noon), r.Phase)
	if s.state.closing {
		b.WriteString(" closing")
	}
	if s.state.aborting {
		b.WriteString(" aborting")
	}
	if len(s.state.waiting) > 0 {
		fmt.Fprintf(&b, " waiting for %v", s.state.waiting)
	}
	if r.Outcome != "" {
		fmt.Fprintf(&b, " outcome %s", r.Outcome)
	}
	if len(r.Reasons) > 0 {
		fmt.Fprintf(&b, " because %q", r.Reasons)
	}
	if s.state.Over() {
		b.WriteString(" OVER")
	}
	if wake := s.state.Wake(); !wake.IsZero() {
		fmt.Fprintf(&b, "; wake at %s", wake.Sub(noon))
	}
	b.WriteString("\n")
	for _, a := range todo {
		fmt.Fprintf(&b, "  -> %s\n", a)
	}
	return b.String()
}

// TestScenarios plays the stories in testdata/switch. Run with -rewrite after a change that is meant.
func TestScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/switch", func(t *testing.T, path string) {
		s := &story{now: noon}
		datadriven.RunTest(t, path, s.run)
	})
}
