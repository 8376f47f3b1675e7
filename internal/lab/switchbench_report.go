package lab

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// benchFolder is where the parts leave their reports, their evidence and their logs.
const benchFolder = "bench-switch"

// SwitchBenchPart is out/bench-switch/PART.json.
type SwitchBenchPart struct {
	Part        string            `json:"part"`
	OK          bool              `json:"ok"` // bounds kept, checks passed
	Commit      string            `json:"commit"`
	Seed        uint64            `json:"seed"`
	RTTms       float64           `json:"rtt_ms"`
	Switch      *SwitchFigures    `json:"switch,omitempty"`
	Failover    *FailoverFigures  `json:"failover,omitempty"`
	Musts       []Bound           `json:"musts"`
	Goals       []Bound           `json:"goals,omitempty"` // wanted and reported, never a reason to fail
	Checks      map[string]string `json:"checks"`
	Requests    Requests          `json:"requests"`
	Reasons     map[string]int    `json:"failed_requests_by_reason"`
	Broken      string            `json:"ended_early,omitempty"` // why
	Environment Environment       `json:"environment"`
	CPU         CPU               `json:"cpu"`
	Seconds     float64           `json:"seconds"`
	Details     []Check           `json:"check_details"`
}

// Bound is what a figure has to keep.
type Bound struct {
	Name    string  `json:"name"`
	AtLeast bool    `json:"at_least,omitempty"` // else at most
	Want    float64 `json:"want"`
	Got     float64 `json:"got"`
	Met     bool    `json:"met"`
}

// atMost is kept only if something was measured: no figure is not a small one.
func atMost(name string, want float64, got float64, measured bool) Bound {
	return Bound{Name: name, Want: want, Got: got, Met: measured && got <= want}
}

func atLeast(name string, want, got int) Bound {
	return Bound{Name: name, AtLeast: true, Want: float64(want), Got: float64(got), Met: got >= want}
}

// judge holds the figures to their bounds.
func (p *SwitchBenchPart) judge() {
	p.Musts, p.Goals = nil, nil
	if f := p.Switch; f != nil {
		pause, measured := f.WritePauseMS.P99, f.WritePauseMS.Count > 0
		p.Musts = []Bound{
			atLeast("switches", mustSwitches, f.Count),
			atMost("failed requests", 0, float64(f.FailedRequests), p.Requests.Total() > 0),
			atMost("write pause of a moved bucket, p99, ms (7 × RTT + 100)", 7*p.RTTms+100, pause, measured),
		}
		p.Goals = []Bound{atMost("write pause of a moved bucket, p99, ms (5 × RTT + 50)", 5*p.RTTms+50, pause, measured)}
	}
	if f := p.Failover; f != nil {
		under := fmt.Sprintf("lease %s s: ", number(f.LeaseS))
		p.Musts = []Bound{
			atLeast(under+"failovers", mustFailovers, f.Count),
			atMost(under+"sites that nobody took over", 0, float64(f.Lost-f.Count), f.Lost > 0),
			atMost(under+"first write of a taken bucket after the kill, p99, ms (1.01 × lease + W + 1 s)", round(1000*(1.01*f.LeaseS+f.WS+1), 0), f.RTO.P99, f.RTO.Count > 0),
		}
	}
	p.OK = p.Broken == "" && len(failingChecks(p.Details)) == 0 && !slices.ContainsFunc(p.Musts, func(b Bound) bool { return !b.Met })
}

// keep writes the part's report, behind all else: a part that breaks off leaves the earlier one.
func (p *SwitchBenchPart) keep(out string) error {
	if err := os.WriteFile(filepath.Join(out, benchFolder, p.Part+".json"), marshalReport(p), 0o644); err != nil {
		return fmt.Errorf("lab: report: %w", err)
	}
	return nil
}

func marshalReport(r any) []byte {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		panic("BUG: report does not marshal: " + err.Error())
	}
	return append(data, '\n')
}

