package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// episode is one schedule as it was played, and what was found.
type episode struct {
	schedule schedule
	began    time.Time
	loaded   [2]time.Time
	logFrom  map[string]int64 // size of each process's log at the beginning

	mu    sync.Mutex
	steps []played
	now   map[string]bool // faults that are there at this moment

	stuck        error // what was not well again within the bound
	settledAfter time.Duration
	failovers    []failoverSeen
	handovers    []api.Handover // planned ones
	ops          Counts
	sessions     SessionCounts
	reasons      map[string]int // of failed requests
	checks       []Check
	conflicts    int
	took         time.Duration
}

// played is a step as it was done.
type played struct {
	planned
	began, ended time.Time
	outcome      string // of a switch: done, aborted, refused, unknown
	leftOut      string // why it could not be done
	unhealed     string // what its healing said; what it left, the recovery mends
	owned        int    // lose-site: the buckets that went with it
}

func (e *episode) passed() bool {
	return !slices.ContainsFunc(e.checks, func(c Check) bool { return !c.Passed() })
}

// playSteps does every step at its time and returns when all are healed.
func (r *random) playSteps(ctx context.Context, e *episode) error {
	begin := time.Now()
	e.now = map[string]bool{}
	var running sync.WaitGroup
	for i := range e.schedule.Steps {
		p := e.schedule.Steps[i]
		running.Go(func() {
			if rest(ctx, time.Until(begin.Add(p.At))) != nil {
				return
			}
			done := r.do(ctx, e, p)
			e.mu.Lock()
			defer e.mu.Unlock()
			e.steps = append(e.steps, done)
		})
	}
	running.Wait()
	if err := ctx.Err(); err != nil {
		return err
	}
	slices.SortStableFunc(e.steps, func(a, b played) int { return a.began.Compare(b.began) })
	return rest(ctx, time.Until(begin.Add(playTime)))
}

func (r *random) do(ctx context.Context, e *episode, p planned) played {
	out := played{planned: p, began: time.Now()}
	switch p.Do {
	case actSwitch, actCatalog:
		r.doSwitch(ctx, &out)
	case actLongTransaction:
		r.doTransaction(ctx, &out)
	default:
		r.doFault(ctx, e, &out)
	}
	out.ended = time.Now()
	if out.leftOut != "" {
		r.screen.say("  %s; left out: %s", p.String(), firstLine(out.leftOut))
	}
	return out
}

func (r *random) doFault(ctx context.Context, e *episode, p *played) {
	if p.Do == actLoseSite {
		for _, ks := range []topo.KeyspaceID{users, catalog} {
			owned, err := r.d.ownedBy(ctx, ks, p.Site)
			if err == nil {
				p.owned += owned.Len()
			}
		}
		p.began = time.Now()
	}
	f := r.d.fault(&p.planned)
	if err := f.Inject(ctx); err != nil {
		p.leftOut = err.Error()
		_ = f.Heal(context.WithoutCancel(ctx)) // of what was begun; the recovery mends the rest
		return
	}
	r.screen.say("  %s", p.planned.String())
	e.happens(p.what(), true)
	defer e.happens(p.what(), false)
	if p.Do != actStopApplier { // catching one takes a while
		_ = rest(ctx, time.Until(p.began.Add(p.Lasts))) // healed also when the run ends
	} else {
		_ = rest(ctx, p.Lasts)
	}
	p.unhealed = said(f.Heal(context.WithoutCancel(ctx)))
}

// said is what an error says, "" for none.
func said(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}

func (e *episode) happens(what string, on bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if on {
		e.now[what] = true
	} else {
		delete(e.now, what)
	}
}

func (e *episode) faultsNow() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(e.now)), "; ")
}

// switchBound is for the operator's command: nobody waits longer for a switch under faults.
const switchBound = 60 * time.Second

