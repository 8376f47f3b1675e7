package compare

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func jsonAnswer(body string) Answer {
	return Answer{Status: 200, Header: http.Header{"Content-Type": {"application/json"}}, Body: []byte(body)}
}

func pointers(t *testing.T, texts ...string) (out []Pointer) {
	t.Helper()
	for _, text := range texts {
		p, err := ParsePointer(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// fields are differences as FIELD KIND.
func fields(found []Difference) (out []string) {
	for _, d := range found {
		out = append(out, d.Field+" "+string(d.Kind))
	}
	return out
}

func TestCompareJSON(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		a, b   string
		ignore []string
		want   []string
	}{
		"order and space":             {`{"a":1,"b":[1,2]}`, "{ \"b\" : [ 1 , 2 ],\n\"a\":1 }", nil, nil},
		"a value":                     {`{"a":{"b":1}}`, `{"a":{"b":2}}`, nil, []string{"/a/b value"}},
		"a type":                      {`{"a":1}`, `{"a":"1"}`, nil, []string{"/a type"}},
		"null is not nothing":         {`{"a":null}`, `{}`, nil, []string{"/a missing"}},
		"more":                        {`{}`, `{"a":[]}`, nil, []string{"/a extra"}},
		"arrays by index":             {`{"l":[{"p":1},{"p":2},{"p":3}]}`, `{"l":[{"p":1},{"p":3},{"p":2}]}`, nil, []string{"/l/*/p value"}},
		"a longer array":              {`[1]`, `[1,2,3]`, nil, []string{"/* extra"}},
		"a shorter array":             {`[1,2]`, `[1]`, nil, []string{"/* missing"}},
		"the root":                    {`1`, `2`, nil, []string{"body value"}},
		"numbers are exact":           {`{"n":9007199254740993}`, `{"n":9007199254740992}`, nil, []string{"/n value"}},
		"numbers by what they are":    {`[1.0, 1e2, 0.5, -0, 10]`, `[1, 100, 5e-1, 0, 1.0E1]`, nil, nil},
		"a number out of all reason":  {`[1e99999999999]`, `[2e99999999999]`, nil, []string{"/* value"}},
		"ignored":                     {`{"at":1,"a":1}`, `{"at":2,"a":1}`, []string{"/at"}, nil},
		"below what is ignored":       {`{"meta":{"at":1}}`, `{"meta":{"by":1}}`, []string{"/meta"}, nil},
		"ignored at any index":        {`{"l":[{"at":1,"p":1}]}`, `{"l":[{"at":2,"p":2}]}`, []string{"/l/*/at"}, []string{"/l/*/p value"}},
		"ignored at one index":        {`[1,1]`, `[2,2]`, []string{"/0"}, []string{"/* value"}},
		"ignored with a slash":        {`{"a/b":1,"~":1}`, `{"a/b":2,"~":2}`, []string{"/a~1b", "/~0"}, nil},
		"names that are data":         {`{"by":{"42":1,"anna@shop.example":1,"7d3c0d5e-11":1}}`, `{"by":{"42":2,"anna@shop.example":2,"7d3c0d5e-11":2}}`, nil, []string{"/by/* value"}},
		"names that only look so":     {`{"line2":1,"x_id":1}`, `{"line2":2,"x_id":2}`, nil, []string{"/line2 value", "/x_id value"}},
		"a name that occurs twice":    {`{"a":1,"a":2}`, `{"a":2}`, nil, []string{"body value"}},
		"broken":                      {`{"a":1`, `{"a":1}`, nil, []string{"body value"}},
		"broken alike":                {`{"a":1`, `{"a":1`, nil, nil},
		"no UTF-8":                    {"\"\xff\"", "\"\xfe\"", nil, []string{"body value"}},
		"too deep":                    {strings.Repeat("[", 100) + "1" + strings.Repeat("]", 100), strings.Repeat("[", 100) + "2" + strings.Repeat("]", 100), nil, []string{"body value"}},
		"too many values":             {"[0" + strings.Repeat(",0", MaxValues) + "]", "[1" + strings.Repeat(",0", MaxValues) + "]", nil, []string{"body value"}},
		"ignored, and nothing behind": {`{"a":{}}`, `{"a":1}`, []string{"/a/b"}, []string{"/a type"}},
	} {
		rules := &Rules{Ignore: pointers(t, c.ignore...)}
		if got := fields(rules.Compare(jsonAnswer(c.a), jsonAnswer(c.b))); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestCompareAnswers(t *testing.T) {
	t.Parallel()
	text := func(status int, kind, body string) Answer {
		return Answer{Status: status, Header: http.Header{"Content-Type": {kind}, "Date": {body}}, Body: []byte(body)}
	}
	for name, c := range map[string]struct {
		a, b Answer
		want []string
	}{
		"alike":                {text(200, "text/plain", "x"), text(200, "text/plain", "x"), nil},
		"status":               {text(200, "text/plain", "x"), text(404, "text/plain", "x"), []string{"status value"}},
		"bytes":                {text(200, "text/plain", "x"), text(200, "text/plain", "y"), []string{"body value"}},
		"media types alike":    {text(200, "application/json;charset=UTF-8", "1"), text(200, "application/json; charset=utf-8", "1"), nil},
		"a header":             {text(200, "application/json", "1"), text(200, "text/plain", "1"), []string{"header Content-Type value"}},
		"JSON and other bytes": {text(200, "application/json", "1"), text(200, "text/plain", "2"), []string{"header Content-Type value", "body value"}},
		"JSON by another name": {text(200, "application/problem+json", `{"a":1}`), text(200, "application/problem+json", `{"a":2}`), []string{"/a value"}},
		"no header":            {text(200, "text/plain", "x"), Answer{Status: 200, Body: []byte("x")}, []string{"header Content-Type missing"}},
		"one unread":           {text(200, "text/plain", "x"), Answer{Status: 200, Header: http.Header{"Content-Type": {"text/plain"}}, Unread: true}, nil},
	} {
		rules := &Rules{Headers: []string{"content-type"}}
		if got := fields(rules.Compare(c.a, c.b)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// What users' data says stands nowhere, unless it is asked for; then it is cut short.
func TestValuesAreKeptOnlyIfAsked(t *testing.T) {
	t.Parallel()
	a, b := jsonAnswer(`{"name":"Anna Secret","n":17,"more":{}}`), jsonAnswer(`{"name":"`+strings.Repeat("ü", 100)+`","n":true,"more":[]}`)
	var report Report
	report.Add((&Rules{}).Compare(a, b))
	text, err := json.Marshal(report.Fields())
	if err != nil || strings.Contains(string(text), "Secret") || strings.Contains(string(text), "17") || strings.Contains(string(text), "ü") {
		t.Errorf("%s, %v", text, err)
	}
	want := []Difference{{"/more", OtherType, "object", "array"}, {"/n", OtherType, "17", "true"}, {"/name", OtherValue, "Anna Secret", strings.Repeat("ü", 32) + "…"}}
	if got := (&Rules{Values: true}).Compare(a, b); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestParsePointer(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Pointer{"/": {""}, "/a/b": {"a", "b"}, "/a~1b/~0/~01": {"a/b", "~", "~1"}, "/*/0": {"*", "0"}} {
		if got, err := ParsePointer(text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "a", "#/a", "/a~", "/~2"} {
		if got, err := ParsePointer(text); err == nil {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// Two decimals are the same exactly where they are the same rational number.
func TestNumbersAgainstRationals(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		one := rapid.StringMatching(`-?(0|[1-9][0-9]{0,3}0{0,2})(\.[0-9]{1,3}0{0,2})?([eE][+-]?[0-9])?`)
		a, b := one.Draw(t, "a"), one.Draw(t, "b")
		if rapid.Bool().Draw(t, "close") {
			b = a + "e0"
			if strings.ContainsAny(a, "eE") {
				b = a
			}
		}
		x, okX := new(big.Rat).SetString(a)
		y, okY := new(big.Rat).SetString(b)
		if !okX || !okY {
			t.Fatal("no number")
		}
		if got, want := sameNumber(a, b), x.Cmp(y) == 0; got != want {
			t.Fatalf("%s and %s: %v", a, b, got)
		}
	})
}

// A document differs from itself nowhere, however its members stand; and a change of one leaf is found.
func TestCompareFindsOneChange(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		doc := map[string]any{}
		for i := range rapid.IntRange(1, 6).Draw(t, "members") {
			doc[fmt.Sprint("m", i)] = rapid.SliceOfN(rapid.IntRange(0, 3), 1, 4).Draw(t, "items")
		}
		before, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if found := (&Rules{}).Compare(jsonAnswer(string(before)), jsonAnswer(" "+string(before))); len(found) > 0 {
			t.Fatalf("%s differs from itself: %v", before, found)
		}
		name := rapid.SampledFrom(slices.Sorted(keys(doc))).Draw(t, "which")
		items := slices.Clone(doc[name].([]int))
		items[rapid.IntRange(0, len(items)-1).Draw(t, "index")] = 9
		doc[name] = items
		after, err := json.Marshal(doc)
		if err != nil {
			t.Fatal(err)
		}
		if got := fields((&Rules{}).Compare(jsonAnswer(string(before)), jsonAnswer(string(after)))); !slices.Equal(got, []string{"/" + name + "/* value"}) {
			t.Fatalf("%s, %s: %v", before, after, got)
		}
	})
}

func keys(m map[string]any) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// Whatever two services send: nothing breaks, what is listed is bounded, and equal bytes are the same.
func FuzzCompare(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":null}]}`), []byte(`{"a":[1.0,{"c":"x"}]}`))
	f.Add([]byte(`[1e9999999999999999999]`), []byte(`[-0.000]`))
	f.Add([]byte("\xff"), []byte(`"\ud800"`))
	f.Add([]byte(strings.Repeat("[", 200)), []byte(`{"":{"":0}}`))
	ignore, err := ParsePointer("/a/*")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		rules := &Rules{Headers: []string{"Content-Type"}, Ignore: []Pointer{ignore}, Values: true}
		found := rules.Compare(jsonAnswer(string(a)), jsonAnswer(string(b)))
		back := rules.Compare(jsonAnswer(string(b)), jsonAnswer(string(a)))
		if len(found) > maxDifferences || len(back) != len(found) {
			t.Errorf("%d differences, %d the other way", len(found), len(back))
		}
		if same := rules.Compare(jsonAnswer(string(a)), jsonAnswer(string(a))); len(same) > 0 {
			t.Errorf("%q differs from itself: %v", a, same)
		}
		var report Report
		report.Repeat(found)
		report.Add(found)
		if _, err := json.Marshal(report.Fields()); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParsePointer(f *testing.F) {
	f.Add("/a~1b/*/0")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParsePointer(text)
		if err == nil && !p.covers(p) {
			t.Errorf("%q does not cover itself", text)
		}
	})
}
