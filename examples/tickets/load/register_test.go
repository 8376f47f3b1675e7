package load

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

// addresses is a shop that knows addresses only. Requests of one customer must not overlap.
type addresses struct {
	t      *testing.T
	mu     sync.Mutex
	values map[string]string
	asked  map[string]int
	busy   map[string]bool
	left   int    // requests until enough is called
	enough func() // nil: never
}

func (a *addresses) enter(who string, change int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked[who] += change
	if a.left -= change; a.left == 0 && change > 0 && a.enough != nil {
		a.enough()
	}
	if change > 0 && a.busy[who] {
		a.t.Errorf("two requests of customer %s at a time", who)
	}
	a.busy[who] = change > 0
}

func (a *addresses) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != registerPath {
		shopLike(w, r)
		return
	}
	who := r.Header.Get("X-Customer")
	a.enter(who, 1)
	defer a.enter(who, 0)
	a.mu.Lock()
	defer a.mu.Unlock()
	if r.Method == http.MethodPut {
		var body struct{ Address string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			a.t.Error(err)
		}
		a.values[who] = body.Address
	}
	fmt.Fprintf(w, `{"address": %q}`, a.values[who])
}

func records(t *testing.T, history []byte) []Record {
	t.Helper()
	var out []Record
	for s := bufio.NewScanner(bytes.NewReader(history)); s.Scan(); {
		var r Record
		if err := json.Unmarshal(s.Bytes(), &r); err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func TestRegisters(t *testing.T) {
	t.Parallel()
	const requests = 60 // and those that the dead gateways do not answer
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	a := &addresses{t: t, values: map[string]string{}, asked: map[string]int{}, busy: map[string]bool{}, left: requests, enough: enough}
	server := httptest.NewServer(a)
	defer server.Close()
	dead := httptest.NewServer(nil)
	dead.Close() // refuses connections
	var history bytes.Buffer
	cfg := config(server.URL)
	cfg.Duration = 0 // until there are enough
	cfg.Gateways = []Gateway{{"a/g1", dead.URL}, {"a/g2", dead.URL}, {"b/g1", server.URL}}
	cfg.Registers, cfg.RegisterEvery, cfg.RegisterTimeout, cfg.History = 5, 10*time.Millisecond, time.Second, &history
	if _, err := Run(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	mine := map[string]bool{}
	for n := range 5 {
		mine[seed.Customer(1, cfg.Shape.Customers-1-n).String()] = true
	}
	last, count, values := map[string]Record{}, 0, map[string]bool{}
	for _, r := range records(t, history.Bytes()) {
		if !(operation{name: r.Op}).isRegister() {
			if mine[r.Key] {
				t.Errorf("a register's customer was asked about by %+v", r)
			}
			continue
		}
		count++
		before, had := last[r.Key]
		last[r.Key] = r
		switch {
		case !mine[r.Key] || r.Keyspace != "users" || r.Write != (r.Op == registerWrite):
			t.Errorf("%+v", r)
		case r.Write && values[r.Value] || r.Write && r.Value == "":
			t.Errorf("a value twice, or none: %+v", r)
		case r.Target != "b/g1" && (r.Outcome != Fail || before.Outcome == OK):
			t.Errorf("asked a dead gateway, outcome %s, after %+v", r.Outcome, before)
		case r.Target == "b/g1" && r.Outcome != OK:
			t.Errorf("%+v", r)
		case had && before.Outcome == Fail && !r.Write:
			t.Errorf("reads after a write that failed: %+v", r)
		case had && before.Outcome == OK && (before.Write == r.Write || !r.Write && r.Value != before.Value):
			t.Errorf("%+v after %+v", r, before)
		case had && r.InvokedUS < before.ReturnedUS:
			t.Errorf("%+v began before %+v ended", r, before)
		}
		values[r.Value] = values[r.Value] || r.Write
	}
	if len(last) != 5 || count < requests {
		t.Errorf("%d requests of %d registers", count, len(last))
	}
}

// Where nobody takes the connection, the next address is tried at once, each once.
func TestRegisters_GoOnAtOnceWhereRefused(t *testing.T) {
	t.Parallel()
	server := httptest.NewServer(&addresses{t: t, values: map[string]string{}, asked: map[string]int{}, busy: map[string]bool{}})
	defer server.Close()
	dead := httptest.NewServer(nil)
	dead.Close()
	for _, test := range []struct {
		last string
		want Outcome
	}{{server.URL, OK}, {dead.URL, Fail}} {
		var history bytes.Buffer
		cfg := config(server.URL)
		cfg.Gateways = []Gateway{{"a/g1", dead.URL}, {"a/g2", dead.URL}, {"b/g1", test.last}}
		cfg.Registers, cfg.RegisterEvery, cfg.RegisterTimeout, cfg.History = 1, time.Hour, time.Second, &history
		if _, err := Run(t.Context(), cfg); err != nil {
			t.Fatal(err)
		}
		tried := map[string]Outcome{}
		for _, r := range records(t, history.Bytes()) {
			if (operation{name: r.Op}).isRegister() {
				if _, twice := tried[r.Target]; twice {
					t.Errorf("twice within the hour: %+v", r)
				}
				tried[r.Target] = r.Outcome
			}
		}
		if len(tried) == 0 || test.want == OK && tried["b/g1"] != OK || test.want == Fail && len(tried) != 3 {
			t.Errorf("tried %v", tried)
		}
	}
}

func TestRegisters_Outcomes(t *testing.T) {
	t.Parallel()
	answers := map[string]func(http.ResponseWriter, *http.Request){
		"mine":    func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"address": "v"}`) },
		"another": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{"address": "u"}`) },
		"none":    func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, `{}`) },
		"stranger": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, "who are you", http.StatusNotFound)
		},
		"down": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Atoll-Reason", "peer-unreachable")
			w.WriteHeader(503)
		},
		"moving": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Atoll-Reason", "hold-timeout")
			w.WriteHeader(503)
		},
		"late": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Atoll-Reason", "deadline")
			w.WriteHeader(503)
		},
		"cut": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answers[r.URL.Query().Get("answer")](w, r)
	}))
	defer server.Close()
	for _, c := range []struct {
		answer      string
		write, read Outcome
		value       string // that was read
		elsewhere   bool
	}{
		{"mine", OK, OK, "v", false},
		{"another", Unknown, OK, "u", false},
		{"none", Unknown, Fail, "", false},
		{"stranger", Fail, Fail, "", false},
		{"down", Fail, Fail, "", true},
		{"moving", Fail, Fail, "", false},
		{"late", Unknown, Fail, "", true},
		{"cut", Unknown, Fail, "", true},
	} {
		for _, write := range []bool{true, false} {
			r := &register{customer: "c"}
			op := r.next(write)
			op.path += "?answer=" + c.answer
			rec := Record{Write: write}
			want, value := c.read, c.value
			if write {
				op.value, want, value = "v", c.write, "v"
				rec.Value = op.value
			}
			newClient(0, Gateway{}).send(Gateway{URL: server.URL}, op, 5*time.Second, &rec)
			if rec.Outcome != want || rec.Value != value || rec.elsewhere() != c.elsewhere {
				t.Errorf("%s, write %v: %+v, want %s %q, elsewhere %v", c.answer, write, rec, want, value, c.elsewhere)
			}
		}
	}
}

