package main

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// contextUntil ends with the test's, or when stop is closed.
func contextUntil(t *testing.T, stop <-chan struct{}) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		select {
		case <-stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

func aStanding() api.Standing {
	return api.Standing{Site: "b", Of: "a", Known: true, Applied: 0x16B3748, HeardMS: 3400, WroteMS: 3600, LossMS: 310, Lease: true}
}

// takingOver answers like an agent that takes over, and keeps what it was asked for.
func (a *agents) takingOver(outcome string) *[]api.FailoverRequest {
	var asked []api.FailoverRequest
	var looks atomic.Int64
	over := aFailover()
	over.Outcome = outcome
	under := over
	under.Outcome, under.Phase = "", "TAKEN"
	a.answer("b", map[string]any{
		"POST /v1/failovers": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			var req api.FailoverRequest
			if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
				a.t.Error(err)
			}
			asked = append(asked, req)
			a.reply(api.FailoverAnswer{ID: "f1", DryRun: req.DryRun, Handover: under, Standing: aStanding()})(w, r)
		}),
		"GET /v1/handovers/f1": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch looks.Add(1) {
			case 1:
				a.reply(under)(w, r)
			case 2:
				a.reply(&api.Error{Status: 503, Code: api.CodeUnavailable, Message: "busy"})(w, r)
			default:
				a.reply(over)(w, r)
			}
		}),
	})
	return &asked
}

func TestFailover(t *testing.T) {
	t.Parallel()
	a := newAgents(t)
	asked := a.takingOver("done")
	out, err := a.run("failover", "--site", "a", "--dry-run")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantText(t, out, "site b would take over from site a", "about 310 ms of what site a acknowledged", "1 of catalog, 612 of users", "0/16B3748", "3.4 s ago; the link is down", "What happens")
	_, err = a.run("failover", "--site", "a")
	wantError(t, err, "say --yes")
	if len(*asked) != 1 || !(*asked)[0].DryRun {
		t.Fatalf("asked for %+v", *asked)
	}
	out, err = a.run("failover", "--site", "a", "--to", "b", "--yes", "--why", "fire", "--override", "max-loss,quiet-time")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantText(t, out, "failover f1 is done: site b has taken over from a", "lease out after 3030 ms, taken after 4055 ms, open after 4211 ms", "overridden", "atoll conflicts list --handover f1")
	if n := len(*asked); n != 3 || !(*asked)[1].DryRun || (*asked)[2].DryRun || (*asked)[2].Why != "fire" || len((*asked)[2].Override) != 2 || (*asked)[2].To != "b" {
		t.Fatalf("asked for %+v", *asked)
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"failover"}, []string{`"site" not set`}},
		{[]string{"failover", "--site", "z"}, []string{"--site z", "[a b]"}},
		{[]string{"failover", "--site", "w"}, []string{"--site w", "[a b]"}},
		{[]string{"failover", "--site", "a", "--to", "a"}, []string{"cannot take over from itself"}},
		{[]string{"failover", "--site", "b", "--yes"}, []string{"agent of site a", "does not answer"}},
	} {
		_, err := a.run(c.args...)
		wantError(t, err, c.want...)
	}
}

func TestFailoverThatIsRefused(t *testing.T) {
	t.Parallel()
	a := newAgents(t)
	a.answer("b", map[string]any{"POST /v1/failovers": &api.Error{Status: 409, Code: api.CodeRefused, Message: "the failover is refused; nothing was changed", Problems: []api.Problem{
		{Check: "lease", Site: "b", Text: "a's lease is in force for 2.1 s more", Hint: "wait, or use atoll switch"},
		{Check: "max-loss", Site: "b", Text: "40 s would be missing; allowed are 30 s", Hint: "override it"}}}})
	for _, args := range [][]string{{"--dry-run"}, {"--yes"}} {
		_, err := a.run(append([]string{"failover", "--site", "a"}, args...)...)
		wantError(t, err, "nothing was changed", "lease at b: a's lease is in force for 2.1 s more; wait, or use atoll switch", "max-loss at b", "--override NAME")
	}
	out, err := a.run("failover", "--site", "a", "--yes", "--json")
	var refused api.Error
	if jsonErr := json.Unmarshal([]byte(out), &refused); jsonErr != nil || err == nil || len(refused.Problems) != 2 {
		t.Errorf("%v, %v\n%s", err, jsonErr, out)
	}
}

func TestFailoverThatIsGivenUp(t *testing.T) {
	t.Parallel()
	a := newAgents(t)
	a.takingOver("refused")
	out, err := a.run("failover", "--site", "a", "--yes", "--json")
	if err == nil || exitStatus(err) != 1 || !strings.Contains(out, `"outcome": "refused"`) {
		t.Errorf("%v\n%s", err, out)
	}
	wantError(t, err, "f1 is refused", "nothing was taken")
}

func TestConfirm(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{"a\n": true, " a \r\n": true, "a": true, "": false, "b\n": false, "yes\n": false} {
		if err := confirm(strings.NewReader(text), "a"); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	a := newAgents(t)
	at := time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	last := aFailover()
	a.answer("b", map[string]any{"GET /v1/explain": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if got := r.URL.Query().Get("site"); got != "a" && got != "" {
			t.Errorf("asked about %q", got)
		}
		a.reply(api.Explanation{Site: "b", At: at, Mode: "automatic", Sites: []api.SiteExplanation{{Of: "a", Verdict: "b does not take over from a: a says that it serves", Standing: aStanding(), Last: &last,
			Reasons: []api.Reason{{Rule: "lease", Met: true, Text: "ran out 1.2 s ago"}, {Rule: "veto-serving", Text: "a says over the link\x1b[2J that it serves", Hint: "wait until the bound"}},
			History: []api.Happening{{At: at, Text: "the lease has run out"}}}}})(w, r)
	})})
	out, err := a.run("explain", "--site", "a")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantText(t, out, "site a, as b sees it", "(mode automatic)", "b does not take over from a", "met      lease", "NOT MET  veto-serving", "→ wait until the bound", "the lease has run out", "last failover: f1, done, a → b", "heard 3.4 s ago")
	if strings.Contains(out, "\x1b") {
		t.Error("an agent's text reaches the terminal as it is")
	}
	out, err = a.run("explain")
	if err != nil {
		t.Fatal(err)
	}
	wantText(t, out, "site a cannot say")
	out, err = a.run("explain", "--json")
	var doc struct{ Observers []observed }
	if jsonErr := json.Unmarshal([]byte(out), &doc); err != nil || jsonErr != nil || len(doc.Observers) != 2 || doc.Observers[0].Error == "" || doc.Observers[1].Sites[0].Of != topo.SiteID("a") {
		t.Errorf("%v, %v\n%s", err, jsonErr, out)
	}
	_, err = a.run("explain", "--site", "b") // a, which would know, does not answer
	wantError(t, err, "no agent could say")
}
