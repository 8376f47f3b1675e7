package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/topo"
)

// SwitchFigures are what switches cost.
type SwitchFigures struct {
	Switches
	Held    Quantiles     `json:"held_ms"`         // per request that a switch made wait, as the gateway says
	Steps   []StepFigures `json:"steps_ms"`        // what the pause is made of
	Waited  int           `json:"put_off"`         // for more than a second, because a site was behind
	GaveUp  int           `json:"gave_up"`         // requests of registers that were not answered within a second; their clients ask again
	Slowest []Slow        `json:"slowest_buckets"` // the longest pause of each of the slowest switches
	Run     []string      `json:"run,omitempty"`   // every switch
}

// Slow is the longest pause within one switch.
type Slow struct {
	Handover topo.HandoverID `json:"handover"`
	From     topo.SiteID     `json:"from"`
	To       topo.SiteID     `json:"to"`
	Buckets  int             `json:"buckets"`
	At       string          `json:"at"`
	PauseMS  float64         `json:"pause_ms"`
}

// mostSlow is how many of the slowest switches a report names.
const mostSlow = 10

// FailoverFigures are what losses of a site cost, under one lease.
type FailoverFigures struct {
	LeaseS   float64       `json:"lease_s"`
	WS       float64       `json:"w_s"`
	Lost     int           `json:"lost"`   // sites that were killed
	Count    int           `json:"count"`  // that were taken over, wholly
	RTO      Quantiles     `json:"rto_ms"` // from the kill to the first acknowledged write, per taken bucket that is written all the time
	Opened   Quantiles     `json:"opened_after_ms"`
	RPO      int           `json:"rpo_writes"` // of all losses: acknowledged by the lost site alone
	Applied  int           `json:"applied_after_return"`
	Logged   int           `json:"in_conflict_log"`
	Missing  int           `json:"acknowledged_missing_after_return"`
	Unwell   []string      `json:"not_well_after_return,omitempty"` // what was not in order when the next one was lost, or at the end
	BySite   []LossFigures `json:"losses,omitempty"`
	rto      []time.Duration
	opened   []time.Duration
	examples []string
}

// LossFigures are one loss.
type LossFigures struct {
	Failovers
	SinceRenewalMS int64 `json:"killed_after_renewal_ms"` // by the taker's sight of the renewal
}

// measure reads the evidence, judges it and makes the part's figures.
func (b *switchBench) measure(ctx context.Context) (*SwitchBenchPart, error) {
	e, err := b.gather(ctx)
	if err != nil {
		return nil, err
	}
	p := &SwitchBenchPart{Part: b.part.name, CPU: b.cpu, Commit: b.opts.Commit, Seed: b.opts.Seed, RTTms: float64(b.demo.opts.RTT.Microseconds()) / 1000,
		Requests: b.requests(e.ops), Reasons: reasonsOf(e.ops), Checks: map[string]string{}}
	if b.broken != nil {
		p.Broken = b.broken.Error()
	}
	if b.part.failover {
		p.Failover = b.failoverFigures(e)
	} else {
		p.Switch = b.switchFigures(e)
	}
	p.Details = b.check(e, p)
	for i := range p.Details {
		p.Checks[p.Details[i].Name] = p.Details[i].Result()
	}
	p.judge()
	if p.Environment, err = b.environment(ctx); err != nil {
		return nil, err
	}
	p.Seconds = round(time.Since(b.began).Seconds(), 1)
	if len(failingChecks(p.Details)) > 0 {
		return p, b.keepEvidence(e, p.Details)
	}
	return p, b.keepConflicts(e.Conflicts)
}

// check is what holds in every run of the lab; K7 is about those whom a switch or a failover does not concern.
func (b *switchBench) check(e *evidence, p *SwitchBenchPart) []Check {
	seats, _ := CheckSeats(e.shops, e.Conflicts)
	registers := append(e.ops[:len(e.ops):len(e.ops)], FinalReads(e.ops, e.shops, time.Now())...)
	out := []Check{CheckK1(e.Evidence, e.ops, b.demo.opts.Buckets), CheckK2(e.Evidence), CheckK3(e.ops, e.shops, e.Conflicts), CheckK4(registers, e.Conflicts, e.Losses), CheckK6(e.ops),
		seats, CheckEqual(e.hashes), CheckReleases(e.holds, e.Evidence), b.checkLoad(&Report{Requests: p.Requests}), b.checkAlive()}
	if p.Failover == nil {
		return append(out, checkFailures(b.failuresOfSwitches(e.ops)), checkPauses(p.Switch))
	}
	out = append(out, checkFailures(append(b.failuresOfSwitches(e.ops), b.failuresOfOutages(e.ops, e.Epochs)...)), checkReturns(p.Failover))
	if p.Failover.RPO > 0 || len(tailsOf(e.Evidence)) > 0 { // a kill may well leave none
		tail := CheckTail(e.Evidence)
		p.Failover.account(&tail)
		out = append(out, tail)
	}
	return out
}