// SwitchBenchReport is out/bench-switch.json: what the parts' reports say together. A part that was not played yet is
// missing, and then it is not all right.
type SwitchBenchReport struct {
	OK       bool              `json:"ok"`
	Switches int               `json:"switches"`
	Failed   int               `json:"failed_requests"`
	RTTms    float64           `json:"rtt_ms"`
	Pause    Quantiles         `json:"write_pause_ms"` // per moved bucket
	Held     Quantiles         `json:"held_ms"`        // per held request
	Steps    []StepFigures     `json:"steps_ms"`       // what the pauses are made of
	Losses   []FailoverFigures `json:"failovers"`      // by lease
	Musts    []Bound           `json:"musts"`
	Goals    []Bound           `json:"goals"`
	Checks   map[string]string `json:"checks"` // pass only where every part passes
	Parts    []PartState       `json:"parts"`
	Missing  []string          `json:"missing_parts,omitempty"`
}

// PartState says where and when a part was measured.
type PartState struct {
	Part        string      `json:"part"`
	OK          bool        `json:"ok"`
	Commit      string      `json:"commit"`
	Seed        uint64      `json:"seed"`
	PerSecond   float64     `json:"requests_per_second"`
	WriteShare  float64     `json:"write_share"`
	Broken      string      `json:"ended_early,omitempty"`
	Failing     []string    `json:"failing,omitempty"` // checks
	Seconds     float64     `json:"seconds"`
	Environment Environment `json:"environment"`
	CPU         CPU         `json:"cpu"`
}

// mergeParts reads what the parts left.
func mergeParts(out string) (*SwitchBenchReport, error) {
	var parts []*SwitchBenchPart
	for _, part := range benchParts {
		path := filepath.Join(out, benchFolder, part.name+".json")
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var p *SwitchBenchPart
		if err == nil {
			p, err = parsePart(data, part)
		}
		if err != nil {
			return nil, fmt.Errorf("lab: %s: %w; play that part again with --part %s", path, err, part.name)
		}
		parts = append(parts, p)
	}
	return merge(parts), nil
}

// parsePart reads a part's report and refuses one that is another's, or whose figures are not there.
func parsePart(data []byte, part benchPart) (*SwitchBenchPart, error) {
	var p SwitchBenchPart
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return nil, err
	}
	switch {
	case p.Part != part.name:
		return nil, fmt.Errorf("it is the report of part %q", p.Part)
	case (p.Failover != nil) != part.failover || (p.Switch != nil) == part.failover || len(p.Musts) == 0 || len(p.Checks) == 0:
		return nil, errors.New("its figures or checks are missing")
	}
	return &p, nil
}

func merge(parts []*SwitchBenchPart) *SwitchBenchReport {
	r := &SwitchBenchReport{OK: true, Checks: map[string]string{}, Losses: []FailoverFigures{}, Musts: []Bound{}, Goals: []Bound{}, Parts: []PartState{}}
	for _, known := range benchParts {
		i := slices.IndexFunc(parts, func(p *SwitchBenchPart) bool { return p.Part == known.name })
		if i < 0 {
			r.OK, r.Missing = false, append(r.Missing, known.name)
			continue
		}
		r.add(parts[i])
	}
	return r
}

func (r *SwitchBenchReport) add(p *SwitchBenchPart) {
	r.OK = r.OK && p.OK
	r.Musts, r.Goals = append(r.Musts, p.Musts...), append(r.Goals, p.Goals...)
	for name, result := range p.Checks {
		if r.Checks[name] == "" || result != "pass" {
			r.Checks[name] = result
		}
	}
	r.Parts = append(r.Parts, PartState{Part: p.Part, OK: p.OK, CPU: p.CPU, Commit: p.Commit, Seed: p.Seed, PerSecond: p.Requests.PerSecond, WriteShare: p.Requests.WriteShare,
		Broken: p.Broken, Failing: failingChecks(p.Details), Seconds: p.Seconds, Environment: p.Environment})
	if f := p.Switch; f != nil {
		r.Switches, r.Failed, r.RTTms, r.Pause, r.Held, r.Steps = f.Count, f.FailedRequests, p.RTTms, f.WritePauseMS, f.Held, f.Steps
	}
	if f := p.Failover; f != nil {
		sum := *f
		sum.BySite = nil // in the part's own report
		r.Losses = append(r.Losses, sum)
	}
}

