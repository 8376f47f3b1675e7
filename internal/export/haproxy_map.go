package export

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/internal/reload"
	"github.com/atollhq/atoll/topo"
)

// Map is the content of HAProxy's map.
type Map map[string]string

// NewMap is the map of a view.
func NewMap(view *topo.View) Map {
	o := view.Ownership
	m := Map{viewKey: Version{o.Generation, o.Version}.String()}
	for ks := range o.Keyspaces {
		for b := range view.Buckets(ks) {
			slot, _ := view.Slot(ks, topo.BucketID(b))
			to := string(slot.Owner)
			if slot.Moving {
				to = hold
			}
			m[string(ks)+"/"+strconv.Itoa(b)] = to
		}
	}
	return m
}

// Version orders maps as views are ordered (I8).
type Version struct{ Generation, Version uint64 }

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Generation, v.Version) }

// Before tells whether v is of an older view than o.
func (v Version) Before(o Version) bool {
	return v.Generation < o.Generation || v.Generation == o.Generation && v.Version < o.Version
}

// Version is that of the map's view; zeros if it does not say.
func (m Map) Version() Version {
	g, v, _ := strings.Cut(m[viewKey], ".")
	generation, err1 := strconv.ParseUint(g, 10, 64)
	version, err2 := strconv.ParseUint(v, 10, 64)
	if err1 != nil || err2 != nil {
		return Version{}
	}
	return Version{generation, version}
}

// lines are the entries as HAProxy reads them, in a fixed order.
func (m Map) lines() []string {
	out := make([]string, 0, len(m))
	for _, key := range slices.Sorted(maps.Keys(m)) {
		out = append(out, key+" "+m[key])
	}
	return out
}

// differs says where two maps differ; "": nowhere.
func (m Map) differs(got Map) string {
	for key, want := range m {
		if got[key] != want {
			return fmt.Sprintf("%s is %q, want %q", key, got[key], want)
		}
	}
	if len(got) != len(m) {
		return fmt.Sprintf("%d entries, want %d", len(got), len(m))
	}
	return ""
}

// parseLines reads KEY VALUE lines, without comments and empty ones. skip fields come before the key.
func parseLines(text []byte, skip int) (Map, error) {
	m := Map{}
	for line := range bytes.Lines(text) {
		f := strings.Fields(string(line))
		if len(f) == 0 || f[0][0] == '#' {
			continue
		}
		if len(f) != skip+2 {
			return nil, fmt.Errorf("%.60q is no entry of a map", line)
		}
		if _, twice := m[f[skip]]; twice {
			return nil, fmt.Errorf("entry %.60q occurs twice", f[skip])
		}
		m[f[skip]] = f[skip+1]
	}
	return m, nil
}

// ReadFile reads a map file; a file that is not there is an empty map.
func ReadFile(path string) (Map, error) {
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Map{}, nil
	}
	if err != nil {
		return nil, err
	}
	m, err := parseLines(text, 0)
	if err != nil {
		return nil, fmt.Errorf("map file %s: %w", path, err)
	}
	return m, nil
}

// WriteFile replaces a map file in one step: a proxy that starts reads the old one or the new one.
func (m Map) WriteFile(path string) error {
	var b strings.Builder
	b.WriteString("# KEYSPACE/BUCKET SITE, written by `atoll export haproxy`; " + hold + ": it moves, and a gateway holds. " + viewKey + ": which view this is.\n")
	for _, line := range m.lines() {
		b.WriteString(line + "\n")
	}
	return reload.Replace(path, 0o644, []byte(b.String())) // the proxy may run as another user
}
