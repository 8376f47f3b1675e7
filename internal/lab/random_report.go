package lab

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// RandomReport is out/lab-random.json.
type RandomReport struct {
	OK          bool              `json:"ok"`
	Sites       int               `json:"sites"`
	Seeds       []Seed            `json:"seeds"`
	Workload    []string          `json:"workload"`
	Runs        []RandomRun       `json:"runs"`
	Requests    Counts            `json:"requests"` // of the judged episodes
	Sessions    SessionCounts     `json:"sessions"` // in one episode; the rest is of all of them
	Reasons     map[string]int    `json:"failed_requests_by_reason"`
	Handovers   RandomHandovers   `json:"handovers"`
	Faults      map[act]int       `json:"faults"` // by kind, those that were brought about
	LeftOut     int               `json:"left_out"`
	Packets     *Packets          `json:"packets,omitempty"` // between namespaces
	Checks      map[string]string `json:"checks"`            // pass or fail
	Details     []RandomCheck     `json:"check_details"`
	Episodes    []RandomEpisode   `json:"episodes"`
	Replay      string            `json:"replay,omitempty"` // the command that plays the violation again
	Environment Environment       `json:"environment"`
	Seconds     float64           `json:"seconds"`

	began   time.Time
	options *RandomOptions
	holds   []time.Duration
	opens   []time.Duration
	rtos    []time.Duration
}

// RandomRun is one of several runs of the same seeds.
type RandomRun struct {
	OK       bool     `json:"ok"`
	Episodes int      `json:"episodes"`
	Failing  []string `json:"failing,omitempty"` // checks
	Seconds  float64  `json:"seconds"`
}

// RandomHandovers sums up how handovers ended, and how long they took.
type RandomHandovers struct {
	SwitchesDone    int       `json:"switches_done"`
	SwitchesAborted int       `json:"switches_aborted"`
	SwitchesRefused int       `json:"switches_refused"`
	SwitchesUnknown int       `json:"switches_whose_operator_lost_sight"` // counted above by their records
	BucketsMoved    int       `json:"buckets_moved"`
	HeldMS          Quantiles `json:"held_ms"` // per switch that was done: from the claim to the open fence
	Failovers       int       `json:"failovers"`
	OpenMS          Quantiles `json:"open_ms"`          // per failover: from the last sight of a renewal to the open fence
	FirstWriteMS    Quantiles `json:"first_write_ms"`   // per bucket that a register writes: from there to the first acknowledged write
	Returns         int       `json:"settled_returns"`  // of lost sites
	RPOWrites       int       `json:"rpo_writes"`       // acknowledged by a lost site, and not at its taker
	Applied         int       `json:"applied"`          // of them, after the return
	Logged          int       `json:"in_conflict_log"`  // of them
	Missing         int       `json:"missing"`          // of them: a violation
	Conflicts       int       `json:"conflict_entries"` // row versions
}

// RandomCheck is a check over all episodes.
type RandomCheck struct {
	Name     string   `json:"name"`
	Claim    string   `json:"claim"`
	Episodes int      `json:"episodes"` // in which there was something to look at
	Violated int      `json:"violated"`
	Examples []string `json:"examples,omitempty"`
}

// RandomEpisode is one episode.
type RandomEpisode struct {
	Seed          Seed         `json:"seed"`
	Double        bool         `json:"double,omitempty"`
	OK            bool         `json:"ok"`
	Steps         []RandomStep `json:"schedule"`
	Requests      Counts       `json:"requests"`
	Failovers     []string     `json:"failovers,omitempty"` // a → b
	SettledAfterS float64      `json:"settled_after_s"`
	Seconds       float64      `json:"seconds"`
}

// RandomStep is a step of a schedule as it was played.
type RandomStep struct {
	What    string  `json:"what"`
	AtS     float64 `json:"at_s"` // as drawn
	Kind    act     `json:"kind"`
	BeganMS int64   `json:"began_ms"` // from the beginning of the episode's load
	EndedMS int64   `json:"ended_ms"`
	Outcome string  `json:"outcome,omitempty"`
	LeftOut string  `json:"left_out,omitempty"`
	Healing string  `json:"healing_failed,omitempty"` // which the recovery mended
}

