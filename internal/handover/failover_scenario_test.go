package handover

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/atollhq/atoll/topo"
)

func testPolicy(mode Mode) Policy {
	return Policy{Lost: "a", Taker: "b", Driver: "b/1", Mode: mode, W: time.Second, QuietTime: 10 * time.Minute, MaxLoss: 30 * time.Second,
		VetoBound: 9 * time.Second, PerHour: 3}
}

var testTaken = []topo.Taken{{Keyspace: "users", Buckets: []topo.EpochSpan{{First: 0, Last: 31, Epoch: 7}}}}

// vigil is one scenario file: a clock, a lookout, and how many ids it has been given.
type vigil struct {
	now   time.Time
	look  Lookout
	ids   int
	shown Facts // of the last sight; the next one differs only in what it says
	lease LeaseSeen
}

func scanned[T any](t *testing.T, d *datadriven.TestData, key string, or T) T {
	d.MaybeScanArgs(t, key, &or)
	return or
}

// ago reads an argument that says how long ago something was; zero time if it is not there.
func (v *vigil) ago(t *testing.T, d *datadriven.TestData, key string, or time.Time) time.Time {
	text := scanned(t, d, key, "")
	switch text {
	case "":
		return or
	case "never":
		return time.Time{}
	}
	return v.now.Add(-duration(t, d, text))
}

func duration(t *testing.T, d *datadriven.TestData, text string) time.Duration {
	out, err := time.ParseDuration(text)
	if err != nil {
		d.Fatalf(t, "%v", err)
	}
	return out
}

func (v *vigil) sight(t *testing.T, d *datadriven.TestData) Event {
	f := &v.shown
	if f.Owns == 0 && !f.Known && f.Began.IsZero() {
		*f = Facts{Owns: 32, OwnLease: true, Known: true, History: true}
	}
	v.ids++
	f.Began = v.now
	f.Owns, f.Moving, f.Turn = scanned(t, d, "owns", f.Owns), scanned(t, d, "moving", f.Moving), scanned(t, d, "turn", f.Turn)
	if d.HasArg("others") {
		f.Others = nil
		for _, s := range strings.Split(scanned(t, d, "others", ""), "+") {
			f.Others = append(f.Others, topo.SiteID(s))
		}
	}
	f.HaltedFor = topo.SiteID(strings.Trim(scanned(t, d, "for", string(f.HaltedFor)), "-"))
	f.Recent, f.Known = scanned(t, d, "recent", f.Recent), scanned(t, d, "known", f.Known)
	f.OwnLease, f.History = scanned(t, d, "own-lease", f.OwnLease), scanned(t, d, "history", f.History)
	f.Problem = strings.ReplaceAll(scanned(t, d, "problem", f.Problem), "_", " ")
	f.Unsettled = topo.HandoverID(scanned(t, d, "unsettled", string(f.Unsettled)))
	f.Halted = topo.HandoverID(strings.Trim(scanned(t, d, "halted", string(f.Halted)), "-"))
	f.LastTaken = v.ago(t, d, "taken", f.LastTaken)
	f.Wrote, f.Heard = v.ago(t, d, "wrote", f.Wrote), v.ago(t, d, "heard", f.Heard)
	f.Serving = d.HasArg("serving")
	if f.Serving {
		f.Until = v.now.Add(duration(t, d, scanned(t, d, "serving", "")))
	}
	f.Loss = duration(t, d, scanned(t, d, "loss", "200ms"))
	v.lease.Exists, v.lease.Duration = true, 3*time.Second
	v.lease.Revision = int64(scanned(t, d, "rev", int(v.lease.Revision)))
	v.lease.RevokedBy = topo.HandoverID(scanned(t, d, "revoked", ""))
	v.lease.Revoked = v.lease.RevokedBy != ""
	return Sight{At: v.now, ID: topo.HandoverID(fmt.Sprintf("h%d", v.ids)), Lease: v.lease, Facts: *f}
}

