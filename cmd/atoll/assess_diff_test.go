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

// twoVersions writes the draft of an estate, and another version of it.
func twoVersions(t *testing.T, old, changed string) (before, after string) {
	t.Helper()
	before = estate(t)
	text, err := os.ReadFile(before)
	if err != nil {
		t.Fatal(err)
	}
	other := strings.Replace(string(text), old, changed, 1)
	if other == string(text) {
		t.Fatalf("the draft has no %q", old)
	}
	after = filepath.Join(filepath.Dir(before), "after.yaml")
	if err := os.WriteFile(after, []byte(other), 0o600); err != nil {
		t.Fatal(err)
	}
	return before, after
}

func TestAssessDiff(t *testing.T) {
	t.Parallel()
	before, after := twoVersions(t, "own_gb_month: ~0.05", "own_gb_month: 0.04")
	for _, c := range []struct {
		args   []string
		status int
		want   []string
	}{
		{[]string{before, before}, 0, []string{"Nothing differs"}},
		{[]string{before, before, "--markdown"}, 0, []string{"<!-- atoll assess diff -->", "Nothing differs"}},
		{[]string{before, after}, 0, []string{"1 input differs; no verdict changes", "prices.own_gb_month", "~0.05 → 0.04, assumed → given"}},
		{[]string{before, after, "--gate", "no-worse", "--gate", "no-new-singles", "--gate", "no-lost-verdict", "--gate", "no-new-misses"}, 0, []string{"Totals"}},
		{[]string{before, after, "--gate", "total.today.downtime<=-1%"}, gateFailed, []string{"Totals", "gate total.today.downtime<=-1%: "}},
		{[]string{before, after, "--gate", "total.today.downtime<=1s", "--markdown"}, gateFailed, []string{"**Totals**", "gate total.today.downtime<=1s: "}},
	} {
		out, err := run(t, append([]string{"assess", "diff"}, c.args...)...)
		status := 0
		if err != nil {
			status = exitStatus(err)
		}
		for _, w := range c.want {
			if status != c.status || !strings.Contains(out, w) {
				t.Errorf("%v: status %d, %v\n%s\nwant %d and %q", c.args, status, err, out, c.status, w)
			}
		}
	}
	out, err := run(t, "assess", "diff", before, after, "--json")
	var d assess.Difference
	if err != nil || json.Unmarshal(object(out), &d) != nil || len(d.Inputs) != 1 || d.Inputs[0].Path != "prices.own_gb_month" || d.Verdicts == nil || d.Singles == nil {
		t.Errorf("JSON: %v\n%s", err, out)
	}
}

// TestAssessDiff_StandardInput: one of the two comes in by a pipe.
func TestAssessDiff_StandardInput(t *testing.T) {
	t.Parallel()
	before, after := twoVersions(t, "own_gb_month: ~0.05", "own_gb_month: 0.04")
	for _, c := range []struct {
		piped string
		args  []string
		want  string
	}{{before, []string{"-", after}, "~0.05 → 0.04"}, {after, []string{before, "-"}, "~0.05 → 0.04"}, {before, []string{"-", before}, "Nothing differs"}} {
		text, err := os.ReadFile(c.piped)
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		root := newRoot()
		root.SetOut(&out)
		root.SetErr(&out)
		root.SetIn(bytes.NewReader(text))
		root.SetArgs(append([]string{"assess", "diff"}, c.args...))
		if err := root.ExecuteContext(t.Context()); err != nil || !strings.Contains(out.String(), c.want) || !strings.Contains(out.String(), "standard input") {
			t.Errorf("%v: %v\n%s", c.args, err, out.String())
		}
	}
}

func TestAssessDiff_SaysWhatIsWrongAndWhere(t *testing.T) {
	t.Parallel()
	good, other := twoVersions(t, `currency: "EUR"`, `currency: "CNY"`)
	broken := filepath.Join(filepath.Dir(good), "broken.yaml")
	if err := os.WriteFile(broken, []byte("estate: 1\nsite: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, want []string }{
		{[]string{broken, good}, []string{"A, as it was: 1 problem(s)", "broken.yaml:2:1"}},
		{[]string{good, broken}, []string{"B, as it would be: 1 problem(s)", "broken.yaml:2:1"}},
		{[]string{"nowhere.yaml", broken}, []string{"A, as it was: ", "nowhere.yaml", "B, as it would be: 1 problem(s)"}},
		{[]string{good, other}, []string{"EUR", "CNY", "cannot be compared"}},
		{[]string{"-", "-"}, []string{"both A and B"}},
		{[]string{good}, []string{"accepts 2 arg(s)"}},
		{[]string{good, good, "--gate", "better"}, []string{"no-worse"}},
		{[]string{good, good, "--gate", "shp.downtime<=+1h"}, []string{"nothing is called"}},
		{[]string{good, good, "--markdown", "--json"}, []string{"choose one"}},
	} {
		_, err := run(t, append([]string{"assess", "diff"}, c.args...)...)
		wantError(t, err, c.want...)
		if exitStatus(err) != 1 {
			t.Errorf("%v: status %d", c.args, exitStatus(err))
		}
	}
}
