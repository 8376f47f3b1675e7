package route

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/atollhq/atoll/topo"
)

type vector struct {
	Hash    string        `json:"hash"`
	Form    topo.KeyForm  `json:"form"`
	Raw     string        `json:"raw"` // as a request carries it
	Key     string        `json:"key"` // canonical
	Buckets int           `json:"buckets"`
	Bucket  topo.BucketID `json:"bucket"`
}

func readVectors(t testing.TB, file string) []vector {
	data, err := os.ReadFile("testdata/" + file)
	if err != nil {
		t.Fatal(err)
	}
	var out []vector
	if err := json.Unmarshal(data, &out); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return out
}

func TestBucketVectors(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t, "vectors.json") {
		key, err := Canonical(v.Form, v.Raw)
		if err != nil || key != v.Key {
			t.Errorf("Canonical(%s, %q) = %q, %v; want %q", v.Form, v.Raw, key, err, v.Key)
		}
		got, err := Bucket(v.Hash, v.Key, v.Buckets)
		if err != nil || got != v.Bucket {
			t.Errorf("Bucket(%s, %q, %d) = %d, %v; want %d", v.Hash, v.Key, v.Buckets, got, err, v.Bucket)
		}
	}
}

func TestMalformedKeysAreRefused(t *testing.T) {
	t.Parallel()
	for _, v := range readVectors(t, "malformed.json") {
		if key, err := Canonical(v.Form, v.Raw); err == nil {
			t.Errorf("Canonical(%s, %q) = %q; want an error", v.Form, v.Raw, key)
		}
	}
	if _, err := Canonical(topo.TextKey, "\xff"); err == nil {
		t.Error("a key that is not UTF-8 was taken")
	}
}

func TestBucketRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	if _, err := Bucket("crc32", "x", 1024); err == nil {
		t.Error("an unknown hash was taken")
	}
	for _, n := range []int{-1, 0, 3, 1000, topo.MaxBuckets * 2} {
		if _, err := Bucket(topo.HashMD5, "x", n); err == nil {
			t.Errorf("%d buckets were taken", n)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	for _, file := range []string{"vectors.json", "malformed.json"} {
		for _, v := range readVectors(f, file) {
			f.Add(string(v.Form), v.Raw)
		}
	}
	f.Fuzz(func(t *testing.T, form, raw string) {
		key, err := Canonical(topo.KeyForm(form), raw)
		if err != nil {
			return
		}
		if again, err := Canonical(topo.KeyForm(form), key); err != nil || again != key {
			t.Fatalf("canonical %q of %q becomes %q, %v", key, raw, again, err)
		}
	})
}