// switchFigures measures the switches but those that spread the users at the beginning.
func (b *switchBench) switchFigures(e *evidence) *SwitchFigures {
	runs := b.of(nominal)
	out := &SwitchFigures{Switches: b.sumUp(e, runs)}
	out.Waited = b.waited
	out.FailedRequests = 0 // of the whole part: nothing is broken in it, so nothing else can be at fault
	for i := range e.ops {
		switch o := &e.ops[i]; {
		case o.gaveUp():
			out.GaveUp++
		case o.Failed():
			out.FailedRequests++
		}
	}
	out.Held = quantiles(b.holdsOf(e.ops, runs))
	out.Steps = stepsOf(runs)
	out.Slowest, out.Run = slowest(b.longestPauses(e, runs)), describe(runs, b.loaded[0])
	return out
}

// StepFigures are how long one step of the switches took, on the clock of their drivers.
type StepFigures struct {
	Step string `json:"step"`
	Quantiles
}

// stepsOf says what the pauses are made of.
func stepsOf(runs []switchRun) []StepFigures {
	names := []string{"gateways settle", "old owner's fence closes", "new owner catches up", "store commits", "new owner's fence opens"}
	took := make([][]time.Duration, len(names))
	for _, s := range runs {
		at := map[string]time.Time{}
		var settled time.Duration
		for _, step := range s.record.Steps {
			at[step.Phase] = step.At
			if f := step.Facts[handover.FactClosing]; f != "" {
				settled, _ = time.ParseDuration(f)
			}
		}
		moving := at[string(handover.Moving)]
		ends := []time.Time{moving.Add(settled), at[string(handover.Fenced)], at[string(handover.CaughtUp)], at[string(handover.Committed)], at[string(handover.Opened)]}
		if moving.IsZero() || settled == 0 || slices.ContainsFunc(ends, time.Time.IsZero) {
			continue // it did not come to its end, or changed its driver
		}
		for i, from := range append([]time.Time{moving}, ends[:len(ends)-1]...) {
			took[i] = append(took[i], ends[i].Sub(from))
		}
	}
	out := make([]StepFigures, len(names))
	for i := range names {
		out[i] = StepFigures{names[i], quantiles(took[i])}
	}
	return out
}

// holdsOf lists how long requests waited for one of the switches.
func (b *switchBench) holdsOf(ops []Operation, runs []switchRun) []time.Duration {
	var out []time.Duration
	for i := range ops {
		o := &ops[i]
		if o.HeldMS == 0 {
			continue
		}
		for _, s := range runs {
			if b.touches(o, s) {
				out = append(out, time.Duration(o.HeldMS)*time.Millisecond)
				break
			}
		}
	}
	return out
}

// longestPauses finds the longest pause within each switch.
func (b *switchBench) longestPauses(e *evidence, runs []switchRun) []Slow {
	opened := openingsOf(e.Evidence)
	var out []Slow
	for _, s := range runs {
		longest := Slow{From: s.from, To: s.to, Buckets: s.buckets.Len()}
		for _, p := range pausesOf(e.holds, handoversOf(s, e.Epochs), opened) {
			if ms := round(p.length().Seconds()*1000, 1); ms > longest.PauseMS {
				longest.Handover, longest.At, longest.PauseMS = p.handover, clock(p.from), ms
			}
		}
		if longest.Handover != "" {
			out = append(out, longest)
		}
	}
	return out
}

func describe(runs []switchRun, begin time.Time) []string {
	var out []string
	for _, s := range runs {
		line := fmt.Sprintf("%.1f s: %d buckets %s → %s, took %d ms", s.start.Sub(begin).Seconds(), s.buckets.Len(), s.from, s.to, s.end.Sub(s.start).Milliseconds())
		if s.err != nil {
			line += ": " + firstLine(s.err.Error())
		}
		out = append(out, line)
	}
	return out
}

