package lab

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// Report is out/demo.json.
type Report struct {
	OK             bool                 `json:"ok"`
	Requests       Requests             `json:"requests"`
	Sessions       SessionCounts        `json:"sessions"`
	Switch         Switches             `json:"switch"` // at the nominal round trip; failed and held count over all switches
	Spread         Switches             `json:"switch_spread"`
	UnderLag       Switches             `json:"switch_under_lag"`
	SlowWriters    Switches             `json:"switch_with_slow_writers"`
	InCircle       Switches             `json:"switch_in_circle"` // the same buckets through three sites, one link late
	AfterCut       Switches             `json:"switch_after_cut"`
	Home           Switches             `json:"switch_home"` // of what failovers took, back to the site that is well again
	Cut            Cut                  `json:"cut"`
	Failover       Failovers            `json:"failover"`
	Drills         map[string]Failovers `json:"drills"` // failovers under a fault of their own; their times are bound by it
	Checks         map[string]string    `json:"checks"`
	SitesEqual     bool                 `json:"sites_equal"`
	SeatsSoldTwice int                  `json:"seats_sold_twice"`
	Goals          []Goal               `json:"goals"`
	Environment    Environment          `json:"environment"`
	Seconds        float64              `json:"seconds"`
	Details        []Check              `json:"check_details"`

	nominal Switches // Switch with its own failed and held requests, for the table
}

// Requests sums up the whole run, the cut included.
type Requests struct {
	Counts
	PerSecond  float64 `json:"per_second"`
	WriteShare float64 `json:"write_share"`
}

// Switches measures a set of switches.
type Switches struct {
	Count          int       `json:"count"` // that moved all their buckets
	Tried          int       `json:"tried"`
	Buckets        int       `json:"buckets"`
	FailedRequests int       `json:"failed_requests"`
	HeldRequests   int       `json:"held_requests"`
	RTTms          float64   `json:"rtt_ms"`
	WritePauseMS   Quantiles `json:"write_pause_ms"` // per moved bucket
	TookMS         Quantiles `json:"took_ms"`        // per switch: the operator's command
	Errors         []string  `json:"errors,omitempty"`
}

// Cut says what the cut path did to requests. Failures are expected there: a customer of the other side cannot be
// reached; the two sides must not both write.
type Cut struct {
	Seconds            float64 `json:"seconds"`
	AnsweredRequests   int     `json:"answered_requests"`
	FailedRequests     int     `json:"failed_requests"`
	FailedAfter        int     `json:"failed_after_healing"`
	LastFailureAfterMS int64   `json:"last_failure_after_healing_ms"`
	CaughtUpAfterMS    int64   `json:"caught_up_after_healing_ms"` // until every site was less than a second behind
}

// Goal is a number that is wanted, and is reported, not asserted.
type Goal struct {
	Name string  `json:"name"`
	Want float64 `json:"want"` // at most
	Got  float64 `json:"got"`
	Met  bool    `json:"met"`
}

// Environment says where the numbers were measured.
type Environment struct {
	Cores      int      `json:"cores"`
	MemoryMiB  int      `json:"memory_mib"`
	Go         string   `json:"go"`
	PostgreSQL string   `json:"postgresql"`
	Kernel     string   `json:"kernel"`
	Atoll      string   `json:"atoll"`
	Planted    []string `json:"planted"`
	RTTms      float64  `json:"rtt_ms"`
	Sites      int      `json:"sites"`
	Witness    bool     `json:"witness"`
	Gateways   int      `json:"gateways"`
	Buckets    int      `json:"buckets"`
	Netns      bool     `json:"netns,omitempty"` // sites in network namespaces, packets between them
	At         string   `json:"at"`
	LoadBefore float64  `json:"load_average_before"` // of the machine, one minute
	LoadAfter  float64  `json:"load_average_after"`
	StallMS    int64    `json:"longest_stall_ms"` // the machine ran nothing of the lab for so long
}

// ground says in words what the sites stand on.
func (e *Environment) ground() string {
	if e.Netns {
		return ", each in a network namespace"
	}
	return ""
}

func (r *Report) failing() []string {
	var out []string
	for i := range r.Details {
		if !r.Details[i].Passed() {
			out = append(out, r.Details[i].Name)
		}
	}
	return out
}