// doSwitch moves buckets of some other site that has any to the new owner; where that has all of them already, to the
// next site.
func (r *random) doSwitch(ctx context.Context, p *played) {
	ks := users
	if p.Do == actCatalog {
		ks = catalog
	}
	owners, err := r.d.owners(ctx, ks)
	if err != nil {
		p.leftOut = err.Error()
		return
	}
	if len(owners) == 1 && len(owners[p.Site]) > 0 {
		i := slices.Index(r.opts.Sites, p.Site)
		p.Site = r.opts.Sites[(i+1)%len(r.opts.Sites)]
	}
	delete(owners, p.Site)
	from := slices.Sorted(maps.Keys(owners))
	if len(from) == 0 {
		p.leftOut = "all of it is moving"
		return
	}
	owned := owners[from[p.Draw%uint64(len(from))]].Buckets()
	first := int(p.Draw >> 8 % uint64(len(owned)))
	buckets := topo.SpansOf(append(owned[first:], owned[:first]...)[:min(p.Count, len(owned))]...)
	r.screen.say("  %s: %s %s", p.planned.String(), ks, buckets)
	bounded, cancel := context.WithTimeout(ctx, switchBound)
	defer cancel()
	p.began = time.Now()
	out, err := r.d.Atoll(bounded, "switch", "--keyspace", string(ks), "--buckets", buckets.String(), "--to", string(p.Site), "--why", "a random schedule", "--json")
	var h api.Handover
	switch {
	case json.Unmarshal(out, &h) == nil && h.Outcome != "":
		p.outcome = h.Outcome
	case err != nil && strings.Contains(err.Error(), "the switch is refused"):
		p.outcome = "refused"
	default: // its end is not known here; the record is looked at when all is well again
		p.outcome = "unknown"
	}
}

// doTransaction has the shop keep a transaction open for a customer of the site.
func (r *random) doTransaction(ctx context.Context, p *played) {
	owned, err := r.d.ownedBy(ctx, users, p.Site)
	var customers []string
	if err == nil && owned.Len() > 0 {
		bounded, cancel := context.WithTimeout(ctx, askBound)
		defer cancel()
		customers, err = r.customersOf(bounded, p.Site, owned)
	}
	if err != nil || len(customers) == 0 {
		p.leftOut = errors.Join(errNothingThere, err).Error()
		return
	}
	names := slices.Sorted(maps.Keys(r.d.at[p.Site].gateways))
	gateway := names[p.Draw%uint64(len(names))]
	o := Operation{ID: uuid.NewString(), Client: stragglerClient, Op: "bulk-note", Keyspace: users, Key: customers[p.Draw>>8%uint64(len(customers))], Write: true, Target: string(p.Site) + "/" + gateway}
	r.screen.say("  %s", p.planned.String())
	send(context.WithoutCancel(ctx), "http://"+r.d.at[p.Site].gateways[gateway].listen+"/orders/bulk-note", map[string]any{"note": "a slow report", "ms": p.Extra.Milliseconds()}, &o)
	r.straggler.add(o)
}

// stragglerClient is the client of the lab's own slow requests.
const stragglerClient = -3

// show keeps one line about the episode on the screen.
func (r *random) show(ctx context.Context, e *episode) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := r.counts.poll(); err != nil {
			return fmt.Errorf("lab: history: %w", err)
		}
		var all Counts
		for _, c := range r.counts.bySite {
			all.OK, all.Failed = all.OK+c.OK, all.Failed+c.Failed
		}
		done := r.report.Handovers
		r.screen.live([]string{fmt.Sprintf("episode %s (%d before)  %d requests answered, %d failed  before: %d switches, %d failovers, 0 violations  now: %s",
			e.schedule.Seed, len(r.report.Episodes), all.OK, all.Failed, done.SwitchesDone, done.Failovers, orNone(e.faultsNow()))})
	}
}

func orNone(s string) string {
	if s == "" {
		return "no fault"
	}
	return s
}
