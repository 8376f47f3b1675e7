package lab

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

func TestParseBenchLine(t *testing.T) {
	t.Parallel()
	for line, began := range map[string]int64{"0 199 2241 0 1175850568 995598": 1175850568_993357, "0 199 2241 0 1175850568 995598 241": 1175850568_993598} {
		if got, err := parseBenchLine(line); err != nil || got != (benchTx{began: began, end: 1175850568_995598}) {
			t.Errorf("%+v, %v", got, err)
		}
	}
	for _, bad := range []string{"", "0 199 failed 0 1175850568 995598", "0 199 2241 0 x 995598", "0 1 2", "0 199 2241 0 1175850568 995598 -"} {
		if _, err := parseBenchLine(bad); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func FuzzParseBenchLine(f *testing.F) {
	f.Add("0 199 2241 0 1175850568 995598 10")
	f.Fuzz(func(t *testing.T, line string) {
		if tx, err := parseBenchLine(line); err == nil && len(strings.Fields(line)) < 6 {
			t.Errorf("%q gave %+v", line, tx)
		}
	})
}

// What pgbench 15 and pgbouncer 1.18 say, word for word.
func TestHowEnded(t *testing.T) {
	t.Parallel()
	for said, want := range map[string]string{
		"pgbench: error: client 0 script 0 aborted in command 5 query 0: ERROR:  bucket 0 of keyspace bank is not open for writes at site a; its owner is b (epoch 2)\nDETAIL:  {}":             endedFenced,
		"pgbench: error: client 0 script 0 aborted in command 5 query 0: ERROR:  site a accepts no writes at present, its lease has run out (bucket 0 of keyspace bank)":                        endedLease,
		"pgbench: error: client 0 aborted in command 7 (SQL) of script 0; perhaps the backend died while processing":                                                                            endedBroken,
		"pgbench: error: client 0 script 0 aborted in command 7 query 0: FATAL:  terminating connection due to administrator command":                                                           endedBroken,
		"pgbench: error: connection to server at \"127.0.0.1\", port 1 failed: Connection refused\n\tIs the server running on that host\npgbench: error: could not create connection for setup": endedRefused,
		"pgbench: error: client 0 script 0 aborted in command 5 query 0: ERROR:  relation does not exist":                                                                                       endedOther,
	} {
		if got := howEnded(errors.New(said)); got != want {
			t.Errorf("%s: %q, want %q", said, got, want)
		}
	}
	if got := howEnded(nil); got != endedWell {
		t.Error(got)
	}
}

// The matching against a dumb twin that tries every assignment.
func TestMatchNotes(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 3000 {
		done := make([]benchTx, rnd.IntN(6))
		for i := range done {
			began := rnd.Int64N(20) * 10 * clockSlack
			done[i] = benchTx{i, began, began + rnd.Int64N(8)*10*clockSlack}
		}
		notes := make([]benchNote, rnd.IntN(6))
		for i := range notes {
			notes[i].began = rnd.Int64N(28) * 10 * clockSlack
		}
		missing, unheard := matchNotes(done, notes)
		best := mostPairs(done, notes)
		if len(done)-len(missing) != best || len(notes)-unheard != best {
			t.Fatalf("%d of %v missing, %d of %v unheard; %d pairs are possible", len(missing), done, unheard, notes, best)
		}
	}
}

func mostPairs(done []benchTx, notes []benchNote) int {
	if len(done) == 0 {
		return 0
	}
	best := mostPairs(done[1:], notes)
	for i, n := range notes {
		if n.began >= done[0].began-clockSlack && n.began <= done[0].end+clockSlack {
			rest := append(append([]benchNote{}, notes[:i]...), notes[i+1:]...)
			best = max(best, 1+mostPairs(done[1:], rest))
		}
	}
	return best
}

func TestBenchChecksFindWhatTheyAreFor(t *testing.T) {
	t.Parallel()
	at := func(ms int64) int64 { return ms * 1000 }
	done := []benchTx{{0, at(0), at(10)}, {1, at(5), at(15)}, {0, at(20), at(30)}}
	notes := []benchNote{{began: at(1)}, {began: at(6), logged: true}, {began: at(21)}}
	c, unheard := CheckNotes(done, notes)
	want(t, c, "")
	if unheard != 0 {
		t.Errorf("%d unheard", unheard)
	}
	c, _ = CheckNotes(done, notes[:2]) // the last one is lost
	want(t, c, "client 0: the transaction of")
	c, unheard = CheckNotes(done, append(notes, benchNote{began: at(50)}))
	want(t, c, "")
	want(t, CheckUnheard(unheard, map[string]int{endedBroken: 1}), "")
	want(t, CheckUnheard(unheard, map[string]int{endedFenced: 1}), "1 rows that nobody wrote")
	want(t, CheckBalances(map[topo.SiteID]Balances{"a": {5, 5, 5, 5}, "b": {5, 5, 5, 5}}), "")
	want(t, CheckBalances(map[topo.SiteID]Balances{"a": {5, 5, 5, 5}, "b": {5, 5, 4, 5}}), "at b: accounts 5, tellers 5, branches 4")
}

func TestOwner(t *testing.T) {
	t.Parallel()
	st := api.Status{Ownership: &api.OwnershipStatus{Keyspaces: []api.KeyspaceStatus{{Keyspace: bank, Owners: []api.OwnerStatus{{Site: "b"}}}}}}
	if got := owner(st); got != "b" {
		t.Errorf("owner %q", got)
	}
	st.Ownership.Keyspaces[0].Moving = []api.MovingStatus{{From: "b", To: "a"}}
	if got := owner(st); got != "" {
		t.Errorf("owner %q while it moves", got)
	}
	if got := owner(api.Status{}); got != "" {
		t.Errorf("owner %q of nothing", got)
	}
}
