package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

const (
	loadName     = "load"
	writeShare   = 0.45
	loadTimeout  = 20 * time.Second
	minRate      = 100.0
	minWrites    = 0.30
	stragglersBy = 4 // requests of each kind

	sessionsPerSite = 3               // clients that carry a session, each with one more list
	sessionEvery    = 2 * time.Second // a round of four requests each
)

func (m *demo) historyFile() string   { return filepath.Join(m.opts.Out, "history.jsonl") }
func (m *demo) registersFile() string { return filepath.Join(m.opts.Out, "registers.jsonl") }

// gatewayURLs lists every gateway, as the load generator wants them.
func (d *Deployment) gatewayURLs() string {
	var out []string
	for _, site := range d.opts.Sites {
		for _, name := range slices.Sorted(maps.Keys(d.at[site].gateways)) {
			out = append(out, fmt.Sprintf("%s/%s=http://%s", site, name, d.at[site].gateways[name].listen))
		}
	}
	return strings.Join(out, ",")
}

// startLoad clears what the building left in the evidence and starts the load generator. It runs until stopLoad.
func (m *demo) startLoad(ctx context.Context) error {
	for _, site := range m.opts.Sites {
		if err := m.d.onDatabase(ctx, site, func(db *pgx.Conn) error { return forgetChanges(ctx, db) }); err != nil {
			return err
		}
	}
	history, err := filepath.Abs(m.historyFile())
	if err != nil {
		return err
	}
	if err := os.Remove(history); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("lab: history of an earlier run: %w", err)
	}
	m.screen.say("load: %.0f requests a second, %.0f %% writes, nothing is sent twice", m.opts.Rate, 100*writeShare)
	if m.opts.sessions > 0 {
		m.screen.say("%d clients carry a session, and ask any gateway", m.opts.sessions)
	}
	m.loaded[0] = time.Now()
	args := append([]string{"load", "--gateways", m.d.gatewayURLs(), "--rate", strconv.FormatFloat(m.opts.Rate, 'f', -1, 64),
		"--duration", "0s", "--timeout", loadTimeout.String(), "--writes", strconv.FormatFloat(writeShare, 'f', -1, 64),
		"--sessions", strconv.Itoa(m.opts.sessions), "--session-every", sessionEvery.String(), "--register-timeout", loadTimeout.String(), // they wait like all others
		"--history", history}, m.d.shapeFlags(m.opts.registers)...) // theirs are written by nobody else
	return m.d.Processes.Start(Command{Name: loadName, Path: m.d.opts.Tickets, Args: args, Dir: m.d.Dir, Env: m.d.env("")})
}

func (m *demo) stopLoad(ctx context.Context) error {
	m.screen.say("the load ends")
	m.loaded[1] = time.Now()
	generators := []string{loadName, registersName}
	for _, name := range generators {
		if err := m.d.Processes.Ask(name); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout+5*time.Second)
	defer cancel()
	for _, name := range generators {
		if err := m.d.Processes.Wait(ctx, name); err != nil {
			return fmt.Errorf("%w; its log ends:\n%s", err, m.d.Processes.Tail(name, 3))
		}
	}
	return nil
}

// stragglers are requests of the lab's own that are made to be under way when their bucket moves. They are held to
// the same history as all others.
type stragglers struct {
	running sync.WaitGroup

	mu  sync.Mutex
	ops []Operation
}

// bulkNotes starts transactions that write and then stay open for longer than the gateways wait for requests, and
// behind each a short one of the same customer, sent to the other site: it waits for the first one's row lock, and
// finds the fence closed when it gets it.
func (s *stragglers) bulkNotes(ctx context.Context, m *demo, at, other topo.SiteID, buckets topo.Spans) error {
	note := func(ms int) map[string]any { return map[string]any{"note": "a slow report", "ms": ms} }
	if err := s.start(ctx, m, at, buckets, "bulk-note", "/orders/bulk-note", note(1600)); err != nil {
		return err
	}
	return s.start(ctx, m, other, buckets, "bulk-note", "/orders/bulk-note", note(0))
}

// buys starts purchases; where the seats are far away, they come to their own write late.
func (s *stragglers) buys(ctx context.Context, m *demo, at topo.SiteID, buckets topo.Spans) error {
	var event string
	err := m.d.onDatabase(ctx, at, func(db *pgx.Conn) error {
		return db.QueryRow(ctx, "SELECT id::text FROM events ORDER BY id LIMIT 1").Scan(&event)
	})
	if err != nil {
		return err
	}
	return s.start(ctx, m, at, buckets, buyOp, "/buy", map[string]any{"event": event})
}

// start sends one request for each of some customers of the buckets to a gateway of a site. The customers are the
// same at each call for the same buckets.
func (s *stragglers) start(ctx context.Context, m *demo, at topo.SiteID, buckets topo.Spans, op, path string, body map[string]any) error {
	customers, err := m.customersOf(ctx, m.a(), buckets)
	if err != nil {
		return err
	}
	gateways := m.d.at[at].gateways
	name := slices.Sorted(maps.Keys(gateways))[0]
	for _, customer := range customers {
		o := Operation{ID: uuid.NewString(), Client: -1, Op: op, Keyspace: users, Key: customer, Write: true, Target: string(at) + "/" + name}
		s.running.Go(func() {
			send(context.WithoutCancel(ctx), "http://"+gateways[name].listen+path, body, &o)
			s.add(o)
		})
	}
	return rest(ctx, 100*time.Millisecond) // they are on their way
}

func (s *stragglers) add(o Operation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ops = append(s.ops, o)
}

func (s *stragglers) wait() { s.running.Wait() }

// send makes one request and fills in what became of it, by the load generator's rules.
func send(ctx context.Context, url string, body any, o *Operation) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	data, err := json.Marshal(body)
	if err != nil {
		panic("BUG: body does not marshal: " + err.Error())
	}
	o.InvokedUS = time.Now().UnixMicro()
	defer func() { o.ReturnedUS = max(time.Now().UnixMicro(), o.InvokedUS) }()
	o.Outcome = Unknown
	// Not a bytes.Reader: the standard transport would send it again on another connection.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, io.NopCloser(io.MultiReader(bytes.NewReader(data))))
	if err != nil {
		o.Outcome, o.Error = Fail, err.Error()
		return
	}
	req.ContentLength = int64(len(data))
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Customer", o.Key)
	req.Header.Set("Idempotency-Key", o.ID)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		o.Error = err.Error()
		return
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		o.Error = err.Error()
		return
	}
	h := resp.Header
	o.Status, o.Gateway, o.Site, o.View, o.Reason = resp.StatusCode, h.Get("Atoll-Gateway"), topo.SiteID(h.Get("Atoll-Site")), h.Get("Atoll-View"), h.Get("Atoll-Reason")
	o.HeldMS, _ = strconv.ParseInt(h.Get("Atoll-Held"), 10, 64) // absent if not held
	if o.Status >= 500 {
		o.Error = string(answer[:min(len(answer), 200)])
		return
	}
	o.Outcome = OK
	if o.Op == buyOp && o.Status < 300 {
		var receipt Receipt
		if err := json.Unmarshal(answer, &receipt); err != nil {
			o.Outcome, o.Error = Unknown, err.Error()
			return
		}
		o.Order = &receipt
	}
}
