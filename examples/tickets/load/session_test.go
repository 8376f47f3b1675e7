package load

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

// keeper is a shop behind gateways that hand out tokens: SESSION.NUMBER, counted up with each answer. Now and then it breaks off
// an answer, after the token, or refuses without one.
type keeper struct {
	t        *testing.T
	mu       sync.Mutex
	lists    map[string][]string
	newest   map[string]int // session → the number that it has got, or may have got in an answer that broke
	got      map[string]int // session → the number that it has surely got
	sessions int
	asked    int
	enough   func() // called behind 200 requests, however long they take
}

func (k *keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != listPath && r.URL.Path != profilePath {
		shopLike(w, r)
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if r.Header.Get("Idempotency-Key") != "" {
		k.t.Error("a session's request says that it may be sent again")
	}
	if k.asked++; k.asked == 200 {
		k.enough()
	}
	name, number := k.read(r.Header.Get("Atoll-Session"))
	if number != k.got[name] {
		k.t.Errorf("session %s sent token %d; the newest that it got is %d", name, number, k.got[name])
	}
	who := r.Header.Get("X-Customer")
	if r.Method == http.MethodPost {
		var body struct{ Wish string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			k.t.Error(err)
		}
		k.lists[who] = append(k.lists[who], body.Wish)
	}
	if number > 0 && k.asked%17 == 0 {
		w.Header().Set("Atoll-Reason", "behind-session")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Atoll-Session", fmt.Sprintf("%s.%d", name, k.newest[name]+1))
	k.newest[name]++
	if number > 0 && k.asked%11 == 0 {
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, "{")
		panic(http.ErrAbortHandler)
	}
	if k.asked%23 == 0 {
		w.Header().Set("Atoll-Session-Lost", "users/7/3")
	}
	k.got[name] = k.newest[name]
	w.Write(mustJSON(map[string]any{"name": "x", "address": "", "wishes": append([]string{}, k.lists[who]...), "orders": 0}))
}

func (k *keeper) read(token string) (name string, number int) {
	if token == "new" { // one that begins
		k.sessions++
		return strconv.Itoa(k.sessions), 0
	}
	name, text, _ := strings.Cut(token, ".")
	number, err := strconv.Atoi(text)
	if err != nil {
		k.t.Errorf("token %q: %v", token, err)
	}
	return name, number
}

// Each session sends the newest token that it got, one request at a time, in rounds on one list.
func TestSessions(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	k := &keeper{t: t, enough: cancel, lists: map[string][]string{}, newest: map[string]int{}, got: map[string]int{}}
	server := httptest.NewServer(k)
	defer server.Close()
	var history bytes.Buffer
	cfg := config(server.URL)
	cfg.Registers, cfg.Lists, cfg.Sessions, cfg.Duration = 1, 1, 6, 0
	cfg.RegisterEvery, cfg.RegisterTimeout, cfg.SessionEvery, cfg.History = time.Hour, time.Minute, 20*time.Millisecond, &history
	if _, err := Run(ctx, cfg); err != nil {
		t.Fatal(err)
	}
	bySession, values, lost, targets := map[string][]Record{}, map[string]bool{}, 0, map[string]bool{}
	mine := map[string]int{}
	for n := range 6 {
		mine[seed.Customer(1, cfg.Shape.Customers-3-n).String()] = 0
	}
	for _, r := range records(t, history.Bytes()) {
		if _, is := mine[r.Key]; is != (r.Session != "") {
			t.Errorf("a session's customer and another's request, or the other way round: %+v", r)
		}
		if r.Session == "" {
			continue
		}
		mine[r.Key]++
		bySession[r.Session] = append(bySession[r.Session], r)
		if r.Write != (r.Op == sessionAppend) || r.Write && (r.Value == "" || values[r.Value]) || r.Outcome == OK && (r.TokenBytes == 0 || r.List == nil) {
			t.Errorf("%+v", r)
		}
		if r.Status == 0 && (r.TokenBytes > 0 || r.Lost != "") {
			t.Errorf("an answer that broke counts: %+v", r)
		}
		values[r.Value] = values[r.Value] || r.Write
		targets[r.Target] = true
		if r.Lost == "users/7/3" {
			lost++
		}
	}
	if len(bySession) != 6 || lost == 0 || len(targets) != 2 || len(values) < 20 {
		t.Errorf("%d sessions, %d lost, %d gateways, %d appends", len(bySession), lost, len(targets), len(values))
	}
	for name, ops := range bySession {
		slices.SortFunc(ops, func(a, b Record) int { return int(a.InvokedUS - b.InvokedUS) })
		lists := map[string]bool{}
		for i, r := range ops {
			lists[r.Key] = true
			first := i%requestsPerRound == 0
			if r.Write != (first && i/requestsPerRound%listsPerSession < writesTo) || first == (i > 0 && r.Key == ops[i-1].Key) || i > 0 && r.InvokedUS < ops[i-1].ReturnedUS {
				t.Errorf("session %s, request %d: %+v", name, i, r)
			}
		}
		if len(lists) != min(listsPerSession, (len(ops)+requestsPerRound-1)/requestsPerRound) {
			t.Errorf("session %s used %d lists", name, len(lists))
		}
	}
	for key, n := range mine {
		if n == 0 {
			t.Errorf("list %s was never used", key)
		}
	}
}
