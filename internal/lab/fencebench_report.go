package lab

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
)

// FenceBenchReport is out/bench-fence.json.
type FenceBenchReport struct {
	Cases      []FenceCase `json:"cases"`
	GoalsMet   int         `json:"goals_met"`
	GoalsOf    int         `json:"goals_of"`
	Rounds     int         `json:"rounds"`
	TurnMS     int64       `json:"turn_ms"`
	CPU        string      `json:"cpu"` // whose CPU time is meant
	Cores      int         `json:"cores"`
	MemoryMiB  int         `json:"memory_mib"`
	Kernel     string      `json:"kernel"`
	PostgreSQL string      `json:"postgresql"`
	FlushUS    int64       `json:"flush_us"` // the disk makes 8 KiB durable
	At         string      `json:"at"`
	LoadBefore float64     `json:"load_average_before"`
	LoadAfter  float64     `json:"load_average_after"`
}

// FenceCase is one kind of transaction under one kind of load.
type FenceCase struct {
	Name    string    `json:"name"`
	Clients int       `json:"clients"`
	Durable bool      `json:"durable"`
	Rows    int       `json:"rows"` // per transaction
	With    FenceSide `json:"with"`
	Without FenceSide `json:"without"`
	Ratio   Spread    `json:"ratio"` // of transactions per second, round by round: with the fence over without
	// What the fence adds, round by round: the median, and the range beside it.
	CPUPerTx      float64    `json:"cpu_extra_us_per_tx"`
	CPUPerTxRange [2]float64 `json:"cpu_extra_us_per_tx_range"`
	CPUPerRow     float64    `json:"cpu_extra_us_per_row"`
	Goal          FenceGoal  `json:"goal"`
	Met           FenceMet   `json:"met"`

	work   fenceWork
	rounds [][2]fenceTurn // with, without
}

// FenceSide is what one table came to.
type FenceSide struct {
	TPS      Spread `json:"tps"`
	CPUPerTx Spread `json:"cpu_us_per_tx"`
}

// Spread is what a figure was over the rounds.
type Spread struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

// FenceGoal is what is wanted; 0: nothing.
type FenceGoal struct {
	Ratio     float64 `json:"ratio_at_least,omitempty"`
	CPUPerTx  float64 `json:"cpu_extra_us_per_tx_at_most,omitempty"`
	CPUPerRow float64 `json:"cpu_extra_us_per_row_at_most,omitempty"`
}

// FenceMet says which of the goals the medians meet; null: there is none.
type FenceMet struct {
	Ratio *bool `json:"ratio"`
	CPU   *bool `json:"cpu"`
}

func (c *FenceCase) how() string {
	commits := "commits not durable"
	if c.Durable {
		commits = "durable commits"
	}
	return fmt.Sprintf("%s, %d clients", commits, c.Clients)
}

// sum makes the case's figures from its rounds.
func (c *FenceCase) sum() {
	over := func(digits int, f func(with, without fenceTurn) float64) Spread {
		var all []float64
		for _, r := range c.rounds {
			all = append(all, f(r[0], r[1]))
		}
		return spreadOf(all, digits)
	}
	c.With = FenceSide{TPS: over(0, func(w, _ fenceTurn) float64 { return w.tps }), CPUPerTx: over(1, func(w, _ fenceTurn) float64 { return w.cpuPerTx() })}
	c.Without = FenceSide{TPS: over(0, func(_, p fenceTurn) float64 { return p.tps }), CPUPerTx: over(1, func(_, p fenceTurn) float64 { return p.cpuPerTx() })}
	c.Ratio = over(3, func(w, p fenceTurn) float64 { return w.tps / p.tps })
	extra := over(2, func(w, p fenceTurn) float64 { return w.cpuPerTx() - p.cpuPerTx() })
	c.CPUPerTx, c.CPUPerTxRange = extra.Median, [2]float64{extra.Min, extra.Max}
	c.CPUPerRow = round(extra.Median/float64(c.Rows), 3)
	if c.Goal.Ratio > 0 {
		c.Met.Ratio = new(c.Ratio.Median >= c.Goal.Ratio)
	}
	switch {
	case c.Goal.CPUPerTx > 0:
		c.Met.CPU = new(c.CPUPerTx <= c.Goal.CPUPerTx)
	case c.Goal.CPUPerRow > 0:
		c.Met.CPU = new(c.CPUPerRow <= c.Goal.CPUPerRow)
	}
}