func newRandomReport(o *RandomOptions) *RandomReport {
	return &RandomReport{OK: true, Sites: len(o.Sites), Seeds: o.Seeds, Workload: o.Workload, Reasons: map[string]int{}, Faults: map[act]int{},
		Checks: map[string]string{}, Details: []RandomCheck{}, Episodes: []RandomEpisode{}, began: time.Now(), options: o}
}

func (r *RandomReport) seedList() string {
	var out []string
	for _, s := range r.Seeds {
		out = append(out, s.String())
	}
	return strings.Join(out, ",")
}

// add enters a judged episode.
func (r *RandomReport) add(e *episode) {
	out := RandomEpisode{Seed: e.schedule.Seed, Double: e.schedule.Double, OK: e.passed(), Requests: e.ops, SettledAfterS: round(e.settledAfter.Seconds(), 1), Seconds: round(e.took.Seconds(), 1)}
	for i := range e.steps {
		p := &e.steps[i]
		out.Steps = append(out.Steps, RandomStep{What: p.what(), AtS: p.At.Seconds(), Kind: p.Do, BeganMS: p.began.Sub(e.loaded[0]).Milliseconds(),
			EndedMS: p.ended.Sub(e.loaded[0]).Milliseconds(), Outcome: p.outcome, LeftOut: p.leftOut, Healing: p.unhealed})
		switch {
		case p.leftOut != "":
			r.LeftOut++
		case p.Do != actSwitch && p.Do != actCatalog:
			r.Faults[p.Do]++
		}
		if p.outcome == "unknown" {
			r.Handovers.SwitchesUnknown++
		}
	}
	r.Requests.sum(e.ops)
	r.Sessions.sum(e.sessions)
	for reason, n := range e.reasons {
		r.Reasons[reason] += n
	}
	h := &r.Handovers
	for _, s := range e.handovers {
		if s.Outcome == "done" {
			h.BucketsMoved += s.Count
			if s.Pause != nil {
				r.holds = append(r.holds, time.Duration(s.Pause.HoldMS*float64(time.Millisecond)))
			}
		}
	}
	h.SwitchesDone, h.SwitchesAborted, h.SwitchesRefused = h.SwitchesDone+e.switches("done"), h.SwitchesAborted+e.switches("aborted"), h.SwitchesRefused+e.switches("refused")
	h.Conflicts += e.conflicts
	for i := range e.failovers {
		f := &e.failovers[i]
		out.Failovers = append(out.Failovers, fmt.Sprintf("%s → %s", f.record.From, f.record.To))
		h.Failovers++
		if f.record.Failover.Return != nil {
			h.Returns++
		}
		h.RPOWrites, h.Applied, h.Logged, h.Missing = h.RPOWrites+f.rpo.RPOWrites, h.Applied+f.rpo.Applied, h.Logged+f.rpo.Logged, h.Missing+f.rpo.Missing
		if !f.loss.Opened.IsZero() {
			r.opens = append(r.opens, f.loss.Opened.Sub(f.loss.Killed))
		}
		r.rtos = append(r.rtos, f.rto...)
	}
	for i := range e.checks {
		r.addCheck(&e.checks[i])
	}
	if !out.OK && r.Replay == "" {
		r.Replay = r.replay(out.Seed)
	}
	r.Episodes = append(r.Episodes, out)
}

func (r *RandomReport) addCheck(c *Check) {
	i, seen := slices.BinarySearchFunc(r.Details, c.Name, func(d RandomCheck, name string) int { return strings.Compare(d.Name, name) })
	if !seen {
		r.Details = slices.Insert(r.Details, i, RandomCheck{Name: c.Name, Claim: c.Claim})
	}
	sum := &r.Details[i]
	sum.Episodes++
	sum.Violated += c.Violated
	sum.Examples = append(sum.Examples, c.Examples...)
	if c.Error != "" {
		sum.Violated++
		sum.Examples = append(sum.Examples, "could not be done: "+c.Error)
	}
	sum.Examples = sum.Examples[:min(len(sum.Examples), maxExamples)]
	r.Checks[c.Name] = map[bool]string{true: "pass", false: "fail"}[sum.Violated == 0]
}

