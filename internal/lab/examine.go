package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// evidence is all that the report is made from: databases, histories, logs.
type evidence struct {
	Evidence
	ops    []Operation
	shops  []Shop
	hashes map[topo.SiteID]map[string]rowHashes
	holds  []Hold
}

// quiesce waits until nothing moves any more: the shop has nothing left to do, no database commits anything of its
// own, and the sites are equal. At the bound it gives up; the checks will say what is wrong.
func (m *demo) quiesce(ctx context.Context) error {
	m.screen.say("waiting until the sites stand still and are equal")
	bounded, cancel := context.WithTimeout(ctx, quiesceBound)
	defer cancel()
	before := map[topo.SiteID]int{}
	err := every(bounded, 500*time.Millisecond, func() (bool, error) {
		still := true
		for _, site := range m.opts.Sites {
			err := m.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
				jobs, err := openJobs(ctx, db)
				if err != nil {
					return err
				}
				changes, err := changesOf(ctx, db)
				still = still && jobs == 0 && changes == before[site] && err == nil
				before[site] = changes
				return err
			})
			if err != nil {
				return false, err
			}
		}
		if !still {
			return false, nil
		}
		hashes, err := m.hashes(ctx)
		if err != nil {
			return false, err
		}
		c := CheckEqual(hashes)
		return c.Passed(), nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		m.screen.say("  they do not come to rest within %v", quiesceBound)
		return nil
	}
	return err
}