func spreadOf(all []float64, digits int) Spread {
	slices.Sort(all)
	n := len(all)
	median := (all[(n-1)/2] + all[n/2]) / 2
	return Spread{Median: round(median, digits), Min: round(all[0], digits), Max: round(all[n-1], digits)}
}

// finish adds what is known at the end.
func (r *FenceBenchReport) finish() {
	r.CPU = "user and system time of the clients' backends, from /proc/PID/schedstat"
	r.Cores, r.MemoryMiB, r.Kernel, r.LoadAfter = runtime.NumCPU(), memoryMiB(), kernel(), loadAverage()
	for _, c := range r.Cases {
		for _, met := range []*bool{c.Met.Ratio, c.Met.CPU} {
			if met != nil {
				r.GoalsOf++
				if *met {
					r.GoalsMet++
				}
			}
		}
	}
}

// text is the report for people; s decides on colours.
func (r *FenceBenchReport) text(s *screen) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	verdict := func(met *bool, goal string) string {
		switch {
		case met == nil:
			return ""
		case *met:
			return s.paint(green, "met "+goal)
		}
		return s.paint(yellow, "missed "+goal)
	}
	line("\n%s", s.paint(bold, "What the fence costs: medians (lowest to highest) of the rounds"))
	line("  %-14s %-8s %7s  %17s  %-22s %23s  %-30s %s", "transaction", "commits", "clients", "tps with/without", "ratio", "CPU µs/tx with/without", "the fence adds, µs CPU", "goals")
	for _, c := range r.Cases {
		commits := "not"
		if c.Durable {
			commits = "durable"
		}
		added := fmt.Sprintf("%.1f (%.1f to %.1f)", c.CPUPerTx, c.CPUPerTxRange[0], c.CPUPerTxRange[1])
		goal := fmt.Sprintf("≤ %.0f µs", c.Goal.CPUPerTx)
		if c.Rows > 1 {
			added += fmt.Sprintf(", %.2f a row", c.CPUPerRow)
			goal = fmt.Sprintf("≤ %.0f µs a row", c.Goal.CPUPerRow)
		}
		line("  %-14s %-8s %7d  %8.0f/%8.0f  %-22s %11.1f/%11.1f  %-30s %s", c.Name, commits, c.Clients, c.With.TPS.Median, c.Without.TPS.Median,
			fmt.Sprintf("%.2f (%.2f to %.2f)", c.Ratio.Median, c.Ratio.Min, c.Ratio.Max), c.With.CPUPerTx.Median, c.Without.CPUPerTx.Median, added,
			strings.Trim(verdict(c.Met.Ratio, fmt.Sprintf("ratio ≥ %.2f", c.Goal.Ratio))+"; "+verdict(c.Met.CPU, goal), "; "))
	}
	line("\n  %d of %d goals met; %d rounds of one turn of %d ms each; CPU: %s", r.GoalsMet, r.GoalsOf, r.Rounds, r.TurnMS, r.CPU)
	line("  %d cores, %d MiB, Linux %s, PostgreSQL %s; the disk takes %d µs to make 8 KiB durable; load average %.1f before, %.1f after",
		r.Cores, r.MemoryMiB, r.Kernel, r.PostgreSQL, r.FlushUS, r.LoadBefore, r.LoadAfter)
	return b.String()
}