// replay is the command that plays one episode again, five times.
func (r *RandomReport) replay(s Seed) string {
	more := ""
	if r.Sites != 2 {
		more = fmt.Sprintf(" SITES=%d", r.Sites)
	}
	if len(r.Workload) == 1 {
		more += " WORKLOAD=" + r.Workload[0]
	}
	if len(r.Environment.Planted) > 0 {
		more += " PLANT=" + r.Environment.Planted[0]
	}
	if flags := r.options.flags(); flags != "" {
		more += fmt.Sprintf(" FLAGS=%q", flags)
	}
	return fmt.Sprintf("make lab-replay SEED=%s%s RUNS=5", s, more)
}

// flags are those of the command line that are not as they are by themselves, and that a schedule or its course depends on.
func (o *RandomOptions) flags() string {
	var out []string
	usual := Options{}
	usual.setDefaults()
	if o.NoWitness {
		out = append(out, "--no-witness")
	}
	if o.Gateways != usual.Gateways {
		out = append(out, fmt.Sprintf("--gateways %d", o.Gateways))
	}
	if o.RTT != usual.RTT {
		out = append(out, fmt.Sprintf("--rtt %v", o.RTT))
	}
	if o.Pooler != usual.Pooler {
		out = append(out, "--pooler "+o.Pooler)
	}
	if o.Netns {
		out = append(out, "--netns")
	}
	return strings.Join(out, " ")
}

func (r *RandomReport) endRun(ok bool, took time.Duration) {
	run := RandomRun{OK: ok, Seconds: round(took.Seconds(), 1)}
	before := 0
	for _, earlier := range r.Runs {
		before += earlier.Episodes
	}
	run.Episodes = len(r.Episodes) - before
	if !ok {
		run.Failing = r.failing()
	}
	r.OK = r.OK && ok
	r.Runs = append(r.Runs, run)
}

// failing names the checks that found something.
func (r *RandomReport) failing() []string {
	var out []string
	for _, c := range r.Details {
		if c.Violated > 0 {
			out = append(out, c.Name)
		}
	}
	return out
}

// publish writes the report to its folder and shows it.
func (r *RandomReport) publish(o *RandomOptions, s *screen) error {
	h := &r.Handovers
	h.HeldMS, h.OpenMS, h.FirstWriteMS = quantiles(r.holds), quantiles(r.opens), quantiles(r.rtos)
	r.Seconds = round(time.Since(r.began).Seconds(), 1)
	r.Environment.LoadAfter = loadAverage()
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic("BUG: report does not marshal: " + err.Error())
	}
	data = append(data, '\n')
	err = errors.Join(os.WriteFile(filepath.Join(o.Out, "lab-random.json"), data, 0o644),
		os.WriteFile(filepath.Join(o.Out, "lab-random.txt"), []byte(r.text(&screen{})), 0o644))
	if err != nil {
		return fmt.Errorf("lab: report: %w", err)
	}
	if o.JSON {
		_, err = o.Stdout.Write(data)
	} else {
		_, err = io.WriteString(o.Stdout, r.text(s))
	}
	return err
}

// text is the report for people; s decides on colours.
func (r *RandomReport) text(s *screen) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	failed := len(r.Runs) - len(slices.DeleteFunc(slices.Clone(r.Runs), func(run RandomRun) bool { return !run.OK }))
	line("")
	if r.OK {
		line("%s  0 violations in %d episodes (%.0f s)", s.paint(green, "OK"), len(r.Episodes), r.Seconds)
	} else {
		line("%s  %s, in %d of %d runs (%.0f s)", s.paint(red, "VIOLATED"), strings.Join(r.failing(), ", "), failed, len(r.Runs), r.Seconds)
	}
	if len(r.Environment.Planted) > 0 {
		line("  planted: %s; caught by: %s", strings.Join(r.Environment.Planted, ", "), cmp.Or(strings.Join(r.failing(), ", "), "nothing"))
	}
	if len(r.Runs) > 1 {
		line("  rate of failures: %d of %d runs", failed, len(r.Runs))
	}
	line("\n%s", s.paint(bold, "Checks, each episode by itself, from the databases and the clients' history"))
	for _, c := range r.Details {
		word := s.paint(green, "pass ")
		if c.Violated > 0 {
			word = s.paint(red, "FAIL ")
		}
		line("  %s  %-12s %3d episodes  %s", word, c.Name, c.Episodes, c.Claim)
		for _, example := range c.Examples {
			line("                      - %s", example)
		}
	}
	r.figures(line, s)
	if r.Replay != "" {
		line("\n%s", s.paint(bold, "Again"))
		line("  %s", r.Replay)
	}
	return b.String()
}

