package load

import (
	"encoding/json"
	"math"
	"sync"
	"time"
)

// Summary counts a run. Sent = OK + Failed once nothing is in flight; Unknown counts those of Failed that were writes
// and may have happened.
type Summary struct {
	Sent     int     `json:"sent"`
	OK       int     `json:"ok"`
	Failed   int     `json:"failed"`
	Unknown  int     `json:"unknown"`
	InFlight int     `json:"in_flight"`
	P50      float64 `json:"p50_ms"`
	P99      float64 `json:"p99_ms"`
	Writes   int     `json:"writes"`
	Held     int     `json:"held"`
	Seconds  float64 `json:"seconds"`
}

// tally counts while requests come and go.
type tally struct {
	mu struct {
		sync.Mutex
		counts Summary
		all    histogram
		recent histogram // since the last report
	}
}

func (t *tally) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.counts.Sent++
	t.mu.counts.InFlight++
}

func (t *tally) end(r *Record, latency time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := &t.mu.counts
	c.InFlight--
	if r.Status == 0 || r.Status >= 500 {
		c.Failed++
	} else {
		c.OK++
	}
	if r.Outcome == Unknown {
		c.Unknown++
	}
	if r.Write {
		c.Writes++
	}
	if r.HeldMS > 0 {
		c.Held++
	}
	t.mu.all.add(latency)
	t.mu.recent.add(latency)
}

// sinceLast is the summary with the latencies since it was called last.
func (t *tally) sinceLast(elapsed time.Duration) Summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.mu.counts
	s.Seconds = elapsed.Seconds()
	s.P50, s.P99 = t.mu.recent.quantile(0.5), t.mu.recent.quantile(0.99)
	t.mu.recent = histogram{}
	return s
}

// summary is the summary with the latencies of the whole run.
func (t *tally) summary(elapsed time.Duration) Summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.mu.counts
	s.Seconds = elapsed.Seconds()
	s.P50, s.P99 = t.mu.all.quantile(0.5), t.mu.all.quantile(0.99)
	return s
}

// report writes a line each second, and a last one at the end.
func (g *generator) report(stop <-chan struct{}) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ended := false; !ended; {
		select {
		case <-stop:
			ended = true
		case <-tick.C:
		}
		g.Progress.Write(append(mustJSON(g.tally.sinceLast(time.Since(g.base))), '\n')) // nobody looks if this fails
	}
}

// histogram counts latencies in steps of 2 %, from 1 µs up.
type histogram struct {
	steps [1200]int
	n     int
}

var step = math.Log(1.02)

func (h *histogram) add(d time.Duration) {
	i := int(math.Log(max(1, float64(d.Microseconds()))) / step)
	h.steps[min(i, len(h.steps)-1)]++
	h.n++
}

// quantile is in milliseconds; 0 when nothing was counted.
func (h *histogram) quantile(q float64) float64 {
	rank := int(math.Ceil(q * float64(h.n)))
	for i, n := range h.steps {
		if rank -= n; rank <= 0 && n > 0 {
			us := math.Exp((float64(i) + 0.5) * step)
			return math.Round(us/10) / 100
		}
	}
	return 0
}

// String is the summary as JSON.
func (s Summary) String() string {
	data, err := json.Marshal(s)
	if err != nil {
		panic("BUG: summary does not marshal: " + err.Error())
	}
	return string(data)
}