func TestAlternate(t *testing.T) {
	t.Parallel()
	var in []Gateway
	for name := range strings.FieldsSeq("a/g1 a/g2 a/g3 b/g1 b/g2 c/g1") {
		in = append(in, Gateway{Name: name})
	}
	var got []string
	for _, g := range alternate(in) {
		got = append(got, g.Name)
	}
	if want := strings.Fields("a/g1 b/g1 c/g1 a/g2 b/g2 a/g3"); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// Two clients per list: requests of one key overlap, entries and answers are recorded, the values are unique.
func TestLists(t *testing.T) {
	t.Parallel()
	const entries = 50
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	var mu sync.Mutex
	wished := 0
	lists, asked, met := map[string][]string{}, map[string]int{}, map[string]chan struct{}{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != listPath {
			shopLike(w, r)
			return
		}
		who := r.Header.Get("X-Customer")
		if key := r.Header.Get("Idempotency-Key"); key != "" {
			t.Errorf("a wish that comes with Idempotency-Key %s may be sent again, and stands twice then", key)
		}
		mu.Lock()
		if met[who] == nil {
			met[who] = make(chan struct{})
		}
		if asked[who]++; asked[who] == 2 {
			close(met[who])
		}
		both := met[who]
		mu.Unlock()
		<-both // the first request of a key waits for one of its other client
		mu.Lock()
		defer mu.Unlock()
		if r.Method == http.MethodPost {
			var body struct{ Wish string }
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			lists[who] = append(lists[who], body.Wish)
			if wished++; wished == entries {
				enough()
			}
		}
		w.Write(mustJSON(map[string]any{"wishes": append([]string{}, lists[who]...)}))
	}))
	defer server.Close()
	var history bytes.Buffer
	cfg := config(server.URL)
	cfg.Registers, cfg.Lists, cfg.PerKey, cfg.RegisterEvery, cfg.RegisterTimeout, cfg.History = 0, 3, 2, 5*time.Millisecond, 10*time.Second, &history
	cfg.Duration = 0 // until there are enough
	if _, err := Run(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	appended, clients := map[string]bool{}, map[int]bool{}
	for _, r := range records(t, history.Bytes()) {
		if !(operation{name: r.Op}).isList() {
			continue
		}
		clients[r.Client] = true
		switch {
		case r.Outcome != OK || r.Write != (r.Op == listAppend):
			t.Errorf("%+v", r)
		case r.Write && (appended[r.Value] || !slices.Contains(r.List, r.Value)):
			t.Errorf("appended twice, or not in the answer: %+v", r)
		}
		appended[r.Value] = appended[r.Value] || r.Write
	}
	if len(clients) != 6 || len(lists) != 3 || len(appended) < entries {
		t.Errorf("%d clients, %d lists, %d entries", len(clients), len(lists), len(appended))
	}
}
