package dashboard

import (
	"fmt"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/api"
)

func (v viewer) handover(h api.Handover) handoverRow {
	row := handoverRow{ID: string(h.ID), Kind: h.Kind, From: string(h.From), To: string(h.To), FromColour: v.colour[h.From], ToColour: v.colour[h.To],
		State: h.Outcome, Tone: map[string]string{"done": "good", "ready": "good"}[h.Outcome], What: moved(h)}
	switch {
	case !h.Over():
		row.State, row.Tone = "under way", "warn"
	case h.Outcome == "aborted" || h.Outcome == "refused":
		row.Tone = "warn"
	}
	row.Phases, row.When = phases(h, v.st.At)
	if h.Pause != nil {
		about := ""
		if h.Pause.Approximate {
			about = "about "
		}
		row.Pause = "writes held " + about + milliseconds(h.Pause.HoldMS)
	}
	add := func(name, format string, args ...any) {
		row.Notes = append(row.Notes, note{name, fmt.Sprintf(format, args...)})
	}
	if h.Why != "" {
		add("why", "%s", shorten(h.Why, 200))
	}
	add("asked by", "%s", h.Who)
	if f := h.Failover; f != nil {
		failoverNotes(*f, add)
		row.Pause = ""
		if f.OpenMS > 0 {
			row.Pause = "open after " + milliseconds(f.OpenMS)
		}
	}
	for _, r := range h.Reasons {
		add("because", "%s", shorten(r, 300))
	}
	return row
}

func failoverNotes(f api.Failover, add func(name, format string, args ...any)) {
	if len(f.Override) > 0 {
		add("overridden", "%s", strings.Join(f.Override, ", "))
	}
	add("lease", "ran out after %s without a renewal; taken after %s", milliseconds(f.ExpiredMS), milliseconds(f.WaitedMS))
	loss := "not known"
	if f.LossMS >= 0 {
		loss = milliseconds(float64(f.LossMS)) + " of the lost site's time"
	}
	add("cut", "%s; estimated loss: %s", position(f.Position), loss)
	if r := f.Return; r != nil {
		add("return", "settled %s: %s applied, %s kept out, all in the conflict log", clock(r.At, time.Time{}), count(r.Applied, "stale change"), thousands(r.Kept))
	}
}

// moved says what a handover is about: buckets of one keyspace, or all that a failover took.
func moved(h api.Handover) string {
	if h.Failover == nil {
		return fmt.Sprintf("%s of %s (%s)", count(h.Count, "bucket"), h.Keyspace, shorten(strings.ReplaceAll(h.Buckets, ",", ", "), 40))
	}
	var parts []string
	for _, t := range h.Failover.Taken {
		n := 0
		for _, e := range t.Buckets {
			n += int(e.Last) - int(e.First) + 1
		}
		parts = append(parts, fmt.Sprintf("%s of %s", count(n, "bucket"), t.Keyspace))
	}
	if len(parts) == 0 {
		return "everything that it owns"
	}
	return strings.Join(parts, ", ")
}

// phases are the steps with the time since the first; drivers' clocks are only for people.
func phases(h api.Handover, now time.Time) (out []phase, when string) {
	if len(h.Steps) == 0 {
		return nil, ""
	}
	first := h.Steps[0].At
	for i, s := range h.Steps {
		p := phase{Name: strings.ToLower(strings.ReplaceAll(s.Phase, "_", " ")), Now: i == len(h.Steps)-1 && !h.Over()}
		if i > 0 {
			p.After = "+" + milliseconds(float64(max(s.At.Sub(first), 0).Microseconds())/1000)
		}
		out = append(out, p)
	}
	return out, clock(first, now)
}

// clock is a moment in UTC, with its day where that is not today's.
func clock(t, now time.Time) string {
	t, now = t.UTC(), now.UTC()
	if t.YearDay() == now.YearDay() && t.Year() == now.Year() {
		return t.Format("15:04:05")
	}
	return t.Format("2 Jan 15:04:05")
}
