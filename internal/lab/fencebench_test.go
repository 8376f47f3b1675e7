package lab

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A run too short to say anything, on a real server: every case is measured, and its figures belong together.
func TestBenchFence(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	var shown bytes.Buffer
	err := BenchFence(t.Context(), FenceBenchOptions{Out: out, Rounds: 2, Turn: 30 * time.Millisecond, Clients: []int{1, 2}, Stdout: &shown})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(out, "bench-fence.json"))
	if err != nil {
		t.Fatal(err)
	}
	var r FenceBenchReport
	if err := json.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Cases) != 12 || r.GoalsOf != 18 || r.PostgreSQL == "" || r.FlushUS <= 0 {
		t.Errorf("%d cases, %d goals, PostgreSQL %q, flush %d µs", len(r.Cases), r.GoalsOf, r.PostgreSQL, r.FlushUS)
	}
	for _, c := range r.Cases {
		for _, s := range []FenceSide{c.With, c.Without} {
			if s.TPS.Min <= 0 || s.TPS.Median < s.TPS.Min || s.TPS.Median > s.TPS.Max || s.CPUPerTx.Median <= 0 {
				t.Errorf("%s, %s: %+v", c.Name, c.how(), s)
			}
		}
		if c.Ratio.Median <= 0 || c.CPUPerTxRange[0] > c.CPUPerTx || c.CPUPerTxRange[1] < c.CPUPerTx {
			t.Errorf("%s, %s: ratio %+v, %.2f µs of %v", c.Name, c.how(), c.Ratio, c.CPUPerTx, c.CPUPerTxRange)
		}
		if (c.Met.Ratio != nil) != c.Durable || c.Met.CPU == nil {
			t.Errorf("%s, %s: goals %+v, met %+v", c.Name, c.how(), c.Goal, c.Met)
		}
	}
	if text := shown.String(); !strings.Contains(text, "of 18 goals met") {
		t.Errorf("shown: %s", text)
	}
}

func TestFenceCaseSum(t *testing.T) {
	t.Parallel()
	turn := func(n int, tps float64, cpu time.Duration) fenceTurn { return fenceTurn{n, tps, cpu} }
	c := FenceCase{Rows: 100, Goal: FenceGoal{Ratio: 0.8, CPUPerRow: 1}, rounds: [][2]fenceTurn{
		{turn(10, 90, 3*time.Millisecond), turn(10, 100, time.Millisecond)}, // 0.9, 200 µs
		{turn(10, 70, 2*time.Millisecond), turn(10, 100, time.Millisecond)}, // 0.7, 100 µs
		{turn(20, 85, 4*time.Millisecond), turn(10, 100, time.Millisecond)}, // 0.85, 100 µs
	}}
	c.sum()
	if c.Ratio != (Spread{0.85, 0.7, 0.9}) || c.CPUPerTx != 100 || c.CPUPerTxRange != [2]float64{100, 200} || c.CPUPerRow != 1 {
		t.Errorf("ratio %+v, %v µs of %v, %v a row", c.Ratio, c.CPUPerTx, c.CPUPerTxRange, c.CPUPerRow)
	}
	if !*c.Met.Ratio || !*c.Met.CPU {
		t.Error("met goals are not said to be met")
	}
	c.Goal = FenceGoal{Ratio: 0.86, CPUPerTx: 99}
	if c.sum(); *c.Met.Ratio || *c.Met.CPU {
		t.Error("missed goals are said to be met")
	}
	if even := spreadOf([]float64{4, 1, 3, 2}, 1); even != (Spread{2.5, 1, 4}) {
		t.Errorf("spread %+v", even)
	}
}