// publish writes the report and shows it.
func (r *SwitchBenchReport) publish(o *SwitchBenchOptions, s *screen) error {
	data := marshalReport(r)
	if err := os.WriteFile(filepath.Join(o.Out, "bench-switch.json"), data, 0o644); err != nil {
		return fmt.Errorf("lab: report: %w", err)
	}
	var err error
	if o.JSON {
		_, err = o.Stdout.Write(data)
	} else {
		_, err = io.WriteString(o.Stdout, r.text(s))
	}
	return err
}

// text is the report for people; s decides on colours.
func (r *SwitchBenchReport) text(s *screen) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("\n%s", s.paint(bold, "What handovers cost"))
	row := func(what string, q Quantiles, of string) {
		line("  %-44s p50 %7.0f  p99 %7.0f  max %7.0f ms   over %d %s", what, q.P50, q.P99, q.Max, q.Count, of)
	}
	if r.Pause.Count > 0 {
		line("  %d switches, %d failed requests, RTT %s ms", r.Switches, r.Failed, number(r.RTTms))
		row("writes paused", r.Pause, "moved buckets")
		row("requests held", r.Held, "requests")
		for _, s := range r.Steps {
			row("  "+s.Step, s.Quantiles, "switches")
		}
	}
	for _, f := range r.Losses {
		line("  lease %s s, W %s s: %d of %d lost sites taken over", number(f.LeaseS), number(f.WS), f.Count, f.Lost)
		row("first write after the kill", f.RTO, "taken buckets that are written all the time")
		row("fence open after the kill", f.Opened, "losses")
		line("  %-44s %d, of which %d applied, %d in the conflict log, %d missing", "writes that only the lost site had", f.RPO, f.Applied, f.Logged, f.Missing)
	}
	line("\n%s", s.paint(bold, "Bounds"))
	bound := func(kind, bad string, v Bound) {
		word, than := s.paint(green, "met   "), "at most"
		if !v.Met {
			word = s.paint(bad, "missed")
		}
		if v.AtLeast {
			than = "at least"
		}
		line("  %s  %s  %s: %s, %s %s", word, kind, v.Name, number(v.Got), than, number(v.Want))
	}
	for _, v := range r.Musts {
		bound("must", red, v)
	}
	for _, v := range r.Goals {
		bound("goal", yellow, v)
	}
	line("\n%s", s.paint(bold, "Checks, each over a whole part, from the databases and the clients' history"))
	byResult := map[string][]string{}
	for _, name := range slices.Sorted(maps.Keys(r.Checks)) {
		byResult[r.Checks[name]] = append(byResult[r.Checks[name]], name)
	}
	for _, result := range slices.Sorted(maps.Keys(byResult)) {
		line("  %-5s  %s", s.paint(map[string]string{"pass": green}[result], result), strings.Join(byResult[result], ", "))
	}
	line("\n%s", s.paint(bold, "Where"))
	for _, p := range r.Parts {
		e := p.Environment
		line("  %-12s commit %s, seed %d, %s: %d cores, Linux %s, PostgreSQL %s, %d sites %s a witness, %d gateways; %.0f requests a second, %.0f %% writes, for %v; load average %.1f before, %.1f after, longest stall %d ms; %.2f cores busy, something waited for one in %.0f %% of the time",
			p.Part, cmp.Or(p.Commit, "unknown"), p.Seed, e.At, e.Cores, e.Kernel, e.PostgreSQL, e.Sites, map[bool]string{true: "and", false: "without"}[e.Witness], e.Gateways,
			p.PerSecond, 100*p.WriteShare, time.Duration(p.Seconds*float64(time.Second)).Round(time.Second), e.LoadBefore, e.LoadAfter, e.StallMS, p.CPU.Busy, 100*p.CPU.Waited)
	}
	if len(r.Missing) > 0 {
		line("  %s", s.paint(yellow, "not played yet: "+strings.Join(r.Missing, ", ")))
	}
	return b.String()
}

// slowest keeps the switches with the longest pauses.
func slowest(all []Slow) []Slow {
	slices.SortStableFunc(all, func(a, b Slow) int { return cmp.Compare(b.PauseMS, a.PauseMS) })
	return all[:min(len(all), mostSlow)]
}
