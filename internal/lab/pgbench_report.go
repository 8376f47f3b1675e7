package lab

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// BenchReport is out/pgbench.json.
type BenchReport struct {
	OK           bool                     `json:"ok"`
	Clients      int                      `json:"clients"`
	Scale        int                      `json:"scale"`
	Transactions BenchTransactions        `json:"transactions"`
	Lives        map[string]int           `json:"client_lives"` // how the clients' processes ended, and how often
	Adoption     BenchAdoption            `json:"adoption"`
	Switch       BenchSwitch              `json:"switch"`
	Failover     BenchFailover            `json:"failover"`
	Balances     map[topo.SiteID]Balances `json:"balances"`
	SitesEqual   bool                     `json:"sites_equal"`
	Checks       map[string]string        `json:"checks"`
	Details      []Check                  `json:"check_details"`
	Environment  Environment              `json:"environment"`
	Seconds      float64                  `json:"seconds"`
}

// BenchTransactions counts transactions, from the first one before anything of Atoll was there.
type BenchTransactions struct {
	Acknowledged int     `json:"acknowledged"` // that pgbench counted as done
	Missing      int     `json:"acknowledged_missing"`
	History      int     `json:"history_rows"`
	Logged       int     `json:"in_conflict_log"` // history rows that gave way when a lost site returned
	Unheard      int     `json:"unheard"`         // rows of which no client heard: its connection broke in the commit
	PerSecond    float64 `json:"per_second"`      // of the load's time, pauses included
}

// BenchAdoption is the bank's move into Atoll.
type BenchAdoption struct {
	Seconds      float64 `json:"seconds"`            // from the last moment without Atoll to two sites that are level
	SilentMS     int64   `json:"without_service_ms"` // longest time between two acknowledgements
	Acknowledged int     `json:"acknowledged"`       // transactions meanwhile
	Ended        int     `json:"clients_ended"`      // by the fence or a broken connection
}

// BenchSwitch is the switch under load.
type BenchSwitch struct {
	From     topo.SiteID `json:"from"`
	To       topo.SiteID `json:"to"`
	Outcome  string      `json:"outcome"`
	Phase    string      `json:"phase"`
	TookMS   int64       `json:"took_ms"`            // the operator's command
	ClosedMS float64     `json:"closed_ms"`          // from the closed fence at the old owner to the open one at the new, as its record says
	SilentMS int64       `json:"without_service_ms"` // between two acknowledgements of any client
	Ended    int         `json:"clients_ended"`      // by the fence or a broken connection
	Broken   int         `json:"connections_broken"` // of those: the transaction's outcome was not known to the client
	Error    string      `json:"error,omitempty"`
}

// examine reads the evidence and judges it.
func (b *bench) examine(ctx context.Context) (*BenchReport, error) {
	done, err := b.clients.acknowledged()
	if err != nil {
		return nil, err
	}
	e, err := b.evidence(ctx)
	if err != nil {
		return nil, err
	}
	runs := b.clients.lives()
	notes := slices.Concat(e.history, e.logged)
	present, unheard := CheckNotes(done, notes)
	r := &BenchReport{Clients: b.opts.Clients, Scale: b.opts.Scale, Balances: e.balances, Checks: map[string]string{}, Lives: map[string]int{},
		Transactions: BenchTransactions{Acknowledged: len(done), Missing: present.Violated, History: len(e.history), Logged: len(e.logged), Unheard: unheard,
			PerSecond: round(float64(countBetween(done, b.span[0], b.span[1]))/b.opts.Duration.Seconds(), 1)},
	}
	for _, run := range runs {
		r.Lives[run.How]++
	}
	r.Adoption = b.adoption(done, runs)
	r.Switch = b.switched(done, runs)
	r.Failover = b.failedOver(done, runs)
	r.Details = []Check{CheckBalances(e.balances), CheckEqual(e.hashes), present, CheckUnheard(unheard, r.Lives), b.checkMove(), b.checkLoss(r.Failover)}
	for i := range r.Details {
		r.Checks[r.Details[i].Name] = r.Details[i].Result()
	}
	r.SitesEqual = r.Checks["sites_equal"] == "pass"
	r.OK = len(failingChecks(r.Details)) == 0
	r.Environment, err = (&demo{opts: DemoOptions{Options: b.d.opts}, d: b.d, began: b.began, loadBefore: b.loadBefore}).environment(ctx)
	r.Seconds = round(time.Since(b.began).Seconds(), 1)
	return r, err
}

// CheckUnheard: a row of which no client heard is the work of a connection that broke, at most one of each.
func CheckUnheard(unheard int, lives map[string]int) Check {
	broken := lives[endedBroken]
	c := Check{Name: "no_doubles", Claim: "there are no more history rows of which no client heard than connections that broke within a transaction",
		Looked: fmt.Sprintf("%d such rows, %d such connections", unheard, broken)}
	if unheard > broken {
		c.found("%d rows that nobody wrote", unheard-broken)
	}
	return c
}

