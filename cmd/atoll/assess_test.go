package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/assess"
)

// estate writes the draft that `assess new` begins with.
func estate(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "estate.yaml")
	if out, err := run(t, "assess", "new", file); err != nil || !strings.Contains(out, "next: atoll assess") {
		t.Fatalf("%v\n%s", err, out)
	}
	return file
}

// object is what a command printed from its first brace on: what it says of its progress stands before.
func object(out string) []byte { return []byte(out[max(0, strings.IndexByte(out, '{')):]) }

func TestAssess_FromADraftToAReport(t *testing.T) {
	t.Parallel()
	file := estate(t)
	page := filepath.Join(filepath.Dir(file), "report.html")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{file, "--html", page}, []string{"wrote " + page, "Mend first", "Roadmap", "Sites: disaster recovery or capacity"}},
		{[]string{file, "--explain"}, []string{"shop.downtime", "total.today.loss"}},
		{[]string{file, "--explain", "shop.downtime"}, []string{"shop.downtime = ", "line "}},
		{[]string{"--explain", "shop.downtime", file}, []string{"shop.downtime = "}},
		{[]string{file, "--gate", "possible", "--gate", "total.today.downtime<=9d"}, []string{"Roadmap"}},
		{[]string{file, "--simulate", "--years", "50"}, []string{"simulation"}},
	} {
		out, err := run(t, append([]string{"assess"}, c.args...)...)
		for _, w := range c.want {
			if err != nil || !strings.Contains(out, w) {
				t.Errorf("%v: %v\n%s\nwant %q", c.args, err, out, w)
			}
		}
	}
	if text, err := os.ReadFile(page); err != nil || !bytes.HasPrefix(text, []byte("<!doctype html>")) {
		t.Errorf("the page: %v", err)
	}
	out, err := run(t, "assess", file, "--json")
	var r assess.Report
	if err != nil || json.Unmarshal(object(out), &r) != nil || r.Verdict == "" || len(r.Services) != 2 {
		t.Errorf("JSON: %v", err)
	}
	_, err = run(t, "assess", "new", file)
	wantError(t, err, "exists already")
}

func TestAssess_GatesEndWithTheirOwnStatus(t *testing.T) {
	t.Parallel()
	file := estate(t)
	out, err := run(t, "assess", file, "--gate", "total.today.downtime<=1s")
	if exitStatus(err) != gateFailed || !strings.Contains(out, "gate total.today.downtime<=1s: ") {
		t.Errorf("status %d, %v\n%s", exitStatus(err), err, out)
	}
	for _, args := range [][]string{{file, "--gate", "x"}, {file, "--gate", "nothing.here<=1"}, {"nowhere.yaml"}, {}} {
		if _, err := run(t, append([]string{"assess"}, args...)...); exitStatus(err) != 1 || err == nil {
			t.Errorf("%v: status %d, %v", args, exitStatus(err), err)
		}
	}
}

func TestAssess_SaysWhatIsWrongAndWhere(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	broken := write("broken.yaml", "estate: 1\nsite: {}\n")
	network := write("network.yaml", "network: 1\nnodes: [{name: a}, {name: b}]\nedges: [{between: [a, c], available: 1}]\n")
	tree := write("tree.xml", "<opsa-mef>\n<define-fault-tree name='t'><define-gate name='g'><most/></define-gate></define-fault-tree></opsa-mef>")
	for _, c := range []struct{ args, want []string }{
		{[]string{broken}, []string{"1 problem(s)", "broken.yaml:2:1", `did you mean "sites"?`}},
		{[]string{"nowhere.yaml"}, []string{"atoll assess new"}},
		{[]string{"network", network}, []string{"1 problem(s)", "network.yaml:3:", `node "c" does not exist`}},
		{[]string{"fta", tree}, []string{"tree.xml:2:"}},
		{[]string{"fta", "nowhere.xml"}, []string{"nowhere.xml"}},
		{[]string{"fta", tree, "--max-order", "-1"}, []string{"negative"}},
		{[]string{"export", broken}, []string{"--mef"}},
	} {
		_, err := run(t, append([]string{"assess"}, c.args...)...)
		wantError(t, err, c.want...)
	}
}

