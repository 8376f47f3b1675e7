package fault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
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
	m, err := ReadMEF(strings.NewReader(sample), ReadOptions{MissionTime: 1000})
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
		back, err := ReadMEF(bytes.NewReader(doc.Bytes()), ReadOptions{Top: m.Top})
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
		{"unknown element", "<opsa-mef><define-wish name='x'/></opsa-mef>", "not understood"},
		{"event tree", "<opsa-mef>\n <define-event-tree name='x'/></opsa-mef>", "line 2, column 2: <define-event-tree>: event trees are not analysed; name the top"},
		{"phases", "<opsa-mef><define-alignment name='x'/></opsa-mef>", "phases of a mission"},
		{"substitution", "<opsa-mef><define-substitution name='x'/></opsa-mef>", "substitutions are not"},
		{"foreign code", "<opsa-mef><define-extern-library name='x' path='y'/></opsa-mef>", "no other program"},
		{"no gate", "<opsa-mef><model-data/></opsa-mef>", "name all files"},
		{"UTF-16", "\xff\xfe<\x00o\x00", "line 1, column 1: the file is in UTF-16; save it in UTF-8"},
		{"not UTF-8", "<opsa-mef name='\xe9'/>", "save the file in UTF-8"},
		{"another encoding", "<?xml version='1.0' encoding='koi8-r'?><opsa-mef/>", "koi8-r"},
		{"another namespace", "<opsa-mef xmlns='http://example.org/other'/>", "without xmlns"},
		{"foreign element", "<opsa-mef xmlns:x='http://example.org/other'>\n<x:define-gate name='a'/></opsa-mef>", "line 2, column 1: <define-gate> is of the namespace"},
		{"attribute twice", "<opsa-mef name='a' name='b'/>", "twice"},
		{"entities", "<!DOCTYPE a [<!ENTITY b 'cccc'><!ENTITY d '&b;&b;'>]><opsa-mef name='&d;'/>", "only the entities of XML itself"},
		{"cut short", "<opsa-mef><define-fault-tree name='t'><define-gate", "is it whole"},
		{"nested deeply", "<opsa-mef>" + strings.Repeat("<a>", 100_000), "nested deeper than 200"},
		{"include from nowhere", "<opsa-mef><include href='x.xml'/></opsa-mef>", "read the model from files"},
		{"include of no file", "<opsa-mef><include/></opsa-mef>", "does not name a file"},
		{"include over a network", "<opsa-mef><include file='http://example.org/x'/></opsa-mef>", "not read over a network"},
		{"gate that is an event", in("<define-gate name='a'><or><gate name='e'/><event name='e'/></or></define-gate><define-basic-event name='e'/>"), `write <basic-event name="e"/>`},
		{"circle's place", in("<define-gate name='a'><gate name='b'/></define-gate>\n<define-gate name='b'><or><gate name='c'/></or></define-gate>\n<define-gate name='c'><or><gate name='b'/></or></define-gate>"), "line 4, column 1: gates contain each other: b, c, b"},
		{"component twice", in("<define-component name='c'/><define-component name='c'/>"), "defined twice, first in line 3"},
		{"group twice", strings.ReplaceAll("<opsa-mef>G G</opsa-mef>", "G", "<define-CCF-group name='g' model='MGL'/>"), "defined twice"},
		{"not a probability", in("<define-basic-event name='e'><float value='NaN'/></define-basic-event>"), "no number"},
		{"a test of every kind", in("<define-basic-event name='e'><periodic-test><float value='1'/></periodic-test></define-basic-event>"), "1 arguments"},
		{"circle of parameters", in("<define-parameter name='p'><parameter name='q'/></define-parameter><define-parameter name='q'><parameter name='p'/></define-parameter><define-basic-event name='e'><parameter name='p'/></define-basic-event>"), "by itself"},
		{"group of one", "<opsa-mef><define-CCF-group name='g' model='MGL'><members><basic-event name='e'/></members><distribution><float value='.1'/></distribution></define-CCF-group></opsa-mef>", "1 members"},
		{"group of an unknown model", "<opsa-mef><define-CCF-group name='g' model='guess'><members><basic-event name='e'/><basic-event name='f'/></members></define-CCF-group></opsa-mef>", "does not exist"},
		{"phi factors that do not sum up", "<opsa-mef><define-CCF-group name='g' model='phi-factor'><members><basic-event name='e'/><basic-event name='f'/></members><distribution><float value='.1'/></distribution><factors><factor level='1'><float value='.1'/></factor></factors></define-CCF-group></opsa-mef>", "want 1"},
	} {
		_, err := ReadMEF(strings.NewReader(c.doc), ReadOptions{})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

// Files that include each other are one model; what is private stays where it is; places are those of the file.
func TestReadMEFFiles(t *testing.T) {
	t.Parallel()
	files := map[string]string{
		"plant/main.xml": `<opsa-mef xmlns:xi="http://www.w3.org/2001/XInclude" name="plant"><define-fault-tree name="t">
			<define-gate name="top"><or><gate name="left.both"/><gate name="t.right.both"/><event name="pump"/></or></define-gate>
			<define-component name="left" role="private"><define-gate name="both"><and><event name="a"/><event name="b"/></and></define-gate>
			<define-basic-event name=" a "><float value=".5"/></define-basic-event><define-basic-event name="b"><float value=".5"/></define-basic-event></define-component>
			<define-component name="right" role="private"><define-gate name="both"><and><event name="a"/><event name="left.a"/></and></define-gate>
			<define-basic-event name="a"><parameter name="rate"/></define-basic-event></define-component>
			</define-fault-tree><xi:include href="sub/data.xml" xpointer="xpointer(/opsa-mef/*)"/></opsa-mef>`,
		"plant/sub/data.xml":  `<opsa-mef><include file="rates.xml"/><define-basic-event name="pump"><float value=".1"/></define-basic-event></opsa-mef>`,
		"plant/sub/rates.xml": `<opsa-mef><define-parameter name="rate" unit="hours-1"><float value=".25"/></define-parameter></opsa-mef>`,
		"circle.xml":          `<opsa-mef><include href="plant/../circle.xml"/></opsa-mef>`,
		"broken.xml":          "<opsa-mef>\n<include href='plant/none.xml'/></opsa-mef>",
		"inner.xml":           "<opsa-mef><include href='wrong.xml'/></opsa-mef>",
		"wrong.xml":           "<opsa-mef>\n <define-wish/></opsa-mef>",
	}
	open := func(name string) (io.ReadCloser, error) {
		text, ok := files[name]
		if !ok {
			return nil, errors.New(name + " is not there")
		}
		return io.NopCloser(strings.NewReader(text)), nil
	}
	m, err := ReadMEFFiles([]string{"plant/main.xml"}, open, ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Analyse(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	// a and b of the left, or a of both: .5·(1 − .5·.75); and the pump.
	if want := 1 - .9*(1-.5*(1-.5*.75)); math.Abs(r.Probability-want) > 1e-12 {
		t.Errorf("P %v; want %v", r.Probability, want)
	}
	if got := fmt.Sprint(r.CutSets.Sets); !strings.Contains(got, "[t.left.a t.right.a]") || r.CutSets.Total != 3 {
		t.Errorf("cut sets %v", got)
	}
	for name, want := range map[string]string{
		"circle.xml": "circle.xml: line 1, column 11: \"circle.xml\" includes itself",
		"broken.xml": "broken.xml: line 2, column 1: cannot include: plant/none.xml is not there",
		"inner.xml":  "wrong.xml: line 2, column 2: <define-wish>",
		"none.xml":   "none.xml is not there",
	} {
		if _, err := ReadMEFFiles([]string{name}, open, ReadOptions{}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v; want %s", name, err, want)
		}
	}
}

// Where an event has no probability, no number is made up; cut sets are as ever.
func TestWithoutProbabilities(t *testing.T) {
	t.Parallel()
	m, err := ReadMEF(strings.NewReader(strings.Replace(sample, `<float value="0.05"/>`, "", 1)), ReadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	r, err := Analyse(m, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if !math.IsNaN(r.Probability) || !math.IsNaN(r.RareEventSum) || len(r.Importance) != 0 || !slices.Equal(r.Unknown, []string{"generator"}) {
		t.Errorf("%+v", r)
	}
	if r.CutSets.Total != 6 || len(r.CutSets.Sets) != 6 || len(r.CutSets.Sets[0].Events) != 1 || !math.IsNaN(r.CutSets.Sets[0].Probability) {
		t.Errorf("cut sets %+v", r.CutSets)
	}
}

// Expressions, by what they are worth.
func TestExpressions(t *testing.T) {
	t.Parallel()
	f := func(v float64) string { return fmt.Sprintf("<float value='%v'/>", v) }
	for _, c := range []struct {
		body string
		want float64
	}{
		{"<GLM>" + f(.01) + f(1e-3) + f(.1) + "<system-mission-time/></GLM>", .01*math.Exp(-10.1) + 1e-3/.101*-math.Expm1(-10.1)},
		{"<Weibull>" + f(1000) + f(3) + f(20) + f(120) + "</Weibull>", 1 - math.Exp(-1e-3)},
		// Failing at rate 1e-3, tested at 30, 80 and at the end: just before that test.
		{"<periodic-test>" + f(1e-3) + f(50) + f(30) + f(80) + "</periodic-test>", 1 - math.Exp(-.05)},
		{"<periodic-test>" + f(1e-3) + f(50) + f(30) + f(20) + "</periodic-test>", 1 - math.Exp(-.02)},
		{"<periodic-test>" + f(1e-3) + f(50) + f(30) + "<system-mission-time/></periodic-test>", 1 - math.Exp(-.02)},
		// A repair that takes no time is the same as none that is waited for.
		{"<periodic-test>" + f(1e-3) + f(1e9) + f(50) + f(30) + "<system-mission-time/></periodic-test>", 1 - math.Exp(-.02)},
		// Never repaired: what has failed stays failed.
		{"<periodic-test>" + f(1e-3) + f(0) + f(50) + f(30) + "<system-mission-time/></periodic-test>", 1 - math.Exp(-.1)},
		{"<switch><case><lt>" + f(2) + f(1) + "</lt>" + f(.9) + "</case><case><geq>" + f(2) + f(1) + "</geq>" + f(.25) + "</case>" + f(.5) + "</switch>", .25},
		{"<switch>" + f(.5) + "</switch>", .5},
		{"<histogram>" + f(0) + "<bin>" + f(.1) + f(1) + "</bin><bin>" + f(.3) + f(3) + "</bin></histogram>", (.05 + 3*.2) / 4},
		{"<ite><and><bool value='true'/><not><bool value='false'/></not></and>" + f(.1) + f(.2) + "</ite>", .1},
		{"<mean>" + f(.1) + f(.2) + f(.6) + "</mean>", .3},
		{"<sub>" + f(.5) + "<div>" + f(1) + f(2) + f(2) + "</div></sub>", .25},
		{"<lognormal-deviate>" + f(.02) + f(3) + f(.95) + "</lognormal-deviate>", .02},
	} {
		doc := "<opsa-mef><define-fault-tree name='t'><define-gate name='g'><event name='e'/></define-gate><define-basic-event name='e'>" + c.body + "</define-basic-event></define-fault-tree></opsa-mef>"
		m, err := ReadMEF(strings.NewReader(doc), ReadOptions{MissionTime: 100})
		if err != nil {
			t.Errorf("%s: %v", c.body, err)
			continue
		}
		if p := m.Events["e"].Probability; math.Abs(p-c.want) > 1e-7 {
			t.Errorf("%s: %v; want %v", c.body, p, c.want)
		}
	}
}

func FuzzReadMEF(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`<opsa-mef><define-fault-tree name="t"><define-gate name="g"><not><constant value="true"/></not></define-gate></define-fault-tree></opsa-mef>`))
	f.Add([]byte("<opsa-mef>"))
	f.Fuzz(func(t *testing.T, doc []byte) {
		m, err := ReadMEF(bytes.NewReader(doc), ReadOptions{})
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
