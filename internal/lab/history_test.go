package lab

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

const historyLine = `{"id":"o1","client":3,"op":"buy","keyspace":"users","key":"ada","write":true,"invoked_us":10,"returned_us":20,` +
	`"outcome":"ok","status":201,"target":"b/g1","gateway":"b/g1","site":"a","view":"1.17","epoch":7,"held_ms":12,"order":{"id":"o1","number":3,"seat":"s1"}}` + "\n"

func TestReadHistory(t *testing.T) {
	t.Parallel()
	ops, err := ReadHistory(strings.NewReader(historyLine + "\n" + strings.Replace(historyLine, `"ok","status":201`, `"unknown","status":0`, 1) + `{"id":"cut o`))
	if err != nil || len(ops) != 2 {
		t.Fatalf("%d operations, %v", len(ops), err)
	}
	if o := ops[0]; o.Epoch != 7 || o.Order == nil || o.Order.Number != 3 || o.Failed() || !ops[1].Failed() {
		t.Errorf("%+v", o)
	}
	c := count(ops)
	if c != (Counts{OK: 1, Failed: 1, Unknown: 1, Writes: 2, Held: 2}) || c.Total() != 2 {
		t.Errorf("%+v", c)
	}
	for _, bad := range []string{`{}`, `{"id":"x","outcome":"maybe"}`, `{"id":"x","outcome":"ok","invoked_us":5,"returned_us":4}`,
		`{"id":"x","outcome":"ok","invoked_us":5,"returned_us":6,"view":"new"}`, `[]`,
		`{"id":"x","op":"register-write","key":"ada","outcome":"ok","write":true,"invoked_us":5,"returned_us":6}`, `{"id":"x","op":"register-read","outcome":"ok","invoked_us":5,"returned_us":6}`,
		`{"id":"x","op":"session-read","key":"ada","outcome":"ok","invoked_us":5,"returned_us":6}`, `{"id":"x","op":"session-append","key":"ada","session":"s1","outcome":"ok","write":true,"invoked_us":5,"returned_us":6}`} {
		if _, err := ReadHistory(strings.NewReader(bad + "\n")); err == nil || !strings.Contains(err.Error(), "line 1") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func FuzzParseOperation(f *testing.F) {
	f.Add([]byte(historyLine))
	f.Fuzz(func(t *testing.T, line []byte) {
		o, err := ParseOperation(line)
		if err == nil && (o.ID == "" || o.Returned().Before(o.Invoked())) {
			t.Errorf("accepted %+v", o)
		}
	})
}

func TestHistoryTail(t *testing.T) {
	t.Parallel()
	tail := historyTail{path: filepath.Join(t.TempDir(), "h"), bySite: map[topo.SiteID]*Counts{}}
	if err := tail.poll(); err != nil {
		t.Fatal("before the file is there:", err)
	}
	written := ""
	for _, piece := range []string{historyLine, historyLine[:50], historyLine[50:]} {
		written += piece
		if err := os.WriteFile(tail.path, []byte(written), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := tail.poll(); err != nil {
			t.Fatal(err)
		}
	}
	if c := tail.bySite["b"]; c == nil || c.OK != 2 {
		t.Errorf("counted %+v, want 2 at b", c)
	}
}

const holdLog = `{"time":"2026-01-01T00:00:00Z","level":"INFO","msg":"gateway up"}
{"msg":"hold begin","handover":"h1","keyspace":"users","buckets":"0-1,7","version":5,"unix_us":1000000}
{"msg":"hold end","handover":"h1","keyspace":"users","buckets":"0-1,7","version":7,"unix_us":1250000,"requests":3}
{"msg":"hold en`

func TestPauses(t *testing.T) {
	t.Parallel()
	holds, err := ReadHolds("a/g1", strings.NewReader(holdLog))
	if err != nil || len(holds) != 2 {
		t.Fatalf("%+v, %v", holds, err)
	}
	other := []Hold{holds[0], holds[1]}
	other[0].At, other[1].At = other[0].At.Add(-20*time.Millisecond), other[1].At.Add(-50*time.Millisecond)
	pauses := pausesOf(append(holds, other...), map[topo.HandoverID]bool{"h1": true}, nil)
	if len(pauses) != 3 {
		t.Fatalf("%d pauses, want one for each bucket", len(pauses))
	}
	for _, p := range pauses { // from the first begin to the first end
		if p.length() != 220*time.Millisecond {
			t.Errorf("bucket %s: %v, want 220ms", p.slot, p.length())
		}
	}
	late := openings{slot{users, 7}: {{site: "b", open: time.UnixMicro(1_300_000)}}}
	for _, p := range pausesOf(holds, map[topo.HandoverID]bool{"h1": true}, late) { // let go before b could take them
		if want := map[topo.BucketID]time.Duration{0: 250, 1: 250, 7: 300}[p.slot.bucket] * time.Millisecond; p.length() != want {
			t.Errorf("bucket %s: %v, want %v", p.slot, p.length(), want)
		}
	}
	if got := pausesOf(holds[:1], map[topo.HandoverID]bool{"h1": true}, nil); len(got) != 0 {
		t.Errorf("a hold without an end has the length %v", got)
	}
	if got := pausesOf(holds, nil, nil); len(got) != 0 {
		t.Errorf("another handover's holds were counted: %v", got)
	}
	for _, bad := range []string{`{"msg":"hold begin","handover":"h","buckets":"x","unix_us":1}`, `{"msg":"hold end","buckets":"1","unix_us":1}`} {
		if _, err := ReadHolds("a/g1", strings.NewReader(bad+"\n")); err == nil {
			t.Errorf("accepted %s", bad)
		}
	}
}

func FuzzReadHolds(f *testing.F) {
	f.Add(holdLog)
	f.Fuzz(func(_ *testing.T, log string) { _, _ = ReadHolds("a/g1", strings.NewReader(log)) })
}

func TestQuantiles(t *testing.T) {
	t.Parallel()
	var v []time.Duration
	for n := 200; n > 0; n-- {
		v = append(v, time.Duration(n)*time.Millisecond)
	}
	if q := quantiles(v); math.Abs(q.P50-100) > 0.01 || math.Abs(q.P99-198) > 0.01 || q.Max != 200 || q.Count != 200 {
		t.Errorf("%+v", q)
	}
	if q := quantiles(nil); q != (Quantiles{}) {
		t.Errorf("%+v", q)
	}
}
