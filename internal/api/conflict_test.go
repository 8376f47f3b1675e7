package api

import (
	"encoding/json"
	"testing"
)

func TestVersionsOfRows(t *testing.T) {
	t.Parallel()
	for text, ok := range map[string]bool{``: true, `null`: true, `{}`: true, `{"a":"1","b":null}`: true, `{"a":1}`: false, `[]`: false, `"x"`: false, `{`: false, `{"a":{"b":"c"}}`: false} {
		if _, err := ParseVersion(json.RawMessage(text)); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
	v, err := ParseVersion(json.RawMessage(`{"a":"1","b":null}`))
	if err != nil || len(v) != 2 || *v["a"] != "1" || v["b"] != nil {
		t.Errorf("%v, %v", v, err)
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add([]byte(`{"a":"1","b":null}`))
	f.Add([]byte(`{"a":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := ParseVersion(data)
		if err != nil {
			return
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if w, err := ParseVersion(again); err != nil || len(w) != len(v) {
			t.Fatalf("%s: %v", again, err)
		}
	})
}