func (m *demo) hashes(ctx context.Context) (map[topo.SiteID]map[string]rowHashes, error) {
	out := map[topo.SiteID]map[string]rowHashes{}
	for _, site := range m.opts.Sites {
		err := m.d.onDatabase(ctx, site, func(db *pgx.Conn) (err error) {
			out[site], err = hashSite(ctx, db, replicatedTables(m.d.Spec))
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// gather reads everything that there is to look at.
func (m *demo) gather(ctx context.Context) (*evidence, error) {
	e := &evidence{}
	tables := watchedTables(m.d.Spec)
	for _, site := range m.opts.Sites {
		err := m.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			seen, err := readEvidence(ctx, db, site, tables, time.Time{})
			if err != nil {
				return err
			}
			e.Changes, e.Epochs, e.Conflicts = append(e.Changes, seen.Changes...), append(e.Epochs, seen.Epochs...), append(e.Conflicts, seen.Conflicts...)
			shop, err := readShop(ctx, db, site)
			e.shops = append(e.shops, shop)
			return err
		})
		if err != nil {
			return nil, err
		}
		for name := range m.d.at[site].gateways {
			holds, err := readHoldsOf(string(site)+"/"+name, m.d.Processes.LogFile(string(site)+"/"+name))
			if err != nil {
				return nil, err
			}
			e.holds = append(e.holds, holds...)
		}
	}
	var err error
	if e.hashes, err = m.hashes(ctx); err != nil {
		return nil, err
	}
	for _, path := range []string{m.historyFile(), m.registersFile()} {
		ops, err := readHistoryOf(path)
		if err != nil {
			return nil, err
		}
		e.ops = append(e.ops, ops...)
	}
	e.ops = append(e.ops, m.straggler.ops...)
	for _, o := range m.outages {
		if l, ok := o.loss(e.Epochs); ok {
			e.Losses = append(e.Losses, l)
		}
	}
	return e, nil
}

func readHistoryOf(path string) ([]Operation, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lab: history: %w", err)
	}
	defer f.Close()
	return ReadHistory(f)
}

func readHoldsOf(gateway, log string) ([]Hold, error) {
	f, err := os.Open(log)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer f.Close()
	return ReadHolds(gateway, f)
}

// examine runs all checks and makes the report.
func (m *demo) examine(ctx context.Context) (*Report, error) {
	e, err := m.gather(ctx)
	if err != nil {
		return nil, err
	}
	r := &Report{Seconds: round(time.Since(m.began).Seconds(), 1)}
	r.Requests = m.requests(e.ops)
	if err := m.keepConflicts(e.Conflicts); err != nil {
		return nil, err
	}
	failures := append(m.failuresOfSwitches(e.ops), m.failuresOfOutages(e.ops, e.Epochs)...)
	r.Switch = m.sumUp(e, m.of(nominal))
	r.nominal = r.Switch
	r.Switch.FailedRequests, r.Switch.HeldRequests = len(m.failuresOfSwitches(e.ops)), m.held(e.ops)
	r.Spread, r.UnderLag, r.SlowWriters = m.sumUp(e, m.of(spreading)), m.sumUp(e, m.of(underLag)), m.sumUp(e, m.of(slowWriter))
	r.InCircle, r.AfterCut, r.Home = m.sumUp(e, m.of(inCircle)), m.sumUp(e, m.of(afterCut)), m.sumUp(e, m.of(homeward))
	m.sumUpOutages(r, e)
	r.Cut = m.sumUpCut(e.ops)
	seats, twice := CheckSeats(e.shops, e.Conflicts)
	equal := CheckEqual(e.hashes)
	r.SeatsSoldTwice, r.SitesEqual = twice, equal.Passed()
	registers := append(slices.Clone(e.ops), FinalReads(e.ops, e.shops, time.Now())...)
	k5, sessions := CheckK5(e.Evidence, e.ops, m.opts.Buckets)
	r.Sessions = sessions
	r.Details = []Check{CheckK1(e.Evidence, e.ops, m.opts.Buckets), CheckK2(e.Evidence), CheckK3(e.ops, e.shops, e.Conflicts), CheckK4(registers, e.Conflicts, e.Losses),
		k5, CheckK6(e.ops), CheckLists(registers, e.Conflicts, e.Losses), seats, equal, CheckReleases(e.holds, e.Evidence), checkFailures(failures), m.checkSwitches(r), m.checkLoad(r), m.checkAlive()}
	if m.opts.Part != partSwitches { // else no site was lost
		tail := CheckTail(e.Evidence)
		accountFor(&tail, r)
		r.Details = append(r.Details, tail, m.checkFailover(r), m.checkDrills(r, e))
	}
	r.Checks, r.OK = map[string]string{}, true
	for i := range r.Details {
		r.Checks[r.Details[i].Name] = r.Details[i].Result()
		r.OK = r.OK && r.Details[i].Passed()
	}
	r.Goals = m.goals(r, e.ops)
	r.Environment, err = m.environment(ctx)
	return r, err
}

// requests sums up a history over the time of the load.
func (m *demo) requests(ops []Operation) Requests {
	all := count(ops)
	out := Requests{Counts: all, PerSecond: round(float64(all.Total())/m.loaded[1].Sub(m.loaded[0]).Seconds(), 1)}
	if all.Total() > 0 {
		out.WriteShare = round(float64(all.Writes)/float64(all.Total()), 3)
	}
	return out
}

// handoversOf names the handovers of a switch by the epoch rows that it closed at the old owner.
func handoversOf(s switchRun, epochs []EpochRow) map[topo.HandoverID]bool {
	out := map[topo.HandoverID]bool{}
	for _, r := range epochs {
		if r.Database == s.from && r.Site == s.from && !r.Open && r.Handover != "" && s.buckets.Contains(r.Bucket) && r.Keyspace == s.keyspace &&
			!r.At.Before(s.start) && !r.At.After(s.end) {
			out[r.Handover] = true
		}
	}
	return out
}

// moved tells whether all buckets of a switch were opened at their new owner while it ran.
func moved(s switchRun, epochs []EpochRow) bool {
	opened := map[topo.BucketID]bool{}
	for _, r := range epochs {
		if r.Database == s.to && r.Site == s.to && r.Open && r.Keyspace == s.keyspace && s.buckets.Contains(r.Bucket) && !r.At.Before(s.start) && !r.At.After(s.end) {
			opened[r.Bucket] = true
		}
	}
	return len(opened) > 0 && len(opened) == s.buckets.Len()
}

// sumUp measures a set of switches. A switch counts when the databases show that all its buckets moved.
func (m *demo) sumUp(e *evidence, runs []switchRun) Switches {
	out := Switches{RTTms: float64(m.opts.RTT.Microseconds()) / 1000, Tried: len(runs)}
	handovers := map[topo.HandoverID]bool{}
	var took []time.Duration
	for _, s := range runs {
		if s.err != nil {
			out.Errors = append(out.Errors, s.err.Error())
		}
		if !moved(s, e.Epochs) {
			continue
		}
		out.Count++
		out.Buckets += s.buckets.Len()
		took = append(took, s.end.Sub(s.start))
		maps.Copy(handovers, handoversOf(s, e.Epochs))
		for i := range e.ops {
			if o := &e.ops[i]; m.touches(o, s) {
				if o.Failed() && !o.gaveUp() && !m.underWayInOutage(o) {
					out.FailedRequests++
				}
				if o.HeldMS > 0 {
					out.HeldRequests++
				}
			}
		}
	}
	var lengths []time.Duration
	for _, p := range pausesOf(e.holds, handovers, openingsOf(e.Evidence)) {
		lengths = append(lengths, p.length())
	}
	out.WritePauseMS, out.TookMS = quantiles(lengths), quantiles(took)
	return out
}

// touches tells whether a request's time and bucket overlap a switch.
func (m *demo) touches(o *Operation, s switchRun) bool {
	if !o.overlaps(s.start, s.end) {
		return false
	}
	if s.keyspace == catalog {
		return o.needsCatalog()
	}
	return o.Keyspace == users && o.Key != "" && s.buckets.Contains(bucketOf(o.Key, m.opts.Buckets))
}

// needsCatalog tells whether a request reads or writes the catalogue: a purchase takes its seat there.
func (o *Operation) needsCatalog() bool {
	return o.Keyspace == catalog || o.Op == buyOp || o.Op == cancelOp
}

// failuresOfSwitches lists the requests that failed and overlap a switch of their bucket, and every failed request
// of the keyspace while switches were made and nothing was cut. A request that was under way when a site was lost is
// that loss's.
func (m *demo) failuresOfSwitches(ops []Operation) []*Operation {
	var out []*Operation
	for i := range ops {
		o := &ops[i]
		if !o.Failed() || o.gaveUp() || m.underWayInOutage(o) {
			continue
		}
		during := o.Keyspace == users && o.overlaps(m.switching[0], m.switching[1])
		if during || slices.ContainsFunc(m.switches, func(s switchRun) bool { return m.touches(o, s) }) {
			out = append(out, o)
		}
	}
	return out
}

// held counts the requests that a switch made wait.
func (m *demo) held(ops []Operation) int {
	n := 0
	for i := range ops {
		if o := &ops[i]; o.HeldMS > 0 && slices.ContainsFunc(m.switches, func(s switchRun) bool { return m.touches(o, s) }) {
			n++
		}
	}
	return n
}

func (m *demo) sumUpCut(ops []Operation) Cut {
	out := Cut{Seconds: round(m.cut[1].Sub(m.cut[0]).Seconds(), 1), CaughtUpAfterMS: m.caughtUp.Sub(m.cut[1]).Milliseconds()}
	var last time.Time
	for i := range ops {
		o := &ops[i]
		if !o.overlaps(m.cut[0], m.quietEnd()) || o.Invoked().Before(m.cut[0].Add(-loadTimeout)) || o.Invoked().After(m.quietEnd()) {
			continue
		}
		if o.Invoked().Before(m.cut[1]) {
			if o.Failed() {
				out.FailedRequests++
			} else {
				out.AnsweredRequests++
			}
		} else if o.Failed() {
			out.FailedAfter++
			if o.Returned().After(last) {
				last = o.Returned()
			}
		}
	}
	if !last.IsZero() {
		out.LastFailureAfterMS = last.Sub(m.cut[1]).Milliseconds()
	}
	return out
}

// checkFailures is what planned switches and failovers promise to those whom they do not concern.
func checkFailures(failures []*Operation) Check {
	c := Check{Name: "K7", Claim: "no request failed because of a switch; in a failover only those of the lost site, until it was replaced",
		Looked: "every request of a moved bucket, all of the keyspace while switches were made, and all from the first loss on"}
	for _, o := range failures {
		c.found("%s", o)
	}
	return c
}

// checkSwitches: enough was moved, by the databases' word, to say anything.
func (m *demo) checkSwitches(r *Report) Check {
	c := Check{Name: "switches", Claim: "every switch moved its buckets, at least 10 and 200 buckets in all, and held requests"}
	c.Looked = fmt.Sprintf("%d switches with %d buckets, besides the harder ones", r.Switch.Count, r.Switch.Buckets)
	for _, s := range []Switches{r.Spread, r.Switch, r.UnderLag, r.SlowWriters, r.InCircle, r.AfterCut, r.Home} {
		if s.Count < s.Tried {
			c.found("%d of %d switches did not move their buckets: %s", s.Tried-s.Count, s.Tried, strings.Join(s.Errors, "; "))
		}
	}
	if m.opts.Part == partFailover {
		c.Claim, c.Looked = "every switch moved its buckets", fmt.Sprintf("only the part %q was played", m.opts.Part)
		return c
	}
	if r.Switch.Count < 10 || r.Switch.Buckets < 200 {
		c.found("%d switches with %d buckets; want at least 10 with 200", r.Switch.Count, r.Switch.Buckets)
	}
	if r.Switch.HeldRequests == 0 {
		c.found("no request was held: the load missed the moved buckets")
	}
	if r.Switch.WritePauseMS.Count < r.Switch.Buckets {
		c.found("the gateways' logs show pauses of %d buckets; %d were moved", r.Switch.WritePauseMS.Count, r.Switch.Buckets)
	}
	return c
}

func (m *demo) checkLoad(r *Report) Check {
	c := Check{Name: "load", Claim: fmt.Sprintf("at least %.0f requests a second, %.0f %% of them writes", minRate, 100*minWrites),
		Looked: fmt.Sprintf("%.1f requests a second, %.1f %% writes", r.Requests.PerSecond, 100*r.Requests.WriteShare)}
	if r.Requests.PerSecond < minRate || r.Requests.WriteShare < minWrites {
		c.found("%s", c.Looked)
	}
	return c
}

func (m *demo) checkAlive() Check {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := Check{Name: "alive", Claim: "no process ended that the lab did not end", Looked: fmt.Sprintf("%d processes", len(m.d.Processes.Names()))}
	for _, name := range m.died {
		c.found("%s ended; its log ends: %s", name, m.d.Processes.Tail(name, 3))
	}
	return c
}
