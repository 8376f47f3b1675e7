package assess

import (
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
)

// inputChanges compares what two files say. What comes or goes together with what it belongs to is listed where it is
// written.
func inputChanges(before, after *Report) []InputChange {
	old, now := byPath(before.Entries), byPath(after.Entries)
	paths := maps.Clone(old)
	maps.Copy(paths, now)
	out := []InputChange{}
	for _, path := range slices.Sorted(maps.Keys(paths)) {
		c := InputChange{Path: path, Before: old[path], After: now[path]}
		switch {
		case c.Before == nil && c.After.Line == 0, c.After == nil && c.Before.Line == 0:
			continue // a default that came or went with something
		case c.Before != nil && c.After != nil:
			if c.Before.says(c.After) {
				continue
			}
			c.Filled = c.Before.Line == 0 && c.After.Line == 0
			c.exactly()
		}
		out = append(out, c)
	}
	return out
}

func byPath(list []Entry) map[string]*Entry {
	out := make(map[string]*Entry, len(list))
	for i := range list {
		out[list[i].Path] = &list[i]
	}
	return out
}

// says tells whether two entries are one: the same value, as sure, from the same source.
func (e *Entry) says(o *Entry) bool {
	return e.Assumed == o.Assumed && e.Source == o.Source && e.equals(o)
}

// equals tells whether their values are. How they are written does not count: 120m is 2h.
func (e *Entry) equals(o *Entry) bool {
	if len(e.Values) == 0 || len(o.Values) == 0 {
		return len(e.Values) == len(o.Values) && e.Text == o.Text
	}
	return slices.EqualFunc(e.Values, o.Values, func(a, b float64) bool {
		return math.Abs(a-b) <= 1e-12*max(math.Abs(a), math.Abs(b)) // 0.1% and 0.001
	})
}

// exactly writes out values that differ in what a text has no room for.
func (c *InputChange) exactly() {
	if c.Before.Text != c.After.Text || c.Before.equals(c.After) {
		return
	}
	full := func(e Entry) *Entry {
		var values []string
		for _, v := range e.Values {
			values = append(values, strconv.FormatFloat(v, 'g', -1, 64)+map[Unit]string{Duration: "s", Data: "B", DataRate: "B/s"}[e.Unit])
		}
		e.Text = map[bool]string{true: "~"}[e.Assumed] + strings.Join(values, "..")
		return &e
	}
	c.Before, c.After = full(*c.Before), full(*c.After)
}