func (v *vigil) event(t *testing.T, d *datadriven.TestData) Event {
	text := strings.ReplaceAll(scanned(t, d, "text", ""), "_", " ")
	switch d.Cmd {
	case "tick":
		return Tick{}
	case "sight":
		return v.sight(t, d)
	case "unseen":
		return Unseen{text}
	case "order":
		o := Order{ID: "h-ordered", Who: "ann", Why: "flood"}
		if d.HasArg("override") {
			o.Override = strings.Split(scanned(t, d, "override", ""), "+")
		}
		return o
	case "halted":
		e := Halted{Position: uint64(scanned(t, d, "position", 100))}
		if d.HasArg("aa") {
			e.Survivors = map[topo.SiteID]uint64{"aa": uint64(scanned(t, d, "aa", 0))}
		}
		return e
	case "unhalted":
		return Unhalted{}
	case "take-stands":
		return TakeStands{Version: uint64(scanned(t, d, "version", 5)), Taken: testTaken}
	case "given-up":
		return GivenUp{}
	case "conflict":
		return Conflict{Verb(scanned(t, d, "do", "take"))}
	case "refused":
		return Refused{[]Problem{{Check: "ownership", Text: text}}}
	case "observed":
		phase := Phase(scanned(t, d, "phase", ""))
		if phase == "" {
			return Observed{}
		}
		r := v.look.Record
		r.Phase, r.Decided, r.Outcome, r.Reasons = phase, 5, "", nil
		if phase == Aborted {
			r.Outcome, r.Decided = OutcomeRefused, 0
		}
		if phase == Done {
			r.Outcome = OutcomeDone
		}
		return Observed{true, r}
	case "failed":
		return Failed{Do: Verb(scanned(t, d, "do", "")), Text: text}
	}
	d.Fatalf(t, "unknown command %s", d.Cmd)
	return nil
}

func (v *vigil) run(t *testing.T, d *datadriven.TestData) string {
	if d.HasArg("wait") {
		v.now = v.now.Add(duration(t, d, scanned(t, d, "wait", "")))
	}
	switch d.Cmd {
	case "start":
		v.shown, v.lease = Facts{}, LeaseSeen{}
		v.look = NewLookout(testPolicy(Mode(scanned(t, d, "mode", "automatic"))), v.now)
		return v.print(nil)
	case "explain":
		var b strings.Builder
		for _, c := range v.look.Conditions(Ask{Manual: d.HasArg("manual")}, v.now) {
			mark := "  "
			if c.Met {
				mark = "ok"
			}
			fmt.Fprintf(&b, "%s %-12s %s\n", mark, c.Rule, c.Text)
			if c.Hint != "" {
				fmt.Fprintf(&b, "                → %s\n", c.Hint)
			}
		}
		return b.String() + v.look.Verdict(v.now) + "\n"
	case "record":
		out, err := json.MarshalIndent(v.look.Record, "", "  ")
		if err != nil {
			d.Fatalf(t, "%v", err)
		}
		if _, err := DecodeRecord(out); err != nil {
			return err.Error()
		}
		return string(out)
	}
	var todo []Action
	v.look, todo = Observe(v.look, v.event(t, d), v.now)
	return v.print(todo)
}

func (v *vigil) print(todo []Action) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", v.now.Sub(noon), v.look.Stage)
	if v.look.UnderWay() || v.look.Stage == TakenOver {
		fmt.Fprintf(&b, " %s", v.look.Record.ID)
	}
	if v.look.stop != "" && v.look.UnderWay() {
		fmt.Fprintf(&b, " against it: %s", v.look.stop)
	}
	if wake := v.look.Wake(); !wake.IsZero() {
		fmt.Fprintf(&b, "; wake at %s", wake.Sub(noon))
	}
	b.WriteString("\n")
	for _, a := range todo {
		fmt.Fprintf(&b, "  -> %s\n", a)
	}
	return b.String()
}

// TestFailoverScenarios plays the stories in testdata/failover. Run with -rewrite after a change that is meant.
func TestFailoverScenarios(t *testing.T) {
	datadriven.Walk(t, "testdata/failover", func(t *testing.T, path string) {
		v := &vigil{now: noon}
		datadriven.RunTest(t, path, v.run)
	})
}
