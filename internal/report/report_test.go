package report

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/atollhq/atoll/internal/assess"
)

var (
	memo   = map[string]*assess.Report{}
	memoMu sync.Mutex
)

// assessed assesses a file once for all tests, which do not change it.
func assessed(t *testing.T, path string) *assess.Report {
	t.Helper()
	memoMu.Lock()
	defer memoMu.Unlock()
	if r := memo[path]; r != nil {
		return r
	}
	e, err := assess.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	r, err := assess.Assess(e, assess.Options{Simulate: true})
	if err != nil {
		t.Fatal(err)
	}
	memo[path] = r
	return r
}

// wide is a report with long names, many services, many steps and large sums: what layouts break on.
func wide(t *testing.T) *assess.Report {
	t.Helper()
	base := assessed(t, "../assess/testdata/small.yaml")
	changed := *base
	r := &changed
	r.Title = "An estate whose title is long enough to need a second line on a telephone, and then some words more"
	r.Services = nil
	for i := range 17 {
		s := base.Services[i%len(base.Services)]
		s = renamed(s, fmt.Sprintf("%s-service-with-a-long-name-%d", s.Service, i), float64(int(1)<<i))
		r.Services = append(r.Services, s)
	}
	r.Roadmap = nil
	loss := base.Today.Loss * 900
	r.Today.Loss = loss
	for i := range 12 {
		s := base.Roadmap[i%len(base.Roadmap)]
		loss *= .72
		s.Services = []string{"checkout", "inventory", "payments-with-a-long-name", "seats"}[:1+i%4]
		s.Saves, s.After.Loss, s.Worth, s.Month, s.Once = loss*.28/.72, loss, i < 9, 1200*float64(i+1), 1e5*float64(i+1)
		r.Roadmap = append(r.Roadmap, s)
	}
	r.Pareto = nil
	for i := range 20 {
		p := base.Pareto[i%len(base.Pareto)]
		p.Name, p.OnFront = fmt.Sprintf("step %d", i), i%3 == 0
		p.CostYear, p.Downtime = 1e6+float64(i)*31234, 90000/float64(1+i*i)
		r.Pareto = append(r.Pareto, p)
	}
	r.Pareto[0].Name = "today"
	return r
}

func renamed(s assess.ServiceAnswer, name string, factor float64) assess.ServiceAnswer {
	s.Service = name
	s.Now.Money.Loss.V *= factor
	s.Proposed.Money.Loss.V *= factor / 3
	return s
}

// TestEveryNumberIsExplained: each figure that a report shows has a derivation, and each derivation can be told.
func TestEveryNumberIsExplained(t *testing.T) {
	t.Parallel()
	r := assessed(t, "../assess/testdata/small.yaml")
	p := newPage(r)
	var numbers []number
	for _, k := range p.Keys {
		numbers = append(numbers, k.Now, k.Then)
	}
	for _, f := range p.Fixes {
		numbers = append(numbers, f.Share, f.Saves)
	}
	for _, s := range p.Moving {
		for _, row := range s.Rows[:2] { // what is wanted is an input
			numbers = append(numbers, row.Available, row.Downtime, row.RTO, row.RPO, row.P99, row.Loss, row.Month)
		}
		if s.Net != nil {
			numbers = append(numbers, *s.Net)
		}
	}
	for _, s := range p.Staying {
		numbers = append(numbers, s.Now.Available, s.Now.Downtime, s.Now.Loss, s.Now.Month)
	}
	for _, s := range p.Steps {
		numbers = append(numbers, s.Once, s.Month, s.Saves)
	}
	for _, s := range p.Sites {
		numbers = append(numbers, s.Unavailable, s.PerYear, s.Usual, s.AfterLoss)
	}
	for i, n := range numbers {
		if n.ID == "" {
			t.Errorf("figure %d (%s) has no derivation", i, n.Text)
		}
	}
	for id := range r.Book {
		var b strings.Builder
		if err := Explain(&b, r, id, false); err != nil || !strings.Contains(b.String(), "how: ") {
			t.Errorf("%s: %v\n%s", id, err, b.String())
		}
	}
}