func (b *bench) checkMove() Check {
	c := Check{Name: "switched", Claim: "the switch was done under load", Looked: fmt.Sprintf("handover %s", b.move.record.ID)}
	switch {
	case b.move.err != nil:
		c.found("%v", b.move.err)
	case b.move.record.Outcome != "done":
		c.found("it ended %s: %s", b.move.record.Outcome, strings.Join(b.move.record.Reasons, "; "))
	}
	return c
}

func (b *bench) adoption(done []benchTx, runs []benchRun) BenchAdoption {
	from, to := b.adopting[0], b.adopting[1]
	ended, _ := endedBetween(runs, from, to)
	return BenchAdoption{Seconds: round(to.Sub(from).Seconds(), 1), SilentMS: silentFor(done, from, to).Milliseconds(), Acknowledged: countBetween(done, from, to), Ended: ended}
}

func (b *bench) switched(done []benchTx, runs []benchRun) BenchSwitch {
	m := b.move
	s := BenchSwitch{From: m.from, To: m.to, Outcome: m.record.Outcome, Phase: m.record.Phase, TookMS: m.end.Sub(m.start).Milliseconds(),
		SilentMS: silentFor(done, m.start, m.end).Milliseconds()}
	if m.record.Pause != nil {
		s.ClosedMS = round(m.record.Pause.ClosedMS, 1)
	}
	s.Ended, s.Broken = endedBetween(runs, m.start, m.end.Add(time.Second))
	if m.err != nil {
		s.Error = m.err.Error()
	}
	return s
}

// endedBetween counts the clients that ended before their time.
func endedBetween(runs []benchRun, from, to time.Time) (ended, broken int) {
	for _, r := range runs {
		if r.Ended.Before(from) || r.Ended.After(to) {
			continue
		}
		switch r.How {
		case endedFenced, endedLease:
			ended++
		case endedBroken:
			ended++
			broken++
		}
	}
	return ended, broken
}

func countBetween(done []benchTx, from, to time.Time) int {
	n := 0
	for _, t := range done {
		if t.end >= from.UnixMicro() && t.end <= to.UnixMicro() {
			n++
		}
	}
	return n
}

func failingChecks(checks []Check) []string {
	var out []string
	for i := range checks {
		if !checks[i].Passed() {
			out = append(out, checks[i].Name)
		}
	}
	return out
}

// text is the report for people; s decides on colours.
func (r *BenchReport) text(s *screen) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("")
	if r.OK {
		line("%s  every check passed (%.0f s)", s.paint(green, "OK"), r.Seconds)
	} else {
		line("%s  %s (%.0f s)", s.paint(red, "FAILED"), strings.Join(failingChecks(r.Details), ", "), r.Seconds)
	}
	line("\n%s", s.paint(bold, "Checks, from the databases and pgbench's own logs"))
	for i := range r.Details {
		r.Details[i].text(line, s)
	}
	t := r.Transactions
	line("\n%s", s.paint(bold, "The bank"))
	line("  %d transactions counted as done by pgbench, %.0f a second; %d rows of history, %d in a conflict log, %d of which no client heard",
		t.Acknowledged, t.PerSecond, t.History, t.Logged, t.Unheard)
	line("  adopted in %.1f s with %d transactions meanwhile; at most %d ms without one; %d clients ended by it", r.Adoption.Seconds, r.Adoption.Acknowledged,
		r.Adoption.SilentMS, r.Adoption.Ended)
	line("  switch %s → %s: %s; %d ms for the operator, closed for %.0f ms; %d ms without service, with the restart of the clients; %d clients ended by it, %d of them in the middle of a transaction",
		r.Switch.From, r.Switch.To, r.Switch.Outcome, r.Switch.TookMS, r.Switch.ClosedMS, r.Switch.SilentMS, r.Switch.Ended, r.Switch.Broken)
	f := r.Failover
	line("  failover %s → %s: first transaction %d ms after the kill (expected at most %d ms), %d ms without service, with the restart of the clients;", f.Lost, f.Taker, f.RTOms, f.ExpectedRTOms, f.SilentMS)
	line("    %d transactions were not at %s, the oldest from %d ms before the kill; after the return, settled in %d ms, %d rows of the tail stand and %d gave way",
		f.RPO, f.Taker, f.RPOms, f.SettledMS, f.AppliedRows, f.KeptRows)
	line("  lives of clients, by how they ended:")
	for _, how := range slices.Sorted(maps.Keys(r.Lives)) {
		line("    %5d  %s", r.Lives[how], how)
	}
	e := r.Environment
	line("\n%s", s.paint(bold, "Where"))
	line("  %d cores, %d MiB, Linux %s, PostgreSQL %s, %s; RTT %.0f ms, all on one machine; load average %.1f before, %.1f after",
		e.Cores, e.MemoryMiB, e.Kernel, e.PostgreSQL, e.Atoll, e.RTTms, e.LoadBefore, e.LoadAfter)
	return b.String()
}