// TestAssess_ExportedTreesSayTheSame: what is exported, read again by fta, has the probability that the report has.
func TestAssess_ExportedTreesSayTheSame(t *testing.T) {
	t.Parallel()
	file := estate(t)
	xml, err := run(t, "assess", "export", "--mef", file, "--service", "shop")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "tree.xml")
	if err := os.WriteFile(path, []byte(xml), 0o600); err != nil {
		t.Fatal(err)
	}
	var tree struct {
		Probability  float64  `json:"probability"`
		RareEventSum *float64 `json:"rare_event_sum"`
		CutSets      struct {
			Total    uint64   `json:"total"`
			ByOrder  []uint64 `json:"by_order"`
			MaxOrder int      `json:"max_order"`
		} `json:"cut_sets"`
	}
	out, err := run(t, "assess", "fta", path, "--json", "--max-order", "1")
	if err != nil || json.Unmarshal(object(out), &tree) != nil || tree.RareEventSum == nil || tree.CutSets.MaxOrder != 1 {
		t.Fatalf("%v\n%s", err, out)
	}
	explained, err := run(t, "assess", file, "--explain", "shop.structural", "--json")
	var d assess.Derivation
	if err != nil || json.Unmarshal(object(explained), &d) != nil {
		t.Fatalf("%v\n%s", err, explained)
	}
	if diff := tree.Probability/d.Value - 1; diff > 1e-9 || diff < -1e-9 {
		t.Errorf("fta says %v, the report %v", tree.Probability, d.Value)
	}
	if all, err := run(t, "assess", "export", "--mef", file); err != nil || !strings.Contains(all, "any_service") {
		t.Errorf("all services: %v", err)
	}
}

func TestAssess_NetworkAndFaultTreeAsText(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "network.yaml")
	text := "network: 1\nnodes: [{name: a}, {name: b}, {name: c}]\nedges:\n  - {between: [a, b], available: 99%}\n  - {between: [b, c], available: 99%}\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"network", path}, "98.0 %"},
		{[]string{"network", path, "--json"}, `"availability": 0.9801`},
	} {
		out, err := run(t, append([]string{"assess"}, c.args...)...)
		if err != nil || !strings.Contains(out, c.want) {
			t.Errorf("%v: %v\n%s\nwant %q", c.args, err, out, c.want)
		}
	}
}

// TestAskFor: answers fill the draft in, wrong ones are asked for again, and an end of answers writes nothing.
func TestAskFor(t *testing.T) {
	t.Parallel()
	d := assess.NewDraft()
	var said bytes.Buffer
	answers := "Tickets: [x]\nCNY\na b!, c\neast, west-cloud\n\nHangzhou\nyours\ncloud\nShanghai\nbuy pay\nmuch\n~2k\n\n"
	if err := askFor(d, strings.NewReader(answers), &said); err != nil {
		t.Fatalf("%v\n%s", err, said.String())
	}
	text, err := d.Text()
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{`title: "Tickets: [x]"`, `currency: "CNY"`, `city: "Hangzhou"`, "west-cloud: {kind: cloud", "sites: [east]", "minute: ~2k"} {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
	for _, w := range []string{`site name "b!"`, "write own or cloud", `"much"`} {
		if !strings.Contains(said.String(), w) {
			t.Errorf("a wrong answer is not told %q:\n%s", w, said.String())
		}
	}
	if err := askFor(assess.NewDraft(), strings.NewReader("x\n"), &said); err == nil || !strings.Contains(err.Error(), "nothing was written") {
		t.Errorf("an end of answers: %v", err)
	}
}
