package assess

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func exactly(v float64) Number { return Number{Low: v, Mode: v, High: v, Set: true} }

// Repair, k of n, crews, coverage and frequency, against closed forms and published values: the repairmen of Feller
// (An Introduction to Probability Theory I, XVII.7), the pair with imperfect coverage of Arnold (IEEE Trans. Computers
// C-22, 1973), at λ = 1/1000 h and μ = 1/10 h.
func TestServerGroups(t *testing.T) {
	t.Parallel()
	const a, u = 1000.0 / 1010, 10.0 / 1010
	for _, c := range []struct {
		count, need, crews, coverage float64
		down, perHour                float64
	}{
		// one unit, MTBF 1000 h, repair 10 h: 10/1010
		{1, 1, 1, 1, .00990099, 1.0 / 1010},
		// a pair with a crew for each: the square; it begins when the second of two fails: 2·A·U·λ
		{2, 1, 2, 1, 9.80296e-5, 2 * a * u / 1000},
		{3, 2, 3, 1, 3*.00990099*.00990099 - 2*math.Pow(.00990099, 3), 2 * 3 * a * a * u / 1000},
		// a pair with one crew: 2ρ² to 1 + 2ρ + 2ρ², of which every end is one repair
		{2, 1, 1, 1, 1.960400e-4, 1.960400e-4 / 10},
		// and one in twenty failures not survived: 2ρ² + .1ρ to 1 + 2.1ρ + 2ρ²
		{2, 1, 1, .95, 1.175088e-3, 1.175088e-3 / 10},
		// no failure is survived: the pair is down at its first one
		{2, 1, 1, 0, (.0002 + .02) / (1 + .04 + .0002), (.0002 + .02) / (1 + .04 + .0002) / 10},
		// where all are needed, there is nothing to survive
		{2, 2, 2, .5, 1 - a*a, 2 * a * a / 1000},
	} {
		s := Servers{Count: exactly(c.count), Need: exactly(c.need), Every: exactly(1000 * hour), Lasts: exactly(10 * hour), Crews: exactly(c.crews), Coverage: exactly(c.coverage)}
		g := s.group()
		if math.Abs(g.down()/c.down-1) > 1e-6 || math.Abs(g.perSecond*hour/c.perHour-1) > 1e-6 {
			t.Errorf("%v of %v, %v crews, coverage %v: down %.8g, %.6g failures an hour; want %.8g and %.6g", c.need, c.count, c.crews, c.coverage, g.down(), g.perSecond*hour, c.down, c.perHour)
		}
		if crew := s.crew(); crew != nil && math.Abs(crew.share()/c.down-1) > 1e-6 {
			t.Errorf("%v of %v, %v crews, coverage %v: down %.8g by renewal; want %.8g", c.need, c.count, c.crews, c.coverage, crew.share(), c.down)
		}
	}
}

func randomServers(r *rand.Rand) Servers {
	n := 1 + r.IntN(8)
	s := Servers{Count: exactly(float64(n)), Need: exactly(float64(1 + r.IntN(n))), Crews: exactly(float64(1 + r.IntN(n))), Coverage: exactly(1)}
	s.Every, s.Lasts = exactly(hour*math.Exp(8*r.Float64())), exactly(hour*math.Exp(4*r.Float64()-2))
	if r.IntN(3) > 0 {
		s.Coverage = exactly(r.Float64())
	}
	return s
}

// The closed form agrees with a dumb twin, which writes the chain's generator out and solves it by Gaussian elimination,
// and with the second engine's renewals.
func TestServerGroups_AgreeWithTheirGenerator(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	near := func(a, b float64) bool { return math.Abs(a-b) <= 1e-9*math.Max(math.Abs(a), math.Abs(b))+1e-15 }
	for range 500 {
		s := randomServers(r)
		g, c := s.group(), s.crew()
		down, perSecond := solved(s)
		if !near(g.down(), down) || !near(g.perSecond, perSecond) {
			t.Fatalf("seed %d: %+v: down %.12g, %.12g times a second; solved %.12g and %.12g", seed, s, g.down(), g.perSecond, down, perSecond)
		}
		if c != nil && !near(c.share(), down) {
			t.Fatalf("seed %d: %+v: down %.12g by renewal; solved %.12g", seed, s, c.share(), down)
		}
	}
}