func (m *demo) goals(r *Report, ops []Operation) []Goal {
	var quiet int // failures that neither a cut nor its aftermath explains
	for i := range ops {
		o := &ops[i]
		if o.Failed() && !o.overlaps(m.cut[0], m.loaded[1]) {
			quiet++
		}
	}
	pause := r.Switch.WritePauseMS.P99
	wantPause := 7*r.Switch.RTTms + 100
	all := []Goal{
		{"write pause of a moved bucket, p99, ms (7 × RTT + 100)", wantPause, pause, pause <= wantPause && r.Switch.WritePauseMS.Count > 0},
		{"requests failed before the cut", 0, float64(quiet), quiet == 0},
		{"failover, first write of a bucket after the kill, max, ms (1.01 × lease + W + 1 s, rounded up)", float64(goalRTO.Milliseconds()), r.Failover.RTOms.Max,
			r.Failover.RTOms.Count > 0 && r.Failover.RTOms.Max <= float64(goalRTO.Milliseconds())},
		{"last failure after the healing, ms", 3000, float64(r.Cut.LastFailureAfterMS), r.Cut.LastFailureAfterMS <= 3000},
		{"whole demonstration, s", 180, r.Seconds, r.Seconds <= 180},
	}
	skip := map[string]string{partSwitches: "failover", partFailover: "write pause"}[m.opts.Part]
	return slices.DeleteFunc(all, func(g Goal) bool { return skip != "" && strings.HasPrefix(g.Name, skip) })
}

func (m *demo) environment(ctx context.Context) (Environment, error) {
	e := Environment{Cores: runtime.NumCPU(), MemoryMiB: memoryMiB(), Go: runtime.Version(), Kernel: kernel(), Planted: []string{},
		RTTms: float64(m.opts.RTT.Microseconds()) / 1000, Sites: len(m.opts.Sites), Witness: m.opts.Witness != "", Gateways: m.opts.Gateways * len(m.opts.Sites),
		Buckets: m.opts.Buckets, Netns: m.opts.Netns, At: m.began.UTC().Format(time.RFC3339), LoadBefore: m.loadBefore, LoadAfter: loadAverage()}
	m.mu.Lock()
	e.StallMS = m.stall.Milliseconds()
	m.mu.Unlock()
	err := m.d.onDatabase(ctx, m.a(), func(db *pgx.Conn) error {
		return db.QueryRow(ctx, "SHOW server_version").Scan(&e.PostgreSQL)
	})
	if err != nil {
		return e, err
	}
	out, err := m.d.Processes.Run(ctx, Command{Name: "atoll --version", Path: m.opts.Atoll, Args: []string{"--version"}})
	e.Atoll = strings.TrimSpace(string(out))
	e.Planted = append(e.Planted, plantedIn(e.Atoll)...)
	return e, err
}

// plantedIn reads the bugs that a binary names in its version.
func plantedIn(version string) []string {
	_, names, found := strings.Cut(version, "planted: ")
	if !found {
		return nil
	}
	return strings.Split(strings.TrimSpace(names), ",")
}

func memoryMiB() int {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kib int
		if _, err := fmt.Sscanf(s.Text(), "MemTotal: %d kB", &kib); err == nil {
			return kib / 1024
		}
	}
	return 0
}

func loadAverage() float64 {
	var one float64
	if data, err := os.ReadFile("/proc/loadavg"); err == nil {
		_, _ = fmt.Sscan(string(data), &one) // 0 where the kernel has none
	}
	return one
}

func kernel() string {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return "unknown"
	}
	var out []byte
	for _, c := range u.Release {
		if c == 0 {
			break
		}
		out = append(out, byte(c))
	}
	return string(out)
}

func round(x float64, digits int) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	f := math.Pow10(digits)
	return math.Round(x*f) / f
}