func (r *RandomReport) figures(line func(string, ...any), s *screen) {
	h := r.Handovers
	line("\n%s", s.paint(bold, "Operations"))
	line("  %d answered (%d refused by the shop), %d failed (%d of unknown outcome); %d writes, %d held", r.Requests.OK, r.Requests.Refused, r.Requests.Failed, r.Requests.Unknown, r.Requests.Writes, r.Requests.Held)
	for _, reason := range slices.SortedFunc(maps.Keys(r.Reasons), func(a, b string) int {
		return cmp.Or(cmp.Compare(r.Reasons[b], r.Reasons[a]), strings.Compare(a, b))
	}) {
		line("  %8d  %s", r.Reasons[reason], reason)
	}
	if r.Sessions.Sessions > 0 {
		line("  %s", r.Sessions)
	}
	line("\n%s", s.paint(bold, "Handovers"))
	line("  switches   %d done with %d buckets, %d aborted, %d refused; of %d the operator lost sight", h.SwitchesDone, h.BucketsMoved, h.SwitchesAborted, h.SwitchesRefused, h.SwitchesUnknown)
	line("             writes held, ms: p50 %.0f, p99 %.0f, max %.0f", h.HeldMS.P50, h.HeldMS.P99, h.HeldMS.Max)
	line("  failovers  %d, %d returns settled; from the last sight of a renewal to the open fence, ms: p50 %.0f, max %.0f; to the first write of a bucket: p50 %.0f, max %.0f",
		h.Failovers, h.Returns, h.OpenMS.P50, h.OpenMS.Max, h.FirstWriteMS.P50, h.FirstWriteMS.Max)
	line("             %d acknowledged writes were a lost site's alone: %d applied, %d in a conflict log, %d missing", h.RPOWrites, h.Applied, h.Logged, h.Missing)
	line("\n%s", s.paint(bold, "Faults"))
	for _, kind := range slices.Sorted(maps.Keys(r.Faults)) {
		line("  %8d  %s", r.Faults[kind], kind)
	}
	if r.LeftOut > 0 {
		line("  %8d  steps left out: what they need was not there", r.LeftOut)
	}
	if p := r.Packets; p != nil {
		line("  packets    %d passed, %d dropped by cuts and resets, %d lost", p.Passed, p.Dropped, p.Lost)
	}
	e := r.Environment
	line("\n%s", s.paint(bold, "Where"))
	line("  %d cores, %d MiB, Linux %s, PostgreSQL %s, %s; %d sites %s a witness, RTT %.0f ms, all on one machine%s; load average %.1f before, %.1f after",
		e.Cores, e.MemoryMiB, e.Kernel, e.PostgreSQL, e.Atoll, e.Sites, map[bool]string{true: "and", false: "without"}[e.Witness], e.RTTms, e.ground(), e.LoadBefore, e.LoadAfter)
}

// sentence sums an episode up while the run goes on.
func (e *episode) sentence() string {
	verdict := "all checks passed"
	if !e.passed() {
		var names []string
		for i := range e.checks {
			if !e.checks[i].Passed() {
				names = append(names, e.checks[i].Name)
			}
		}
		verdict = "VIOLATED: " + strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s: %d answered, %d failed; %d switches done, %d aborted, %d refused; %d failovers; well again after %.1f s; %s", e.schedule.Seed, e.ops.OK, e.ops.Failed,
		e.switches("done"), e.switches("aborted"), e.switches("refused"), len(e.failovers), e.settledAfter.Seconds(), verdict)
}
