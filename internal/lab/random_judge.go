package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// failoverSeen is a failover of an episode, by its record and the databases.
type failoverSeen struct {
	record api.Handover
	loss   Loss
	rpo    Accounting
	rto    []time.Duration // per bucket that a register writes, from the last sight of a renewal
}

// expectTakeover is how long a site has to be gone at least for a failover to be expected: 1.01 D + W + 1 s, and as much
// again for a machine that is busy.
const expectTakeover = 2*(leaseTime*101/100+checkToCommit+time.Second) + time.Second

// judge reads the episode's evidence and runs the checks.
func (r *random) judge(ctx context.Context, e *episode) error {
	ev, err := r.gatherEpisode(ctx, e)
	if err != nil && e.stuck != nil && ctx.Err() == nil { // that is why nothing can be read
		e.checks = []Check{e.checkRecovered()}
		return nil
	}
	if err != nil {
		return err
	}
	e.ops, e.reasons, e.conflicts, e.took = count(ev.ops), reasonsOf(ev.ops), len(ev.Conflicts), time.Since(e.began)
	for i := range e.failovers {
		f := &e.failovers[i]
		f.rpo = Account(ev.ops, ev.Evidence, f.loss)
		f.rto = RTO(ev.ops, f.loss, takenOf(f.record)[users].Buckets(), r.opts.Buckets)
	}
	keyed := append(slices.Clone(ev.ops), FinalReads(ev.ops, ev.shops, time.Now())...)
	e.checks = []Check{CheckK1(ev.Evidence, ev.ops, r.opts.Buckets), CheckK6(ev.ops), CheckEqual(ev.hashes), r.checkAlive(), e.checkRecovered(), e.checkTakeovers()}
	if e.switches("done") > 0 {
		e.checks = append(e.checks, CheckK2(ev.Evidence), CheckReleases(ev.holds, ev.Evidence))
	}
	if r.opts.has(workTickets) {
		seats, _ := CheckSeats(ev.shops, ev.Conflicts)
		e.checks = append(e.checks, CheckK3(ev.ops, ev.shops, ev.Conflicts), seats)
	}
	if r.opts.has(workRegister) {
		k5, sessions := CheckK5(ev.Evidence, ev.ops, r.opts.Buckets)
		e.sessions = sessions
		e.checks = append(e.checks, CheckK4(keyed, ev.Conflicts, ev.Losses), k5, CheckLists(keyed, ev.Conflicts, ev.Losses))
	}
	if len(tailsOf(ev.Evidence)) > 0 {
		e.checks = append(e.checks, e.checkTails(ev))
	}
	slices.SortFunc(e.checks, func(a, b Check) int { return strings.Compare(a.Name, b.Name) })
	if !e.passed() {
		return r.keepEvidence(ev, e.checks)
	}
	return nil
}

// gatherEpisode reads what the databases, the gateways' logs, the store's records and the clients say of the episode.
func (r *random) gatherEpisode(ctx context.Context, e *episode) (*evidence, error) {
	ev := &evidence{}
	tables := watchedTables(r.d.Spec)
	for _, site := range r.opts.Sites {
		err := r.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			seen, err := readEvidence(ctx, db, site, tables, e.began)
			if err != nil {
				return err
			}
			ev.Changes, ev.Epochs, ev.Conflicts = append(ev.Changes, seen.Changes...), append(ev.Epochs, seen.Epochs...), append(ev.Conflicts, seen.Conflicts...)
			shop, err := readShop(ctx, db, site)
			ev.shops = append(ev.shops, shop)
			return err
		})
		if err != nil {
			return nil, err
		}
		for name := range r.d.at[site].gateways {
			gateway := string(site) + "/" + name
			holds, err := readHoldsFrom(gateway, r.d.Processes.LogFile(gateway), e.logFrom[gateway])
			if err != nil {
				return nil, err
			}
			ev.holds = append(ev.holds, holds...)
		}
	}
	var err error
	if ev.hashes, err = r.hashes(ctx); err != nil {
		return nil, err
	}
	if ev.ops, err = readHistoryOf(r.historyFile()); err != nil {
		return nil, err
	}
	ev.ops, r.straggler.ops = append(ev.ops, r.straggler.ops...), nil
	if err := r.noteHandovers(ctx, e, ev); err != nil {
		return nil, err
	}
	return ev, nil
}

// readHoldsFrom reads the hold lines of a log behind an offset.
func readHoldsFrom(gateway, log string, offset int64) ([]Hold, error) {
	f, err := os.Open(log)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	return ReadHolds(gateway, f)
}

// noteHandovers takes the episode's handovers from their records. Which site was lost is the product's word here, a
// schedule knows only what it did; that a failover excuses nothing but what happened while it was under way is the
// checks' affair.
func (r *random) noteHandovers(ctx context.Context, e *episode, ev *evidence) error {
	newest, err := r.d.handovers(ctx, r.opts.Sites[0])
	if err != nil {
		return err
	}
	for _, h := range slices.Backward(newest) { // oldest first
		if len(h.Steps) == 0 || h.Steps[0].At.Before(e.began) {
			continue
		}
		if h.Kind != failoverKind {
			e.handovers = append(e.handovers, h)
			continue
		}
		if h.Failover == nil || h.Outcome != "done" { // it was given up before it took anything
			continue
		}
		f := failoverSeen{record: h, loss: lossIn(h, ev.Epochs)}
		e.failovers = append(e.failovers, f)
		if !f.loss.Opened.IsZero() {
			ev.Losses = append(ev.Losses, f.loss)
		}
	}
	return nil
}