// text is the report for people; s decides on colours.
func (r *Report) text(s *screen) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("")
	if r.OK {
		line("%s  every check passed (%.0f s)", s.paint(green, "OK"), r.Seconds)
	} else {
		line("%s  %s (%.0f s)", s.paint(red, "FAILED"), strings.Join(r.failing(), ", "), r.Seconds)
	}
	if len(r.Environment.Planted) > 0 {
		caught := strings.Join(r.failing(), ", ")
		if caught == "" {
			caught = s.paint(red, "nothing")
		}
		line("        planted: %s; caught by: %s", strings.Join(r.Environment.Planted, ", "), caught)
	}
	line("\n%s", s.paint(bold, "Checks, from the databases and the clients' history"))
	for i := range r.Details {
		r.Details[i].text(line, s)
	}
	line("\n%s", s.paint(bold, "Switches"))
	line("  %-26s %5s %8s %6s %7s   %s", "", "count", "buckets", "held", "failed", "writes paused, ms: p50, p99, max")
	for _, row := range []struct {
		name string
		s    Switches
	}{{"spread over the sites", r.Spread}, {"25 buckets, to and fro", r.nominal}, {"replication 500 ms late", r.UnderLag},
		{"slow writers", r.SlowWriters}, {"in a circle, one link late", r.InCircle}, {"after the cut", r.AfterCut}, {"home after a failover", r.Home}} {
		if row.s.Tried == 0 {
			continue
		}
		line("  %-26s %5d %8d %6d %7d   %7.0f %7.0f %7.0f", row.name, row.s.Count, row.s.Buckets, row.s.HeldRequests, row.s.FailedRequests,
			row.s.WritePauseMS.P50, row.s.WritePauseMS.P99, row.s.WritePauseMS.Max)
	}
	if len(r.Drills) > 0 || r.Failover.Lost != "" {
		r.failoverText(line, s)
	}
	line("\n%s", s.paint(bold, "Requests"))
	line("  %d answered, %d failed (%d of unknown outcome), %.0f a second, %.0f %% writes", r.Requests.OK, r.Requests.Failed, r.Requests.Unknown,
		r.Requests.PerSecond, 100*r.Requests.WriteShare)
	if r.Cut.Seconds > 0 {
		line("  path cut for %.0f s: %d answered, %d failed; after the healing %d failed, the last after %d ms;", r.Cut.Seconds, r.Cut.AnsweredRequests,
			r.Cut.FailedRequests, r.Cut.FailedAfter, r.Cut.LastFailureAfterMS)
		line("  all sites less than a second behind after %d ms", r.Cut.CaughtUpAfterMS)
	}
	line("\n%s", s.paint(bold, "Goals"))
	for _, g := range r.Goals {
		met := s.paint(green, "met   ")
		if !g.Met {
			met = s.paint(yellow, "missed")
		}
		line("  %s  %s: %s, wanted at most %s", met, g.Name, number(g.Got), number(g.Want))
	}
	e := r.Environment
	line("\n%s", s.paint(bold, "Where"))
	line("  %d cores, %d MiB, Linux %s, %s, PostgreSQL %s, %s; %d sites %s a witness, %d gateways, RTT %.0f ms, all on one machine%s",
		e.Cores, e.MemoryMiB, e.Kernel, e.Go, e.PostgreSQL, e.Atoll, e.Sites, map[bool]string{true: "and", false: "without"}[e.Witness], e.Gateways, e.RTTms, e.ground())
	line("  load average %.1f before, %.1f after; the longest time without a turn for the lab %d ms", e.LoadBefore, e.LoadAfter, e.StallMS)
	if e.StallMS > 1000 {
		line("  %s", s.paint(yellow, "This machine stood still or was overloaded: time-outs, ended leases and failed requests may come from that. Run it again on a quiet one."))
	}
	line("\n%s", s.paint(bold, "What to try next"))
	line("  make demo PLANT=marker-skipped   a build with a planted bug; the report names what caught it")
	line("  bin/atoll lab up                 the same sites, kept running: break them with `bin/atoll lab tell`")
	line("  bin/atoll validate --sample      the file that describes a deployment")
	return b.String()
}

func (c *Check) text(line func(string, ...any), s *screen) {
	word := s.paint(green, "pass ")
	switch c.Result() {
	case "fail":
		word = s.paint(red, "FAIL ")
	case "error":
		word = s.paint(red, "ERROR")
	}
	line("  %s  %-12s %s", word, c.Name, c.Claim)
	line("                      %s", s.paint(dim, "looked at: "+c.Looked))
	if c.Error != "" {
		line("                      could not be done: %s", c.Error)
	}
	for _, e := range slices.Concat(c.Examples) {
		line("                      - %s", e)
	}
	if more := c.Violated - len(c.Examples); more > 0 && len(c.Examples) > 0 {
		line("                      and %d more", more)
	}
}

func number(x float64) string {
	if x == math.Trunc(x) {
		return fmt.Sprintf("%.0f", x)
	}
	return fmt.Sprintf("%.1f", x)
}
