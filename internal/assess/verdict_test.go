package assess

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// pair is an estate of two sites in two cities, a witness unless told otherwise, and the services given; sites fail
// three times a year for half a day.
func pair(services string, change ...string) string {
	text := `
estate: 1
currency: EUR
prices: {own_core_month: 9, own_gb_month: .05, cross_city_gb: .02, same_city_gb: .01, person_month: 9k, recovery_hour: 0}
components:
  x: {kind: power, every: 120d, lasts: 12h}
  y: {kind: power, every: 120d, lasts: 12h}
sites:
  a: {kind: own, city: north, needs: x, cores: 400}
  b: {kind: own, city: south, needs: y, cores: 400}
  w: {kind: witness}
links: [{between: [a, b], rtt: 30ms}]
services:
` + services
	return strings.NewReplacer(change...).Replace(text)
}

func assessed(t *testing.T, text string) *Report {
	t.Helper()
	r, err := Assess(estate(t, text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *Report) of(service string) *ServiceAnswer {
	for i := range r.Services {
		if r.Services[i].Service == service {
			return &r.Services[i]
		}
	}
	return nil
}

func (s *ServiceAnswer) with(p Pattern) *Option {
	for i := range s.Options {
		if s.Options[i].Outcome.Placement.Pattern == p {
			return &s.Options[i]
		}
	}
	return nil
}

func (o *Option) refused(rule string) bool {
	return o != nil && slices.ContainsFunc(o.Outcome.Impossible, func(r Refusal) bool { return r.Rule == rule })
}

const rich = `
  shop:
    now: {pattern: single, sites: [a]}
    servers: {count: 3, need: 1}
    latency: {p50: 20ms, p99: 60ms, budget_p99: 300ms}
    demand: {peak: 100, cores: 20}
    data: {size: 50GB, changes: 100KB/s, by_user: 95%}
    revenue: {minute: 500, deferred: 0%}
`

// A chatty service whose data cannot be split stays in one city: twenty calls across 30 ms are more than its budget.
func TestChattyServicesStayInTheirCity(t *testing.T) {
	t.Parallel()
	r := assessed(t, pair(strings.Replace(rich, "budget_p99: 300ms}", "budget_p99: 300ms}\n    calls: [{to: stock, times: 20, writes: 60%}]", 1)+`
  stock:
    now: {pattern: single, sites: [a]}
    latency: {p50: 1ms, p99: 3ms}
    demand: {peak: 2000, cores: 10}
    data: {size: 10GB, changes: 100KB/s, by_user: 0%}
    consider: [one-writer]
`))
	s := r.of("shop")
	if o := s.with(Partitioned); !o.refused("latency-budget") {
		t.Errorf("partitioned across cities: %+v", o)
	}
	if p := s.Answer.Placement.Pattern; p == Partitioned || p == OneWriter {
		t.Errorf("it goes to %s", s.Answer.Placement)
	}
}

// What earns nothing stays at one site with its backups, and is told from which revenue on that changes.
func TestLowRevenueStaysSingle(t *testing.T) {
	t.Parallel()
	r := assessed(t, pair(strings.Replace(rich, "minute: 500", "minute: 0.01", 1)))
	s := r.of("shop")
	if s.Answer.Worth || s.Answer.Placement.Pattern != Single || s.Answer.Flip == nil || s.Answer.Flip.V < .01 || len(r.Roadmap) == 0 || r.Roadmap[0].Worth {
		t.Errorf("%+v\n%+v", s.Answer, r.Roadmap)
	}
	if rich := assessed(t, pair(rich)).of("shop"); !rich.Answer.Worth || rich.Answer.Purpose != "disaster recovery" {
		t.Errorf("500 a minute: %+v", rich.Answer)
	}
}

func TestTwoSitesWithoutAWitness(t *testing.T) {
	t.Parallel()
	r := assessed(t, pair(rich, "  w: {kind: witness}\n", ""))
	for _, p := range []Pattern{OneWriter, Partitioned} {
		if o := r.of("shop").with(p); !o.refused("two-site-quorum") {
			t.Errorf("%s: %+v", p, o.Outcome.Impossible)
		}
	}
	if p := r.of("shop").Answer.Placement; active(p.Pattern) {
		t.Errorf("it goes to %s", p)
	}
	if _, err := Read("x", strings.NewReader(pair(strings.Replace(rich, "pattern: single, sites: [a]", "pattern: one-writer, sites: [a, b], automatic: true", 1)))); err == nil || !strings.Contains(err.Error(), "two sites") {
		t.Errorf("a file that says so: %v", err)
	}
}

// A service gains nothing alone while what it needs runs at one site: the roadmap moves both.
func TestTheClosureMovesTogether(t *testing.T) {
	t.Parallel()
	text := pair(strings.Replace(rich, "    servers:", "    calls: [{to: stock}, {to: advice, optional: true}]\n    servers:", 1) + `
  stock:
    now: {pattern: single, sites: [a]}
    demand: {peak: 100, cores: 10}
    data: {size: 10GB, changes: 100KB/s, by_user: 90%}
  advice:
    now: {pattern: single, sites: [a]}
    demand: {peak: 100, cores: 10}
`)
	r := assessed(t, text)
	if len(r.Roadmap) == 0 || !r.Roadmap[0].Worth || !slices.Equal(r.Roadmap[0].Services, []string{"shop", "stock"}) {
		t.Fatalf("%+v", r.Roadmap)
	}
	v := newEvaluator(estate(t, text))
	shop := v.service["shop"]
	to := v.spotFor(Placement{Pattern: WarmStandby, Sites: []string{"a", "b"}})
	alone, err := v.changeOf(v.today, v.today.with(shop, to), shop, v.affected(v.today, v.today.with(shop, to)))
	if err != nil {
		t.Fatal(err)
	}
	together, err := v.candidate(v.today, shop, to)
	if err != nil {
		t.Fatal(err)
	}
	if alone.saves > .05*together.change.saves {
		t.Errorf("alone it saves %v, together %v", alone.saves, together.change.saves)
	}
}

// A second site whose own services take four fifths of it cannot take another's load: capacity, not disaster recovery.
func TestAFullSecondSiteIsNoDisasterRecovery(t *testing.T) {
	t.Parallel()
	full := `
  local:
    now: {pattern: single, sites: [b]}
    demand: {peak: 10, cores: 320}
    consider: [single]
`
	for _, c := range []struct {
		cores   string
		refused bool
	}{{"cores: 20", false}, {"cores: 200", true}} {
		r := assessed(t, pair(strings.Replace(rich, "cores: 20", c.cores, 1)+full))
		if o := r.of("shop").with(WarmStandby); o.refused("capacity") != c.refused {
			t.Errorf("%s: %+v", c.cores, o.Outcome.Impossible)
		}
		if at := slices.IndexFunc(r.Sites, func(s SiteAnswer) bool { return s.Site == "b" }); r.Sites[at].CanTakeOver == c.refused {
			t.Errorf("%s: %+v", c.cores, r.Sites[at])
		}
	}
}

// Where the first site is too full, a second one pays as capacity even if it recovers nothing.
func TestASecondSitePaysAsCapacity(t *testing.T) {
	t.Parallel()
	calm := []string{"every: 120d", "every: 1000y", "lasts: 12h", "lasts: 1m"}
	r := assessed(t, pair(strings.Replace(rich, "cores: 20", "cores: 600", 1), calm...))
	s := r.of("shop")
	if s.Now.Capacity.Overload.V <= 0 || s.Now.Availability.Downtime.V < .3*year || !s.Answer.Worth || s.Answer.Purpose != "capacity" || !active(s.Answer.Placement.Pattern) {
		t.Errorf("over its limit: overload %v, downtime %v, %+v", s.Now.Capacity.Overload.V, s.Now.Availability.Downtime.V, s.Answer)
	}
	r = assessed(t, pair(strings.Replace(rich, "cores: 20", "cores: 300", 1), calm...))
	if s := r.of("shop"); s.Answer.Worth || s.Now.Capacity.Overload.V != 0 {
		t.Errorf("with room: %+v", s.Answer)
	}
}

// A feed that both sites hang on undoes the second one, and is what to mend first.
func TestTheSharedFeedIsTheFirstThingToFix(t *testing.T) {
	t.Parallel()
	apart := assessed(t, fmt.Sprintf(twoSites, "99h", "1h", "99h", "1h", "1329.3333333h", "", ""))
	shared := assessed(t, fmt.Sprintf(twoSites, "99h", "1h", "99h", "1h", "1329.3333333h", " and feed", " and feed"))
	nines := func(r *Report) float64 { return -math.Log10(r.Services[0].Now.Availability.Structural.V) }
	if nines(apart) < 3.99 || nines(shared) > 2.6 || nines(shared) < 2.4 {
		t.Errorf("%v and %v nines", nines(apart), nines(shared))
	}
	if len(shared.Fixes) == 0 || shared.Fixes[0].Event != "feed" || shared.Fixes[0].Share < .3 || !strings.Contains(shared.Verdict, "First mend feed") {
		t.Errorf("%+v\n%s", shared.Fixes, shared.Verdict)
	}
}

// The flip revenue is where the verdict really changes.
func TestFlipRevenue(t *testing.T) {
	t.Parallel()
	for _, revenue := range []string{"minute: 500", "minute: 0.01"} {
		text := pair(strings.Replace(rich, "minute: 500", revenue, 1))
		s := assessed(t, text).of("shop")
		if s.Answer.Flip == nil {
			t.Fatalf("%s: no flip: %+v", revenue, s.Answer)
		}
		at := s.Answer.Flip.V
		for _, c := range []struct {
			minute float64
			worth  bool
		}{{at * .999, false}, {at * 1.001, true}} {
			again := assessed(t, strings.Replace(text, revenue, fmt.Sprintf("minute: %.9f", c.minute), 1)).of("shop")
			if again.Answer.Worth != c.worth {
				t.Errorf("%s flips at %v, but at %v it is %v", revenue, at, c.minute, again.Answer)
			}
		}
	}
}

// Another unit of money changes no verdict and no order.
func TestCurrencyUnit(t *testing.T) {
	t.Parallel()
	e, cents := estate(t, travel(12, 3)), estate(t, travel(12, 3))
	v := newEvaluator(cents)
	for _, k := range v.knobs() {
		if n := k.get(); n.Unit == Money {
			k.set(scaled(n, 100))
		}
	}
	a, err := Assess(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Assess(cents, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(a.Roadmap) < 3 || len(a.Roadmap) != len(b.Roadmap) {
		t.Fatalf("%d and %d steps", len(a.Roadmap), len(b.Roadmap))
	}
	for i := range a.Roadmap {
		if x, y := a.Roadmap[i], b.Roadmap[i]; x.Text != y.Text || x.Worth != y.Worth || math.Abs(x.Ratio-y.Ratio) > 1e-6*x.Ratio || math.Abs(100*x.Saves-y.Saves) > 1e-6*y.Saves {
			t.Errorf("step %d: %+v and %+v", i, x, y)
		}
	}
	for i := range a.Services {
		if x, y := a.Services[i], b.Services[i]; x.Service != y.Service || x.Answer.Worth != y.Answer.Worth || x.Answer.Placement.key() != y.Answer.Placement.key() {
			t.Errorf("%s: %+v and %+v", x.Service, x.Answer, y.Answer)
		}
	}
}

// Parts add up: items to bills, bills to totals, causes to downtime, parts to losses.
func TestSums(t *testing.T) {
	t.Parallel()
	text := pair(rich+strings.ReplaceAll(rich, "shop", "second"), "  w: {kind", "  c: {kind: own, city: south, needs: y, cores: 400, exists: false, fixed_month: 700, build_once: 9k}\n  w: {kind", "rtt: 30ms}", "rtt: 30ms}, {between: [a, c], rtt: 30ms, fixed_month: 300}")
	e := estate(t, text)
	v := newEvaluator(e)
	at := v.spotFor(Placement{Pattern: Partitioned, Sites: []string{"a", "c"}, Quorum: "w"})
	for _, a := range []*arrangement{v.today, v.today.with(0, at), v.today.with(0, at).with(1, at)} {
		book, month, once := Book{}, v.fixedMonth(), 0.0
		for i := range v.services {
			o, err := v.outcome(a, i, v.services[i], book)
			if err != nil {
				t.Fatal(err)
			}
			month, once = month+o.Money.Month.V, once+o.Money.Once.V
			for _, x := range []Value{o.Money.Month, o.Money.Once, o.Money.Loss, o.Availability.Downtime, o.Availability.Losses} {
				sum := 0.0
				for _, p := range book[x.ID].Parts {
					if p.Unit == x.Unit && (p.ID == "" || strings.HasSuffix(p.ID, ".overload")) {
						sum += p.Value
					}
				}
				if math.Abs(sum-x.V) > 1e-9*(1+x.V) {
					t.Errorf("%s is %v, its parts %v: %+v", x.ID, x.V, sum, book[x.ID].Parts)
				}
			}
		}
		total, err := v.totals(a)
		if err != nil {
			t.Fatal(err)
		}
		c, err := v.changeOf(v.today, a, 0, v.affected(v.today, a))
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(total.CostMonth-month) > 1e-6 || math.Abs(c.once-once) > 1e-6 {
			t.Errorf("a month costs %v, its bills %v; once %v, its bills %v", total.CostMonth, month, c.once, once)
		}
	}
}

// Every value of a report has a derivation, and the report can be written as JSON and read back.
func TestEveryValueIsDerived(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{"pair": pair(rich), "travel": travel(10, 2)} {
		r := assessed(t, text)
		values := 0
		var walk func(path string, v reflect.Value)
		walk = func(path string, v reflect.Value) {
			switch x := v.Interface().(type) {
			case Book:
				return
			case Value:
				values++
				checkDerivation(t, r.Book, path, x.ID, x.V)
				return
			case Quantiles:
				values++
				checkDerivation(t, r.Book, path, x.ID, x.P95)
				return
			}
			switch v.Kind() {
			case reflect.Pointer:
				if !v.IsNil() {
					walk(path, v.Elem())
				}
			case reflect.Struct:
				for i := range v.NumField() {
					if v.Type().Field(i).Tag.Get("json") == "" {
						t.Errorf("%s.%s has no JSON name", path, v.Type().Field(i).Name)
					}
					walk(path+"."+v.Type().Field(i).Name, v.Field(i))
				}
			case reflect.Slice:
				for i := range v.Len() {
					walk(fmt.Sprintf("%s.%d", path, i), v.Index(i))
				}
			}
		}
		walk(name, reflect.ValueOf(r).Elem())
		text, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back Report
		if err := json.Unmarshal(text, &back); err != nil || !reflect.DeepEqual(r.Services, back.Services) {
			t.Errorf("%s does not come back: %v", name, err)
		}
		t.Logf("%s: %d values, %d derivations, %d bytes of JSON", name, values, len(r.Book), len(text))
	}
}

func checkDerivation(t *testing.T, book Book, path, id string, value float64) {
	t.Helper()
	d, ok := book[id]
	switch {
	case !ok:
		t.Errorf("%s (%q) has no derivation", path, id)
		return
	case d.What == "" || d.Method == "" || d.Value != value:
		t.Errorf("%s: %+v; want %v", path, d, value)
	}
	for _, p := range d.Parts {
		if _, known := book[p.ID]; p.ID != "" && !known {
			t.Errorf("%s: its part %q has no derivation", id, p.ID)
		}
	}
	for _, in := range d.Inputs {
		if in.Path == "" || in.Text == "" || in.Line == 0 && !in.Assumed {
			t.Errorf("%s: input %+v", id, in)
		}
	}
}

// What is wanted and cannot be had speaks against a way where today's way has it; where today's has it neither, the way
// may still be better than what there is, and says of what it falls short.
func TestShortOfWhatIsWanted(t *testing.T) {
	t.Parallel()
	r := assessed(t, pair(rich+"    wants: {rto: 1s, rpo: 0}\n"))
	s := r.of("shop")
	for _, p := range []Pattern{BackupRestore, PilotLight, WarmStandby} {
		o := s.with(p)
		rules := map[string]bool{}
		for _, x := range o.Outcome.Short {
			rules[x.Rule] = true
		}
		if len(o.Outcome.Impossible) > 0 || !rules["rto-below-detection"] || !rules["rpo-zero-async"] {
			t.Errorf("%s: %+v, short of %+v", p, o.Outcome.Impossible, o.Outcome.Short)
		}
	}
	if !s.Answer.Worth || !slices.Contains(s.Answer.Reasons, "nothing that is possible here has what is wanted of it") {
		t.Errorf("%+v", s.Answer)
	}
	near := assessed(t, pair(strings.Replace(rich, "pattern: single, sites: [a]", "pattern: same-city, sites: [a, b], quorum: w", 1)+"    wants: {rpo: 0}\n", "city: south", "city: north", "rtt: 30ms", "rtt: 1ms"))
	if o := near.of("shop").with(WarmStandby); !o.refused("rpo-zero-async") || len(o.Outcome.Short) > 0 {
		t.Errorf("it loses nothing today, and would: %+v", o.Outcome)
	}
	now := assessed(t, pair(strings.Replace(rich, "pattern: single, sites: [a]", "pattern: warm-standby, sites: [a, b]", 1)+"    wants: {rpo: 0}\n"))
	if o := now.of("shop").Now; !slices.ContainsFunc(o.Impossible, func(r Refusal) bool { return r.Rule == "rpo-zero-async" }) {
		t.Errorf("a file that promises it: %+v", o)
	}
}

// No step of a roadmap takes back what an earlier one built.
func TestRoadmapTakesNothingBack(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]*Report{"travel 1": assessed(t, travel(16, 1)), "travel 2": assessed(t, travel(16, 2)), "tickets": assessedExample(t, "travel-tickets.yaml")} {
		today, steps := Plan{}, 0
		for _, s := range r.Services {
			today[s.Service] = s.Now.Placement
		}
		before := today
		for _, p := range r.Pareto {
			if !strings.HasPrefix(p.Name, "step ") {
				continue
			}
			steps++
			for service, to := range p.Plan {
				if was := before[service]; was.key() != today[service].key() && rank(to.Pattern) < rank(was.Pattern) {
					t.Errorf("%s, %s: %s goes from %s to %s", name, p.Name, service, was, to)
				}
			}
			before = p.Plan
		}
		if steps < 1 {
			t.Errorf("%s: %d steps", name, steps)
		}
	}
}

// A service that runs at two sites already takes what it needs along into a faster pattern: alone it gains nothing.
func TestTheClosureMovesUpTogether(t *testing.T) {
	t.Parallel()
	v := newEvaluator(estate(t, pair(strings.Replace(rich, "    servers:", "    calls: [{to: stock}]\n    servers:", 1)+`
  stock:
    now: {pattern: single, sites: [a]}
    demand: {peak: 100, cores: 10}
    data: {size: 10GB, changes: 100KB/s, by_user: 90%}
`)))
	shop, stock := v.service["shop"], v.service["stock"]
	p := func(x Pattern) *spot { return v.spotFor(Placement{Pattern: x, Sites: []string{"a", "b"}, Quorum: "w"}) }
	standby := v.today.with(shop, p(PilotLight)).with(stock, p(PilotLight))
	if up := v.along(standby, shop, p(Partitioned)); v.spot(up, stock).Pattern != Partitioned {
		t.Errorf("up: stock stays %s", v.spot(up, stock).Placement)
	}
	if down := v.along(v.today.with(shop, p(Partitioned)).with(stock, p(Partitioned)), shop, p(PilotLight)); v.spot(down, stock).Pattern != Partitioned {
		t.Errorf("down: stock goes to %s", v.spot(down, stock).Placement)
	}
}
