package atoll

import (
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/atollhq/atoll/"

// layers says who may import whom: a package imports only packages of lower layers, never its own layer's or a
// higher one's. Every package stands in exactly one layer; a new one is put here with its reason in the commit.
var layers = [][]string{
	0: {"topo", "internal/change", "internal/plant", "internal/fault", "internal/loopback", "internal/balance", "internal/limit", "internal/split", "internal/compare", "internal/reload", "internal/zaplog"}, // nouns; change speaks of sites, so topo is below it (see within)
	1: {"route", "internal/api", "internal/spec", "internal/handover", "internal/assess", "internal/pki"},                                                                                                     // pki is below the SDK, whose registrar shows a service's certificate
	2: {"sdk", "internal/store", "internal/postgres", "internal/link", "internal/supervise", "internal/report", "internal/export", "internal/dns", "internal/discover", "internal/registry", "internal/bearer", "internal/acme"},
	3: {"sdk/rpc", "internal/replicate", "internal/lease", "internal/gateway", "internal/control", "internal/dashboard", "internal/rejoin", "internal/recovery", "internal/members", "internal/publish", "internal/pgserver"},
	4: {"internal/agent", "internal/model"}, // model walks the machines of handover and lease, and looks at nothing above them
	5: {"internal/lab"},
	6: {"cmd/atoll"},
}

// within are the few imports inside one layer, each with its reason.
var within = map[string]string{
	"internal/change → topo": "a change speaks of sites, buckets and epochs",
	"topo → internal/plant":  "one of the planted bugs is in what an abort makes of the ownership; plant imports nothing",
}

// testsOnly may be imported by any package's tests.
var testsOnly = []string{"internal/pgserver"}

func TestImportDirection(t *testing.T) {
	t.Parallel()
	layerOf := map[string]int{}
	for n, pkgs := range layers {
		for _, p := range pkgs {
			layerOf[p] = n
		}
	}
	out, err := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Imports " "}}`, "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		pkg := strings.TrimPrefix(fields[0], module)
		if fields[0]+"/" == module {
			continue
		}
		mine, listed := layerOf[pkg]
		if isExample := strings.HasPrefix(pkg, "examples/"); isExample || !listed {
			if !isExample {
				t.Errorf("package %s stands in no layer; add it to layers", pkg)
			}
			mine = -1
		}
		for _, imported := range fields[1:] {
			dep, ours := strings.CutPrefix(imported, module)
			if !ours || strings.HasPrefix(pkg, "examples/") && strings.HasPrefix(dep, "examples/") {
				continue
			}
			theirs := layerOf[dep]
			switch {
			case mine == -1 && (dep == "topo" || dep == "route" || dep == "sdk" || dep == "sdk/rpc"):
			case mine == -1:
				t.Errorf("%s imports %s: an example is a client, it uses public packages only", pkg, dep)
			case theirs >= mine && within[pkg+" → "+dep] == "":
				t.Errorf("%s (layer %d) imports %s (layer %d)", pkg, mine, dep, theirs)
			case slices.Contains(testsOnly, dep) && mine < 5:
				t.Errorf("%s imports %s outside tests", pkg, dep)
			}
		}
	}
}

// Names that say nothing are refused: everything ends up in them.
func TestPackageNames(t *testing.T) {
	t.Parallel()
	out, err := exec.Command("go", "list", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	for pkg := range strings.FieldsSeq(string(out)) {
		switch path.Base(pkg) {
		case "util", "utils", "common", "helpers", "misc", "types", "base", "core":
			t.Errorf("package %s is named after nothing", pkg)
		}
	}
}
