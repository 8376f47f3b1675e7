package lease

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func at(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }

// lease 9 s, margin 1 s, renewed every 3 s, retries after 0.5 s
var times = timing{duration: 9 * time.Second, margin: time.Second, every: 3 * time.Second, retry: 500 * time.Millisecond}

// A scenario is a story of lines "second event": what happens, and what the cycle wants after it.
func TestCycle(t *testing.T) {
	t.Parallel()
	for name, story := range map[string]string{
		"a quiet lease": `
			0   -               proving
			0.1 proven          renewing seq 5 expect 40
			0.3 renewed@0.1=41  enforcing until 8.1
			0.4 enforced        resting until 3.1
			3.1 -               proving
			3.2 proven          renewing seq 6 expect 41
			3.3 renewed@3.2=42  enforcing until 11.2
			3.4 enforced        resting until 6.2`,
		"the database completes nothing": `
			0   -               proving
			3   failed          resting until 3.5
			3.5 -               proving
			4   proven          renewing seq 5 expect 40`,
		"the fence cannot be restricted: another proof before another renewal": `
			0   proven          renewing seq 5 expect 40
			0.1 renewed@0=41    enforcing until 8
			0.2 failed          resting until 0.7
			0.7 -               proving`,
		"an answer behind its deadline is worth nothing": `
			0   proven          renewing seq 5 expect 40
			8   renewed@0=41    proving
			8.1 proven          renewing seq 6 expect 41`,
		"an answer just before is worth what is left": `
			0   proven          renewing seq 5 expect 40
			7.9 renewed@0=41    enforcing until 8
			8.0 enforced        proving`,
		"no answer, not carried out": `
			0   proven          renewing seq 5 expect 40
			3   unanswered      resting until 3.5
			3.5 -               doubting
			3.6 read me/4=40    proving
			3.7 proven          renewing seq 5 expect 40`,
		"no answer, carried out: adopted, but no deadline": `
			0   proven          renewing seq 5 expect 40
			3   unanswered      resting until 3.5
			3.6 read me/5=41    proving
			3.7 proven          renewing seq 6 expect 41`,
		"refused by a late twin of its own": `
			0   proven          renewing seq 5 expect 40
			0.1 refused         doubting
			0.2 read me/7=44    proving
			0.3 proven          renewing seq 8 expect 44`,
		"taken over": `
			0   proven          renewing seq 5 expect 40
			0.1 refused         doubting
			0.2 read other/6=41 lost
			9   -               lost`,
		"revoked": `
			0   proven          renewing seq 5 expect 40
			0.1 refused         doubting
			0.2 revoked         lost`,
		"the record is gone": `
			0   proven          renewing seq 5 expect 40
			0.1 refused         doubting
			0.2 gone            proving
			0.3 proven          renewing seq 5 expect 0`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := begin(times, "me", store.Lease{Holder: "x", Sequence: 4}, 40, topo.Identity{System: "7", Timeline: 1})
			for line := range strings.Lines(strings.TrimSpace(story)) {
				var second float64
				line = strings.TrimSpace(line)
				if _, err := fmt.Sscan(line, &second); err != nil {
					t.Fatal(err)
				}
				words := strings.Fields(line)
				want, now := "", at(second)
				event := words[1]
				if event == "read" {
					event += " " + words[2]
					want = strings.Join(words[3:], " ")
				} else {
					want = strings.Join(words[2:], " ")
				}
				happen(t, c, event, now)
				if got := show(c.next(now)); got != want {
					t.Fatalf("after %q: %s, want %s", line, got, want)
				}
			}
		})
	}
}

func happen(t *testing.T, c *cycle, event string, now time.Time) {
	t.Helper()
	var start float64
	var l store.Lease
	var rev store.Revision
	switch {
	case event == "-":
	case event == "proven":
		c.proven(1)
	case event == "failed":
		c.failed(now)
	case event == "refused":
		c.refused()
	case event == "unanswered":
		c.unanswered(now)
	case event == "enforced":
		c.enforced(now)
	case event == "gone":
		c.read(store.Lease{}, 0, false)
	case event == "revoked":
		c.read(store.Lease{Holder: "me", Sequence: 6, Revoked: true}, 41, true)
	case scan(event, "renewed@%g=%d", &start, &rev):
		c.renewed(at(start), now, rev)
	case strings.HasPrefix(event, "read "):
		holder, rest, _ := strings.Cut(strings.TrimPrefix(event, "read "), "/")
		l.Holder = holder
		if !scan(rest, "%d=%d", &l.Sequence, &rev) {
			t.Fatalf("bad event %q", event)
		}
		c.read(l, rev, true)
	default:
		t.Fatalf("unknown event %q", event)
	}
}

