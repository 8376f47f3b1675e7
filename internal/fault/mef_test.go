package fault

import (
	"bytes"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

const sample = `<?xml version="1.0"?>
<opsa-mef name="site">
  <define-fault-tree name="site">
    <define-gate name="down">
      <label>the site is down</label>
      <or>
        <gate name="power"/>
        <atleast min="2"><basic-event name="r1"/><basic-event name="r2"/><event name="r3"/></atleast>
        <and><house-event name="winter"/><event name="chiller"/></and>
      </or>
    </define-gate>
    <define-component name="feed" role="private">
      <define-gate name="both"><and><basic-event name="utility"/><basic-event name="generator"/></and></define-gate>
      <define-basic-event name="utility"><parameter name="often"/></define-basic-event>
      <define-parameter name="often"><mul><float value="0.1"/><float value="2"/></mul></define-parameter>
    </define-component>
    <define-gate name="power"><gate name="feed.both"/></define-gate>
    <define-house-event name="winter"><constant value="true"/></define-house-event>
  </define-fault-tree>
  <define-CCF-group name="routers" model="beta-factor">
    <members><basic-event name="r1"/><basic-event name="r2"/><basic-event name="r3"/></members>
    <distribution><float value="0.01"/></distribution>
    <factor level="3"><float value="0.1"/></factor>
  </define-CCF-group>
  <model-data>
    <define-basic-event name="generator"><label>does not start</label><float value="0.05"/></define-basic-event>
    <define-basic-event name="chiller"><exponential><float value="1e-5"/><system-mission-time/></exponential></define-basic-event>
  </model-data>
</opsa-mef>`

func TestReadMEF(t *testing.T) {
	t.Parallel()
	m, err := ReadMEF(strings.NewReader(sample), "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	if m.Top != "down" || m.Events["generator"].Label != "does not start" || !m.House["winter"] {
		t.Errorf("read as %+v", m)
	}
	r, err := Analyse(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	q, common := .009, .001
	two := 3*q*q - 2*q*q*q
	routers := 1 - (1-two)*(1-common)
	want := 1 - (1-.2*.05)*(1-routers)*(1-(-math.Expm1(-1e-2)))
	if math.Abs(r.Probability-want) > 1e-12 {
		t.Errorf("P %v; want %v", r.Probability, want)
	}
	if got := r.CutSets.ByOrder; got[0] != 2 || got[1] != 4 {
		t.Errorf("cut sets by order %v; want 2 (chiller, all routers) and 4", got)
	}
}

// What is written reads back to the same answers.
func TestMEFThereAndBack(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 4))
	for i := range 200 {
		m := randomModel(r, 2+r.IntN(8), i%2 == 0)
		if i%5 == 0 {
			m.Groups = []Group{{Name: "a group", Model: AlphaFactor, Members: []string{"e0", "e1"}, Probability: .3, Factors: []float64{.9, .1}}}
		}
		var doc bytes.Buffer
		if err := WriteMEF(&doc, m); err != nil {
			t.Fatal(err)
		}
		back, err := ReadMEF(bytes.NewReader(doc.Bytes()), m.Top, 0)
		if err != nil {
			t.Fatalf("seed %d, model %d: %v\n%s", seed, i, err, doc.Bytes())
		}
		a, err := Analyse(m, Options{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := Analyse(back, Options{})
		if err != nil {
			t.Fatal(err)
		}
		if math.Abs(a.Probability-b.Probability) > 1e-12 || a.CutSets.Total != b.CutSets.Total {
			t.Fatalf("seed %d, model %d: P %v and %d cut sets became %v and %d\n%s", seed, i, a.Probability, a.CutSets.Total, b.Probability, b.CutSets.Total, doc.Bytes())
		}
	}
}

func TestBadMEF(t *testing.T) {
	t.Parallel()
	in := func(body string) string {
		return "<opsa-mef>\n<define-fault-tree name='t'>\n" + body + "\n</define-fault-tree></opsa-mef>"
	}
	for _, c := range []struct{ name, doc, want string }{
		{"no XML", "hello", "no Open-PSA model"},
		{"broken", "<opsa-mef><a></opsa-mef>", "line 1, column"},
		{"another document", "<html/>", "opsa-mef"},
		{"no top", in(""), "no top event"},
		{"two tops", in("<define-gate name='a'><event name='e'/></define-gate><define-gate name='b'><event name='e'/></define-gate><define-basic-event name='e'/>"), "several top events"},
		{"unknown name", in("<define-gate name='a'><or><event name='e'/><event name='f'/></or></define-gate><define-basic-event name='e'/>"), `line 3, column 44: "f" is neither`},
		{"circle", in("<define-gate name='a'><gate name='b'/></define-gate><define-gate name='b'><gate name='c'/></define-gate><define-gate name='c'><gate name='b'/></define-gate>"), "contain each other"},
		{"twice", in("<define-basic-event name='e'/><define-basic-event name='e'/>"), "defined twice"},
		{"probability", in("<define-basic-event name='e'><float value='1.5'/></define-basic-event>"), "probability 1.5"},
		{"not a number", in("<define-basic-event name='e'><float value='x'/></define-basic-event>"), "no number"},
		{"infinite", in("<define-basic-event name='e'><float value='inf'/></define-basic-event>"), "no number"},
		{"parameter of itself", in("<define-parameter name='p'><parameter name='p'/></define-parameter><define-basic-event name='e'><parameter name='p'/></define-basic-event>"), "by itself"},
		{"atleast without min", in("<define-gate name='a'><atleast><event name='e'/><event name='e'/></atleast></define-gate><define-basic-event name='e'/>"), "min of <atleast>"},
		{"atleast of too few", in("<define-gate name='a'><atleast min='3'><event name='e'/><event name='e'/></atleast></define-gate><define-basic-event name='e'/>"), "at least 3 of 2"},
		{"unknown formula", in("<define-gate name='a'><often><event name='e'/></often></define-gate><define-basic-event name='e'/>"), "no formula"},
		{"unknown element", "<opsa-mef><define-event-tree name='x'/></opsa-mef>", "not understood"},
		{"group of one", "<opsa-mef><define-CCF-group name='g' model='MGL'><members><basic-event name='e'/></members><distribution><float value='.1'/></distribution></define-CCF-group></opsa-mef>", "1 members"},
		{"group of an unknown model", "<opsa-mef><define-CCF-group name='g' model='guess'><members><basic-event name='e'/><basic-event name='f'/></members></define-CCF-group></opsa-mef>", "does not exist"},
		{"phi factors that do not sum up", "<opsa-mef><define-CCF-group name='g' model='phi-factor'><members><basic-event name='e'/><basic-event name='f'/></members><distribution><float value='.1'/></distribution><factors><factor level='1'><float value='.1'/></factor></factors></define-CCF-group></opsa-mef>", "want 1"},
	} {
		_, err := ReadMEF(strings.NewReader(c.doc), "", 0)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

func FuzzReadMEF(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`<opsa-mef><define-fault-tree name="t"><define-gate name="g"><not><constant value="true"/></not></define-gate></define-fault-tree></opsa-mef>`))
	f.Add([]byte("<opsa-mef>"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		m, err := ReadMEF(bytes.NewReader(doc), "", 0)
		if err != nil {
			return
		}
		if _, err := Analyse(m, Options{MaxNodes: 10000, MaxOrder: 3}); err != nil && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("a model that was read cannot be analysed: %v", err)
		}
		var out bytes.Buffer
		if err := WriteMEF(&out, m); err != nil {
			t.Fatal(err)
		}
	})
}