// solved writes out a group's chain: states 0…n are so many failed ones, n+1+i the stop behind the i-th.
func solved(s Servers) (down, perSecond float64) {
	n, k, crews := int(s.Count.Low), int(s.Need.Low), s.Crews.Low
	size := 2*n + 2
	rate := make([][]float64, size) // from, to
	for i := range rate {
		rate[i] = make([]float64, size)
	}
	for i := range n + 1 {
		if i > 0 {
			rate[i][i-1] = min(float64(i), crews) / s.Lasts.Low
			rate[n+1+i][i] = 1 / s.Lasts.Low
		}
		if i < n {
			missed := 0.0
			if n-i-1 >= k {
				missed = 1 - s.Coverage.Low
			}
			rate[i][i+1] = float64(n-i) / s.Every.Low * (1 - missed)
			rate[i][n+1+i+1] = float64(n-i) / s.Every.Low * missed
		}
	}
	rate[n+1][0] = 1 // no stop is behind none; so that every state has a way out
	// columns of the balance equations Σ π rate[from][to] = π out; the last one is Σ π = 1
	m := make([][]float64, size)
	for to := range m {
		m[to] = make([]float64, size+1)
		for from := range size {
			m[to][from] += rate[from][to]
			m[to][to] -= rate[to][from]
		}
	}
	for from := range size {
		m[size-1][from] = 1
	}
	m[size-1][size] = 1
	p := eliminate(m)
	isDown := func(i int) bool { return i > n || n-i < k }
	for i := range size {
		if !isDown(i) {
			for j := range size {
				if isDown(j) {
					perSecond += p[i] * rate[i][j]
				}
			}
			continue
		}
		down += p[i]
	}
	return down, perSecond
}

// eliminate solves linear equations by Gaussian elimination with pivoting.
func eliminate(m [][]float64) []float64 {
	n := len(m)
	for c := range n {
		best := c
		for r := c; r < n; r++ {
			if math.Abs(m[r][c]) > math.Abs(m[best][c]) {
				best = r
			}
		}
		m[c], m[best] = m[best], m[c]
		for r := range n {
			if r == c {
				continue
			}
			for f, j := m[r][c]/m[c][c], c; j <= n; j++ {
				m[r][j] -= f * m[c][j]
			}
		}
	}
	out := make([]float64, n)
	for i := range out {
		out[i] = m[i][n] / m[i][i]
	}
	return out
}

// A crew that is lived with, failure by failure and repair by repair, is down as often and as long as the closed form
// says.
func TestServerGroups_Lived(t *testing.T) {
	t.Parallel()
	const seed = 7 // fixed: each comparison is a matter of chance
	r := rand.New(rand.NewPCG(seed, 1))
	compared := 0
	for i := range 40 {
		s := randomServers(r)
		s.Every = exactly(s.Lasts.Low * (2 + 30*r.Float64()))
		c, g := s.crew(), s.group()
		if c == nil || g.perSecond*s.Every.Low < 1e-2 { // independent, or down too rarely to be lived
			continue
		}
		const cycles = 1500
		shift := c.begin(r)
		var now, without, began float64
		var lengths, downs []float64 // of cycles: outage to outage
		for len(lengths) < cycles {
			next := shift.due()
			was := shift.down()
			if was {
				without += next - now
			}
			now = next
			if shift.happen(r); was && !shift.down() {
				lengths, downs = append(lengths, now-began), append(downs, without)
				began, without = now, 0
			}
		}
		compared++
		lengths, downs = lengths[1:], downs[1:] // the first begins with all working
		if bad := regenerated(downs, lengths, g.down()); bad != "" {
			t.Errorf("group %d of seed %d: %+v: share of time: %s", i, seed, s, bad)
		}
		ones := slices.Repeat([]float64{1}, len(lengths))
		if bad := regenerated(ones, lengths, g.perSecond); bad != "" {
			t.Errorf("group %d of seed %d: %+v: frequency: %s", i, seed, s, bad)
		}
	}
	if compared < 20 {
		t.Errorf("only %d groups were compared", compared)
	}
}