func scan(s, format string, into ...any) bool {
	n, err := fmt.Sscanf(s, format, into...)
	return err == nil && n == len(into)
}

func show(t task) string {
	switch t.do {
	case renewing:
		return fmt.Sprintf("renewing seq %d expect %d", t.renew.Sequence, t.expect)
	case enforcing, resting:
		return fmt.Sprintf("%s until %g", t.do, t.until.Sub(epoch).Seconds())
	default:
		return t.do.String()
	}
}

// Whatever happens in whatever order: a lease is in force only until the end of a renewal that the store committed,
// counted from its start, and every renewal follows a proof that came after the one before.
func TestCycleNeverOutlivesItsRenewals(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		now := epoch
		c := begin(times, "me", store.Lease{}, 0, topo.Identity{System: "7"})
		var latest time.Time // end of the best committed renewal
		proven := false
		rev := store.Revision(0)
		for range 60 {
			now = now.Add(time.Duration(rapid.IntRange(0, 4000).Draw(t, "ms")) * time.Millisecond)
			if c.inForce(now) && !now.Before(latest.Add(-times.margin)) {
				t.Fatalf("in force at %s, but the store gave it only until %s", now, latest)
			}
			job := c.next(now)
			ok := rapid.IntRange(0, 2).Draw(t, "outcome") > 0
			switch job.do {
			case resting:
				now = job.until
			case proving:
				if proven = ok; ok {
					c.proven(1)
				} else {
					c.failed(now)
				}
			case renewing:
				if !proven {
					t.Fatal("renewed without a proof since the last renewal")
				}
				proven = false
				start := now
				now = now.Add(time.Duration(rapid.IntRange(0, 12000).Draw(t, "latency")) * time.Millisecond)
				switch rapid.IntRange(0, 3).Draw(t, "answer") {
				case 0:
					c.refused()
				case 1:
					c.unanswered(now)
				default:
					rev++
					latest = start.Add(times.duration)
					c.renewed(start, now, rev)
				}
			case enforcing:
				if ok && now.Before(job.until) {
					c.enforced(now)
				} else {
					c.failed(now)
				}
			case doubting:
				c.read(store.Lease{Holder: "me", Sequence: c.lease.Sequence}, rev, true)
			case lost:
				t.Fatal("lost to nobody")
			}
		}
	})
}

func TestCandidate(t *testing.T) {
	t.Parallel()
	type look struct {
		second float64
		l      store.Lease
		none   bool
		take   bool
	}
	other := func(seq uint64) store.Lease {
		return store.Lease{Holder: "other", Sequence: seq, Duration: 10 * time.Second}
	}
	for name, looks := range map[string][]look{
		"no record":               {{0, store.Lease{}, true, true}},
		"silence":                 {{0, other(1), false, false}, {10, other(1), false, false}, {10.1, other(1), false, true}},
		"renewed meanwhile":       {{0, other(1), false, false}, {9, other(2), false, false}, {18, other(2), false, false}, {19.2, other(2), false, true}},
		"a third takes it":        {{0, other(1), false, false}, {9, store.Lease{Holder: "third", Sequence: 1, Duration: 10 * time.Second}, false, false}, {12, store.Lease{Holder: "third", Sequence: 1, Duration: 10 * time.Second}, false, false}},
		"the holder's own term":   {{0, store.Lease{Holder: "o", Sequence: 1, Duration: time.Second}, false, false}, {1.1, store.Lease{Holder: "o", Sequence: 1, Duration: time.Second}, false, true}},
		"revoked":                 {{0, store.Lease{Holder: "other", Sequence: 1, Duration: time.Hour, Revoked: true}, false, true}},
		"released":                {{0, store.Lease{Holder: "other", Sequence: 1, Duration: time.Hour, Released: true}, false, true}},
		"its own":                 {{0, store.Lease{Holder: "me", Sequence: 1, Duration: time.Hour}, false, true}},
		"of an ended run":         {{0, store.Lease{Holder: "before", Sequence: 1, Duration: time.Hour}, false, true}},
		"a holder without a name": {{0, store.Lease{Sequence: 1, Duration: time.Hour}, false, false}},
	} {
		c := candidate{me: "me", previous: "before"}
		if name == "a holder without a name" {
			c.previous = ""
		}
		for _, lk := range looks {
			v := c.look(lk.l, !lk.none, at(lk.second))
			if v.take != lk.take || !v.take && v.wait <= 0 {
				t.Errorf("%s at %g s: %+v, want take %t", name, lk.second, v, lk.take)
			}
		}
	}
}
