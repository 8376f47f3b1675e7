package fault

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// The oracle is SCRAM, another program for fault trees (Debian's package scram): what it says of a model must be what
// this package says. `make check-oracle` runs this; it is no part of the usual tests, for SCRAM is not on every machine.
//
//	ATOLL_SCRAM=/usr/bin/scram go test -v -run TestOracle ./internal/fault
//
// ATOLL_ORACLE_TREES is how many random trees are drawn (300), ATOLL_ORACLE_SEED repeats a run, ATOLL_ORACLE_MODELS is a
// folder of more models. Where both say different things of a small tree, going through all of its states decides:
// SCRAM 0.16.2 errs about votes (k of n) two of whose arguments come to the same. It also turns the sign of importances
// around in some trees that say "not"; so those are compared in the others.
func TestOracle(t *testing.T) {
	scram := os.Getenv("ATOLL_SCRAM")
	if scram == "" {
		t.Skip("ATOLL_SCRAM names no SCRAM: see make check-oracle")
	}
	o := &oracle{t: t, program: scram, dir: t.TempDir()}
	if dir := os.Getenv("ATOLL_ORACLE_MODELS"); dir != "" {
		files, err := filepath.Glob(filepath.Join(dir, "*.xml"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no models in %s (%v)", dir, err)
		}
		for _, file := range files {
			o.compare(filepath.Base(file), file)
		}
	}
	trees, seed := uint64(300), rand.Uint64()
	for name, v := range map[string]*uint64{"ATOLL_ORACLE_TREES": &trees, "ATOLL_ORACLE_SEED": &seed} {
		if text := os.Getenv(name); text != "" {
			var err error
			if *v, err = strconv.ParseUint(text, 10, 64); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	t.Logf("random trees of ATOLL_ORACLE_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 6))
	for i := range trees {
		m := oracleModel(r, i%3 != 0)
		var doc bytes.Buffer
		if err := WriteMEF(&doc, m); err != nil {
			t.Fatalf("tree %d: %v", i, err)
		}
		file := filepath.Join(o.dir, fmt.Sprintf("tree%d.xml", i))
		if err := os.WriteFile(file, doc.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		o.compare(fmt.Sprintf("tree %d", i), file)
	}
	t.Logf("%d models compared, %d differ; SCRAM is wrong about %d; %d importances compared", o.models, o.differ, o.wrong, o.importances)
	if o.models < int(trees) || trees > 0 && o.importances == 0 {
		t.Error("not everything was compared")
	}
}

// oracleModel draws a tree that SCRAM reads: no argument twice, no operator that its format lacks; every event is used.
func oracleModel(r *rand.Rand, coherent bool) *Model {
	m := &Model{Top: "g0", Gates: map[string]Formula{}, Events: map[string]Event{}, House: map[string]bool{"on": true, "off": false}}
	gates, events := 3+r.IntN(15), 4+r.IntN(9)
	ops := []Op{And, Or, Or, AtLeast}
	if r.IntN(4) == 0 { // a large one, about which nobody but SCRAM can be asked: without votes
		gates, events, ops = 10+r.IntN(40), 20+r.IntN(60), ops[:3]
	}
	var names []string
	for i := range events {
		name := fmt.Sprintf("e%d", i)
		m.Events[name] = Event{Probability: math.Pow(10, -4*r.Float64())}
		names = append(names, name)
	}
	rest := slices.Clone(names)
	for g := range gates {
		var args []string
		if g+1 < gates {
			args = append(args, fmt.Sprintf("g%d", g+1)) // so that every gate stands below the top
		}
		for len(args) < 2+r.IntN(4) || g+1 == gates && len(rest) > 0 {
			var a string
			switch k := r.IntN(20); {
			case len(rest) > 0 && (k < 12 || g+1 == gates):
				a, rest = rest[0], rest[1:]
			case k < 15 && g+2 < gates:
				a = fmt.Sprintf("g%d", g+2+r.IntN(gates-g-2))
			case k == 15:
				a = []string{"on", "off"}[r.IntN(2)]
			default:
				a = names[r.IntN(len(names))]
			}
			if !slices.Contains(args, a) {
				args = append(args, a)
			}
		}
		f := Formula{Op: ops[r.IntN(len(ops))], Args: refs(args...)}
		if !coherent && r.IntN(3) == 0 {
			f.Op = []Op{Not, Xor, Nand, Nor}[r.IntN(4)]
		}
		switch f.Op {
		case AtLeast:
			f.K = 1 + r.IntN(len(args))
		case Not:
			f = Formula{Op: Or, Args: append(f.Args[1:], Formula{Op: Not, Args: f.Args[:1]})}
		case Xor:
			f = Formula{Op: Or, Args: append(f.Args[2:], Formula{Op: Xor, Args: f.Args[:2]})}
		}
		m.Gates[fmt.Sprintf("g%d", g)] = f
	}
	if r.IntN(3) == 0 {
		members := 2 + r.IntN(3)
		g := Group{Name: "group", Model: BetaFactor, Members: names[:members], Probability: m.Events["e0"].Probability, Factors: []float64{.2 * r.Float64()}}
		if r.IntN(4) > 0 {
			g.Model, g.Factors = []GroupModel{MGL, AlphaFactor, PhiFactor}[r.IntN(3)], nil
			left := 1.0
			for range members - 1 {
				share := left * (.6 + .3*r.Float64())
				g.Factors = append(g.Factors, share)
				left -= share
			}
			if g.Model != MGL {
				g.Factors = append(g.Factors, left)
			}
		}
		m.Groups = []Group{g}
	}
	return m
}

type oracle struct {
	t                                  *testing.T
	program, dir                       string
	models, differ, wrong, importances int
}

// oracleReport is what is read of SCRAM's report.
type oracleReport struct {
	Sums []struct {
		Name         string  `xml:"name,attr"`
		Probability  float64 `xml:"probability,attr"`
		Products     uint64  `xml:"products,attr"`
		Distribution string  `xml:"distribution,attr"`
	} `xml:"results>sum-of-products"`
	Importance []struct {
		Events []struct {
			Name        string  `xml:"name,attr"`
			Birnbaum    float64 `xml:"MIF,attr"`
			Criticality float64 `xml:"CIF,attr"`
			RAW         float64 `xml:"RAW,attr"`
			RRW         float64 `xml:"RRW,attr"`
		} `xml:"basic-event"`
	} `xml:"results>importance"`
}

func (o *oracle) compare(name, file string) {
	o.t.Helper()
	o.models++
	wrong := func(format string, args ...any) {
		o.t.Helper()
		o.differ++
		text, _ := os.ReadFile(file)
		o.t.Errorf("%s: %s\n%s", name, fmt.Sprintf(format, args...), text[:min(len(text), 20_000)])
	}
	var said oracleReport
	out := filepath.Join(o.dir, "report.xml")
	cmd := exec.Command(o.program, "--bdd", "--probability", "1", "--importance", "1", "--ccf", "1", "--limit-order", "1000", "-o", out, file)
	if text, err := cmd.CombinedOutput(); err != nil {
		wrong("SCRAM does not take it: %v\n%s", err, text)
		return
	}
	doc, err := os.ReadFile(out)
	if err == nil {
		err = xml.Unmarshal(doc, &said)
	}
	if err != nil || len(said.Sums) != 1 {
		wrong("SCRAM's report: %d results, %v", len(said.Sums), err)
		return
	}
	want := said.Sums[0]
	m, err := ReadMEFFiles([]string{file}, func(name string) (io.ReadCloser, error) { return os.Open(name) }, ReadOptions{})
	if err != nil {
		wrong("%v", err)
		return
	}
	got, err := Analyse(m, Options{})
	if err != nil {
		wrong("%v", err)
		return
	}
	byOrder := ""
	for i, n := range got.CutSets.ByOrder {
		if byOrder += strconv.FormatUint(n, 10); i+1 < len(got.CutSets.ByOrder) {
			byOrder += " "
		}
	}
	total := got.CutSets.Total
	if got.CutSets.Certain { // SCRAM counts the empty set, as one of one event
		total, byOrder = 1, "1"
	}
	if !printed(got.Probability, want.Probability) || total != want.Products || byOrder != want.Distribution {
		differ := fmt.Sprintf("P %.9g, %d cut sets (%s); SCRAM says %v, %d (%s)", got.Probability, total, byOrder, want.Probability, want.Products, want.Distribution)
		if p, sets, ok := everyState(m.expand()); ok && math.Abs(p-got.Probability) <= 1e-12 && (sets == got.CutSets.Total || got.CutSets.Certain) {
			o.wrong++
			o.t.Logf("%-30s %s: every state says P %.9g, %d cut sets", name, differ, p, sets)
			return
		}
		wrong("%s", differ)
		return
	}
	if got.NonCoherent {
		said.Importance = nil
	}
	for _, list := range said.Importance {
		for _, e := range list.Events {
			at := slices.IndexFunc(got.Importance, func(i Importance) bool { return i.Event == e.Name })
			if at < 0 {
				if e.Birnbaum != 0 {
					wrong("no importance of %s; SCRAM says %v", e.Name, e.Birnbaum)
				}
				continue
			}
			i := got.Importance[at]
			if !printed(i.Birnbaum, e.Birnbaum) || !printed(i.Criticality, e.Criticality) || !printed(i.RAW, e.RAW) || i.RRW < 1e6 && !printed(i.RRW, e.RRW) {
				wrong("importance of %s: %+v; SCRAM says %+v", e.Name, i, e)
			}
			o.importances++
		}
	}
	o.t.Logf("%-30s P %-12.6g %d cut sets, as SCRAM says", name, got.Probability, total)
}

// everyState goes through all states of a small tree, each a set of events that happened.
func everyState(m *Model) (p float64, sets uint64, ok bool) {
	names := slices.Sorted(maps.Keys(m.Events))
	if len(names) > 20 {
		return 0, 0, false
	}
	var cuts []int // a subset comes before what contains it
	for state := range 1 << len(names) {
		on, weight := make(map[string]bool, len(names)), 1.0
		for i, name := range names {
			if on[name] = state>>i&1 == 1; on[name] {
				weight *= m.Events[name].Probability
			} else {
				weight *= 1 - m.Events[name].Probability
			}
		}
		if m.holds(Ref(m.Top), on) {
			p += weight
			if !slices.ContainsFunc(cuts, func(c int) bool { return c&state == c }) {
				cuts = append(cuts, state)
			}
		}
	}
	return p, uint64(len(cuts)), true
}

// printed tells whether a number is another that was printed with six digits: what was rounded off, and 1e-6 of it for
// how either was computed.
func printed(v, six float64) bool {
	if v == six {
		return true
	}
	rounded := .5 * math.Pow(10, math.Floor(math.Log10(math.Abs(v)))-5)
	return math.Abs(v-six) <= rounded+1e-6*math.Abs(v)+1e-13
}