// regenerated compares a ratio of means over cycles with what is wanted; cycles hang on each other a little, so that
// batches of them are taken.
func regenerated(tops, bottoms []float64, want float64) string {
	const batches = 30
	size := len(tops) / batches
	sum, squares, all := 0.0, 0.0, 0.0
	for b := range batches {
		gap := 0.0 // top − want × bottom has the mean 0
		for i := b * size; i < (b+1)*size; i++ {
			gap += tops[i] - want*bottoms[i]
			all += bottoms[i]
		}
		sum, squares = sum+gap, squares+gap*gap
	}
	mean := sum / batches
	deviation := math.Sqrt((squares/batches - mean*mean) / (batches - 1))
	if math.Abs(mean) > 4*deviation {
		return fmt.Sprintf("%.6g; want %.6g ± %.2g", want+sum/all, want, 4*deviation*batches/all)
	}
	return ""
}

// Many servers and one crew: no product overflows, and the second engine says the same.
func TestServerGroups_Large(t *testing.T) {
	t.Parallel()
	for _, every := range []float64{30 * day, 365 * day, hour} {
		s := Servers{Count: exactly(1000), Need: exactly(900), Every: exactly(every), Lasts: exactly(day), Crews: exactly(3), Coverage: exactly(.999)}
		g, c := s.group(), s.crew()
		if !(g.down() > 0 && g.down() <= 1) || math.Abs(c.share()/g.down()-1) > 1e-9 {
			t.Errorf("every %v: down %v; by renewal %v", duration(every), g.down(), c.share())
		}
	}
}

// What is said of a group of servers: where it comes from, and what is taken for granted if it matters.
func TestServerGroups_Explained(t *testing.T) {
	t.Parallel()
	const at = "servers: {count: 3, need: 1}"
	for _, c := range []struct {
		servers string
		named   []string
		silent  []string
	}{
		{"servers: {count: 3, need: 1, every: 1000h, lasts: 10h, crews: 1, coverage: ~95%}", []string{"services.shop.servers.crews 1", "services.shop.servers.coverage ~95%"}, nil},
		{"servers: {count: 3, need: 2, every: 1000h, lasts: 10h}", []string{"services.shop.servers.crews ~3", "services.shop.servers.coverage ~100%"}, nil},
		{"servers: {count: 3, need: 1, every: 1y, lasts: 10m}", []string{"services.shop.servers.coverage ~100%"}, []string{"crews"}},
		{"servers: {count: 3, need: 3}", nil, []string{"crews", "coverage"}},
	} {
		r := assessed(t, pair(strings.Replace(rich, at, c.servers, 1)))
		var named []string
		for _, in := range r.Book["shop.servers"].Inputs {
			named = append(named, in.Path+" "+in.Text)
			if strings.HasPrefix(in.Text, "~100%") == (in.Line > 0) && strings.HasSuffix(in.Path, "coverage") {
				t.Errorf("%s: %+v", c.servers, in)
			}
			if in.Assumed && !slices.ContainsFunc(r.Doubts, func(d Doubt) bool { return d.Input == in }) && !strings.HasSuffix(in.Path, "count") && !strings.HasSuffix(in.Path, "need") {
				t.Errorf("%s: %s is assumed, and not doubted", c.servers, in.Path)
			}
		}
		text := strings.Join(named, "\n")
		for _, want := range c.named {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q is not named:\n%s", c.servers, want, text)
			}
		}
		for _, not := range c.silent {
			if strings.Contains(text, not) {
				t.Errorf("%s: %q is named:\n%s", c.servers, not, text)
			}
		}
		if d := r.Book["shop.servers"]; !strings.Contains(d.Method, "Markov") || !slices.ContainsFunc(r.Book["shop.structural"].Parts, func(p Part) bool { return p.ID == d.ID && p.Value == d.Value }) {
			t.Errorf("%s: %+v", c.servers, d)
		}
	}
}

// A tree for other tools holds a group as one event, with its probability.
func TestServerGroups_Exported(t *testing.T) {
	t.Parallel()
	e := estate(t, pair(strings.Replace(rich, "servers: {count: 3, need: 1}", "servers: {count: 2, need: 1, every: 1000h, lasts: 10h, crews: 1, coverage: 95%}", 1)))
	m, err := e.Tree(e.Today(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Events[serversAt("shop", "a")].Probability; math.Abs(got/1.175088e-3-1) > 1e-6 {
		t.Errorf("%v", got)
	}
}