// takenOf lists what a failover took.
func takenOf(h api.Handover) map[topo.KeyspaceID]topo.Spans {
	out := map[topo.KeyspaceID]topo.Spans{}
	for _, t := range h.Failover.Taken {
		for _, b := range t.Buckets {
			out[t.Keyspace] = append(out[t.Keyspace], topo.Span{First: b.First, Last: b.Last})
		}
	}
	return out
}

// lossIn times a failover: the lost site counts as lost from when the taker last saw a renewal of its lease, and as replaced
// from when some site opened one of its buckets again.
func lossIn(h api.Handover, epochs []EpochRow) Loss {
	taken := h.Steps[0].At
	l := Loss{ID: h.ID, Lost: h.From, Taker: h.To, Killed: taken.Add(-time.Duration(h.Failover.WaitedMS * float64(time.Millisecond)))}
	buckets := takenOf(h)
	for i := range epochs {
		row := &epochs[i]
		if row.Open && row.Database == row.Site && row.At.After(l.Killed) && buckets[row.Keyspace].Contains(row.Bucket) &&
			row.Site != l.Lost && (l.Opened.IsZero() || row.At.Before(l.Opened)) {
			l.Opened = row.At
		}
	}
	if h.Failover.Return != nil {
		l.Settled = h.Failover.Return.At
	}
	return l
}

// switches counts the switches that ended so.
func (e *episode) switches(outcome string) int {
	n := 0
	for _, h := range e.handovers {
		if h.Outcome == outcome {
			n++
		}
	}
	if outcome == "refused" {
		for i := range e.steps {
			if e.steps[i].outcome == outcome {
				n++
			}
		}
	}
	return n
}

func reasonsOf(ops []Operation) map[string]int {
	out := map[string]int{}
	for i := range ops {
		o := &ops[i]
		switch {
		case !o.Failed():
		case o.gaveUp():
			out["gave up after a second, and asked again"]++
		case o.Status == 0:
			out["no answer"]++
		case o.Reason == "":
			out[fmt.Sprintf("status %d", o.Status)]++
		default:
			out[o.Reason]++
		}
	}
	return out
}

// checkRecovered: once every fault is healed, the deployment comes to be well by itself.
func (e *episode) checkRecovered() Check {
	c := Check{Name: "recovered", Claim: fmt.Sprintf("within %v of the last healing all is well again, without an operator", settleBound),
		Looked: fmt.Sprintf("leases, links, handovers and tails, %.1f s after the last healing", e.settledAfter.Seconds())}
	if e.stuck != nil {
		c.found("%v", e.stuck)
	}
	return c
}

// checkTakeovers: a site that is gone for long enough, with nothing else wrong, is taken over.
func (e *episode) checkTakeovers() Check {
	c := Check{Name: "taken_over", Claim: "a site that is gone for long enough, with nothing else wrong, is taken over"}
	expected := 0
	for i := range e.steps {
		p := &e.steps[i]
		if !p.Alone || p.leftOut != "" || p.owned == 0 || e.besides(p) {
			continue
		}
		expected++
		if !slices.ContainsFunc(e.failovers, func(f failoverSeen) bool {
			return f.record.From == p.Site && f.record.Steps[0].At.After(p.began) && f.record.Steps[0].At.Before(p.ended)
		}) {
			c.found("%s: nobody took over its %d buckets", p.String(), p.owned)
		}
	}
	c.Looked = fmt.Sprintf("%d such losses", expected)
	return c
}

// besides tells whether another fault was there, or had just been, when a site was lost: one that came later than drawn.
func (e *episode) besides(p *played) bool {
	return slices.ContainsFunc(e.steps, func(o played) bool {
		return o.isFault() && o.planned.String() != p.planned.String() && o.began.Before(p.ended) && o.ended.After(p.began.Add(-quietBefore/2))
	})
}

// checkTails is CheckTail with the clients' word: nothing of a lost site's tail that they were told is unaccounted for.
func (e *episode) checkTails(ev *evidence) Check {
	c := CheckTail(ev.Evidence)
	for i := range e.failovers {
		f := &e.failovers[i]
		for _, example := range f.rpo.Examples {
			c.found("failover %s: %s", f.record.ID, example)
		}
		if more := f.rpo.Missing - len(f.rpo.Examples); more > 0 {
			c.Violated += more
		}
	}
	return c
}

// keepEvidence writes what the checks looked at beside the report, an entry a line.
func (m *demo) keepEvidence(ev *evidence, checks []Check) error {
	if err := m.keepConflicts(ev.Conflicts); err != nil {
		return err
	}
	for name, write := range map[string]func(*json.Encoder) error{
		"changes.jsonl":  func(enc *json.Encoder) error { return encodeAll(enc, ev.Changes) },
		"epochs.jsonl":   func(enc *json.Encoder) error { return encodeAll(enc, ev.Epochs) },
		"losses.jsonl":   func(enc *json.Encoder) error { return encodeAll(enc, ev.Losses) },
		"checks.jsonl":   func(enc *json.Encoder) error { return encodeAll(enc, checks) },
		"requests.jsonl": func(enc *json.Encoder) error { return encodeAll(enc, ev.ops) },
	} {
		var out bytes.Buffer
		if err := write(json.NewEncoder(&out)); err != nil {
			return fmt.Errorf("lab: evidence: %w", err)
		}
		if err := os.WriteFile(filepath.Join(m.opts.Out, name), out.Bytes(), 0o644); err != nil {
			return fmt.Errorf("lab: evidence: %w", err)
		}
	}
	return nil
}

func encodeAll[T any](enc *json.Encoder, items []T) error {
	for i := range items {
		if err := enc.Encode(&items[i]); err != nil {
			return err
		}
	}
	return nil
}
