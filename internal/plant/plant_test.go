package plant

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Every planted bug is named as its tag is, and scripts/lab-planted knows a check for it.
func TestEveryBugIsHunted(t *testing.T) {
	t.Parallel()
	on, err := filepath.Glob("*_on.go")
	if err != nil || len(on) == 0 {
		t.Fatalf("%d planted bugs: %v", len(on), err)
	}
	script, err := os.ReadFile("../../scripts/lab-planted")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("plant.go")
	if err != nil {
		t.Fatal(err)
	}
	var tags []string
	for _, file := range on {
		tag := strings.TrimSuffix(file, "_on.go")
		tags = append(tags, tag)
		name := strings.ReplaceAll(tag, "_", "-")
		for half, want := range map[string]string{"_on.go": "//go:build plant_" + tag + "\n", "_off.go": "//go:build !plant_" + tag + "\n"} {
			if data, err := os.ReadFile(tag + half); err != nil || !strings.HasPrefix(string(data), want) {
				t.Errorf("%s%s does not begin with %q (%v)", tag, half, want, err)
			}
		}
		if !strings.Contains(string(source), `{"`+name+`", `) {
			t.Errorf("Planted does not name %s", name)
		}
		if !regexp.MustCompile(`(?m)^` + name + ` +\|`).Match(script) {
			t.Errorf("scripts/lab-planted has no check for %s", name)
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^([a-z-]+) +\|`).FindAllStringSubmatch(string(script), -1) {
		if tag := strings.ReplaceAll(m[1], "-", "_"); !slices.Contains(tags, tag) {
			t.Errorf("scripts/lab-planted looks for %s, which nobody plants", m[1])
		}
	}
}
