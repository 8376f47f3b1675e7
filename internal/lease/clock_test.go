package lease

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// A clock whose pace is within 1 %, however slowly it is read, is never blamed; one that lost more than that and twice
// the slack always is.
func TestClockWatch(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		const slack = 50 * time.Millisecond
		ms := func(most int, what string) time.Duration {
			return time.Duration(rapid.IntRange(0, most).Draw(t, what)) * time.Millisecond
		}
		var w clockWatch
		mono, db := epoch, epoch.Add(-time.Hour)
		rate := rapid.Float64Range(0.991, 1.009).Draw(t, "rate")
		pass := func(d time.Duration) {
			mono, db = mono.Add(d), db.Add(time.Duration(float64(d)*rate))
		}
		read := func() time.Duration {
			sent := mono
			pass(ms(500, "there"))
			clock := db
			pass(ms(500, "back"))
			return w.look(clockReading{clock, sent, mono}, slack)
		}
		for range rapid.IntRange(1, 10).Draw(t, "looks") {
			if jump := read(); jump != 0 {
				t.Fatalf("a clock of rate %.4f is blamed for a step of %s", rate, jump)
			}
			if rapid.Bool().Draw(t, "extended") {
				w.extended()
			}
			pass(ms(10_000, "rest"))
		}
		// What hides a step is the slack, the pace allowed, and how long the two readings took.
		hidden := 2*slack + 2*time.Second + mono.Sub(w.base.sent)/50
		step := hidden + ms(100_000, "step")
		if rapid.Bool().Draw(t, "forward") {
			db = db.Add(step)
			if jump := read(); jump <= 0 {
				t.Fatalf("a step forward of %s is seen as %s", step, jump)
			}
		} else {
			db = db.Add(-step)
			if jump := read(); jump >= 0 {
				t.Fatalf("a step back of %s is seen as %s", step, jump)
			}
		}
	})
}