// failoverFigures measures every loss by itself, and all of them together.
func (b *switchBench) failoverFigures(e *evidence) *FailoverFigures {
	out := &FailoverFigures{LeaseS: b.part.lease.Duration.Seconds(), WS: b.part.lease.W.Seconds(), Unwell: b.unwell}
	for _, o := range b.outages {
		if o.killed.IsZero() {
			continue
		}
		one := LossFigures{Failovers: b.sumUpOutage(o, e)}
		if o.record.Failover != nil && len(o.record.Steps) > 0 {
			one.SinceRenewalMS = o.killed.Sub(lossIn(o.record, nil).Killed).Milliseconds()
		}
		loss, _ := o.loss(e.Epochs)
		rto := RTOOfAny(e.ops, loss, o.buckets[users].Buckets(), b.demo.opts.Buckets)
		one.RTOms = quantiles(rto)
		out.add(one, rto)
	}
	out.RTO, out.Opened = quantiles(out.rto), quantiles(out.opened)
	return out
}

// add enters a loss. One that was not taken over counts with the times that its buckets were tried in vain.
func (f *FailoverFigures) add(one LossFigures, rto []time.Duration) {
	f.Lost++
	f.Count += one.Count
	f.rto = append(f.rto, rto...)
	if one.Count > 0 {
		f.opened = append(f.opened, time.Duration(one.OpenedAfterMS)*time.Millisecond)
	}
	f.RPO, f.Applied, f.Logged, f.Missing = f.RPO+one.RPOWrites, f.Applied+one.AppliedAfterReturn, f.Logged+one.InConflictLog, f.Missing+one.MissingAfterReturn
	f.examples = append(f.examples, one.examples...)
	f.BySite = append(f.BySite, one)
}

// account adds to a check of the tail what clients say.
func (f *FailoverFigures) account(c *Check) {
	for _, example := range f.examples {
		c.found("%s", example)
	}
	if more := f.Missing - len(f.examples); more > 0 {
		c.Violated += more
	}
	if left := f.RPO - f.Applied - f.Logged - f.Missing; left > 0 {
		c.found("%d writes are neither applied nor logged nor missing", left)
	}
	c.Looked += fmt.Sprintf("; %d acknowledged writes, %d applied, %d in the conflict log", f.RPO, f.Applied, f.Logged)
}

// checkPauses: the gateways' logs and the clients' answers show the switches that the databases show.
func checkPauses(f *SwitchFigures) Check {
	c := Check{Name: "pauses", Claim: "every moved bucket's pause is in the gateways' logs, and requests were held",
		Looked: fmt.Sprintf("%d buckets in %d switches, %d pauses, %d held requests", f.Buckets, f.Count, f.WritePauseMS.Count, f.Held.Count)}
	if f.WritePauseMS.Count < f.Buckets {
		c.found("the gateways' logs show pauses of %d buckets; %d were moved", f.WritePauseMS.Count, f.Buckets)
	}
	if f.Count == 0 || f.Held.Count == 0 {
		c.found("nothing was moved, or no request was held: the load missed the moved buckets")
	}
	return c
}

// checkReturns: every lost site was taken over without anybody's doing, came back and was settled.
func checkReturns(f *FailoverFigures) Check {
	c := Check{Name: "failover", Claim: "every lost site was taken over by itself, came back and was settled", Looked: fmt.Sprintf("%d losses, %d pairs of a bucket and its first write", f.Lost, f.RTO.Count)}
	for i := range f.BySite {
		one := &f.BySite[i]
		name := fmt.Sprintf("loss %d, of %s", i+1, one.Lost)
		switch {
		case one.Problem != "":
			c.found("%s: %s", name, one.Problem)
		case one.Handover == "" || !one.Automatic:
			c.found("%s: there is no record of an automatic failover to %s", name, one.Taker)
		case one.RTOms.Count == 0:
			c.found("%s: nobody wrote to its buckets", name)
		}
	}
	if f.Lost == 0 {
		c.Error = "no site was lost"
	}
	return c
}

// missing says for a message what was not kept.
func (p *SwitchBenchPart) missing() []string {
	var out []string
	for _, m := range p.Musts {
		if !m.Met {
			out = append(out, fmt.Sprintf("%s: %s", m.Name, number(m.Got)))
		}
	}
	if failing := failingChecks(p.Details); len(failing) > 0 {
		out = append(out, "checks "+strings.Join(failing, " "))
	}
	if p.Broken != "" {
		out = append(out, p.Broken)
	}
	return out
}
