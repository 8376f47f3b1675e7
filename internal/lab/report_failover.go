package lab

import (
	"fmt"
	"strings"
)

// failoverText tells in words what happened to the site that died, and gives the drills beside it.
func (r *Report) failoverText(line func(string, ...any), s *screen) {
	f := r.Failover
	line("\n%s", s.paint(bold, "Failover: a site died, another took over, it came back"))
	if f.Count == 0 {
		line("  %s", s.paint(red, "It was not replaced. "+f.Problem))
	} else {
		for _, l := range wrap(f.story(), 116) {
			line("  %s", l)
		}
	}
	line("")
	line("  %-44s %9s %8s %8s %8s   %s", "", "opened ms", "p50", "p99", "max", "first write of a bucket after the kill, ms")
	for _, name := range r.losses() {
		f := r.loss(name)
		what := lossNames[name]
		if f.Count == 0 {
			line("  %-44s %s", what, s.paint(yellow, f.Problem))
			continue
		}
		line("  %-44s %9d %8.0f %8.0f %8.0f", what, f.OpenedAfterMS, f.RTOms.P50, f.RTOms.P99, f.RTOms.Max)
	}
	line("  %-44s %9s %8s %8s %8s", "", "writes", "applied", "logged", "missing")
	for _, name := range r.losses() {
		if f := r.loss(name); f.Count > 0 {
			line("  %-44s %9d %8d %8d %8d", "only the lost site had, "+lossNames[name], f.RPOWrites, f.AppliedAfterReturn, f.InConflictLog, f.MissingAfterReturn)
		}
	}
}

var lossNames = map[string]string{
	nominalLoss:    "the accident",
	stoppedApplier: "drill: stopped applier",
	heldLeaseWrite: "drill: held lease write",
}

// story is the accident in one paragraph.
func (f Failovers) story() string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format+" ", args...) }
	say("The replication from %[1]s broke, and a second later everything at %[1]s was killed. By then %[1]s had acknowledged %[2]d writes that nobody else had (the last %.0[3]f ms).",
		f.Lost, f.RPOWrites, f.RPOms)
	say("With a lease of %[3]s s and a bound of %[4]s s between a check and its commit, %[2]s could be sure that %[1]s writes no more and opened %[1]s's %[5]d buckets %.1[6]f s after the kill, by itself.",
		f.Lost, f.Taker, number(f.LeaseS), number(f.WS), f.Buckets, float64(f.OpenedAfterMS)/1000)
	say("Users wrote again after %.1f s (median) to %.1f s (the last bucket).", f.RTOms.P50/1000, f.RTOms.Max/1000)
	say("%s came back after %.0f s with what it had.", f.Lost, float64(f.DownMS)/1000)
	if f.Problem != "" {
		say("%s.", f.Problem)
		return strings.TrimSpace(b.String())
	}
	say("Within %.1f s %s decided each of those writes once: %d are in the data, %d gave way to something newer and are in the conflict log with both versions, %d are missing.",
		float64(f.SettledAfterMS)/1000, f.Taker, f.AppliedAfterReturn, f.InConflictLog, f.MissingAfterReturn)
	say("Then the users of %s went home by a switch.", f.Lost)
	return strings.TrimSpace(b.String())
}

// wrap breaks a text into lines.
func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(text) {
		if line != "" && len(line)+1+len(word) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
