package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/lease"
	"github.com/atollhq/atoll/internal/postgres"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/topo"
)

// maxBound bounds what another site may ask this one to wait.
const maxBound = 5 * time.Minute

// localSite is this site's part in switches, wherever the controller that asks for it runs. It satisfies control.Site.
type localSite struct{ *agent }

// Ready looks at what this site can know: the source at its fence, the target at its link, both at their lease.
func (s localSite) Ready(ctx context.Context, r api.ReadyRequest) (api.ReadyAnswer, error) {
	c := check{site: s.site, answer: api.ReadyAnswer{Facts: map[string]string{}}}
	connected := 0
	for _, g := range s.hub.Gateways() {
		if g.Connected {
			connected++
		}
	}
	c.fact("gateways", fmt.Sprint(connected))
	if r.From != s.site && r.To != s.site {
		return c.answer, nil
	}
	db := s.database.Load()
	if db == nil {
		c.problem("database", "the agent does not reach its database: "+s.whyAway(), "start the database, or correct the agent's DSN")
		return c.answer, nil
	}
	state, err := db.fence.State(ctx)
	if err != nil {
		c.problem("database", err.Error(), "start the database, or correct the agent's DSN")
		return c.answer, nil
	}
	if deadline, live := db.keeper.Deadline(); live {
		c.fact("lease", time.Until(deadline).Round(time.Millisecond).String())
	} else {
		c.problem("lease", "the site's lease is not in force: "+db.keeper.Status().Problem, "see atoll status: the store and the database must both answer")
	}
	if r.From == s.site {
		c.source(r, db, state)
	}
	if r.To == s.site {
		c.target(ctx, r, db, state)
	}
	return c.answer, nil
}

// check collects what speaks against a switch.
type check struct {
	site   topo.SiteID
	answer api.ReadyAnswer
}

func (c *check) fact(name, value string) {
	c.answer.Facts[name+" of "+string(c.site)] = value
}

func (c *check) problem(name, text, hint string) {
	c.answer.Problems = append(c.answer.Problems, api.Problem{Check: name, Site: c.site, Text: text, Hint: hint})
}

// source: the fence must stand as the store says, or the marker would speak of other epochs.
func (c *check) source(r api.ReadyRequest, db *database, state postgres.FenceState) {
	rows := make(map[topo.BucketID]postgres.BucketRow, len(state.Rows[r.Keyspace]))
	for _, row := range state.Rows[r.Keyspace] {
		rows[row.Bucket] = row
	}
	on := make(map[topo.BucketID]bool)
	for _, b := range state.Bits[r.Keyspace].Buckets() {
		on[b] = true
	}
	wrong, first := 0, ""
	for _, sp := range r.Buckets {
		for b := sp.First; b <= sp.Last && b < topo.MaxBuckets; b++ {
			row := rows[b]
			if on[b] && row.State == "open" && row.Epoch == sp.Epoch {
				continue
			}
			if wrong++; first == "" {
				first = fmt.Sprintf("bucket %d is at epoch %d, %s, bit %v; want epoch %d, open", b, row.Epoch, orNone(row.State), on[b], sp.Epoch)
			}
		}
	}
	if wrong > 0 {
		c.problem("fence-open", fmt.Sprintf("the fence of %d buckets is not open as the store says: %s", wrong, first), "the site's keeper opens it as soon as its lease is in force; see atoll status")
	}
	for _, t := range db.serve.State() {
		if t.Target == r.To && t.Connected {
			return
		}
	}
	c.problem("link", fmt.Sprintf("site %s is not connected for this site's changes", r.To), fmt.Sprintf("see the links of %s in atoll status", r.To))
}

// target: what the source writes must be coming in, and marker and progress tables must be there to be read.
func (c *check) target(ctx context.Context, r api.ReadyRequest, db *database, state postgres.FenceState) {
	if _, installed := state.Buckets[r.Keyspace]; !installed {
		c.problem("keyspace", fmt.Sprintf("keyspace %s is not installed in this database", r.Keyspace), "run atoll apply")
	}
	if _, _, err := db.recorded.Marker(ctx, r.From, "none"); err != nil {
		c.problem("marker-table", err.Error(), "run atoll apply")
	}
	follow := db.follows[r.From]
	if follow == nil {
		c.problem("link", fmt.Sprintf("site %s is not in this agent's spec", r.From), "give every site the same atoll.yaml")
		return
	}
	st := follow.State()
	if st.Phase != replicate.Streaming {
		c.problem("applier", fmt.Sprintf("the changes of %s are not streaming in (%s): %s", r.From, st.Phase, orNone(st.Err)), "see the links in atoll status")
		return
	}
	maxLag := time.Duration(r.MaxLagMS) * time.Millisecond
	switch {
	case !st.LagKnown:
		c.problem("target-lag", fmt.Sprintf("how far this site is behind %s is not known yet", r.From), "try again in a second")
	case st.Lag > maxLag:
		c.problem("target-lag", fmt.Sprintf("this site is %s behind %s; allowed are %s", st.Lag.Round(time.Millisecond), r.From, maxLag), "wait until it has caught up, or raise policies.switch.max_lag")
	default:
		c.fact("lag", st.Lag.Round(time.Millisecond).String())
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// Settled passes the document on to gateways and waits for them.
func (s localSite) Settled(ctx context.Context, r api.SettleRequest) (api.SettleAnswer, error) {
	if len(r.Ownership) > 0 {
		if _, err := s.take(r.Ownership); err != nil {
			return api.SettleAnswer{}, err
		}
	}
	if _, err := checkedBound(r.BoundMS); err != nil {
		return api.SettleAnswer{}, err
	}
	return s.hub.Settled(ctx, r)
}

// CloseBuckets closes this site's fence for the buckets.
func (s localSite) CloseBuckets(ctx context.Context, r api.CloseRequest) (api.CloseAnswer, error) {
	bound, err := checkedBound(r.BoundMS)
	if err != nil {
		return api.CloseAnswer{}, err
	}
	db, err := s.active()
	if err != nil {
		return api.CloseAnswer{}, err
	}
	m, err := db.fence.CloseBuckets(ctx, postgres.CloseOrder{Handover: r.Handover, Keyspace: r.Keyspace, Buckets: r.Buckets, Bound: bound, EndBlockers: r.EndBlockers})
	switch {
	case errors.Is(err, postgres.ErrWritersRemain):
		return api.CloseAnswer{}, &api.Error{Status: 409, Code: api.CodeWritersRemain, Message: err.Error()}
	case errors.Is(err, postgres.ErrStale):
		return api.CloseAnswer{}, &api.Error{Status: 409, Code: api.CodeStale, Message: err.Error()}
	case err != nil:
		return api.CloseAnswer{}, unavailable(err)
	}
	s.log.Info("fence closed", "handover", r.Handover, "keyspace", r.Keyspace, "buckets", r.Buckets, "unix_us", time.Now().UnixMicro())
	return api.CloseAnswer{Marker: m}, nil
}

// CaughtUp waits for a marker, and for all that stands before it.
func (s localSite) CaughtUp(ctx context.Context, r api.CaughtUpRequest) (api.CaughtUpAnswer, error) {
	bound, err := checkedBound(r.BoundMS)
	if err != nil {
		return api.CaughtUpAnswer{}, err
	}
	db := s.database.Load()
	if db == nil {
		return api.CaughtUpAnswer{}, unavailable(errors.New("the database is away: " + s.whyAway()))
	}
	wait, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	m, err := db.applied.WaitMarker(wait, r.From, r.Handover)
	switch {
	case err == nil:
		return api.CaughtUpAnswer{Marker: m}, nil
	case ctx.Err() == nil && wait.Err() != nil:
		return api.CaughtUpAnswer{}, &api.Error{Status: 504, Code: api.CodeNotYet, Message: err.Error()}
	default:
		return api.CaughtUpAnswer{}, unavailable(err)
	}
}

// Open opens what the document gives this site.
func (s localSite) Open(ctx context.Context, r api.OpenRequest) (api.OpenAnswer, error) {
	bound, err := checkedBound(r.BoundMS)
	if err != nil {
		return api.OpenAnswer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	o, err := s.document(ctx, r)
	if err != nil {
		return api.OpenAnswer{}, err
	}
	s.hub.Publish(o)
	for {
		db, err := s.active()
		if err != nil {
			return api.OpenAnswer{}, err
		}
		change := db.keeper.Opened()
		err = db.keeper.Observe(ctx, o)
		if err != nil && !errors.Is(err, lease.ErrNotActive) {
			return api.OpenAnswer{}, unavailable(err)
		}
		if v := db.keeper.OpenedVersion(); v >= r.Version {
			s.hub.SetOpened(v)
			return api.OpenAnswer{Version: v}, nil
		}
		select { // the keeper opens it with its next renewal
		case <-change:
		case <-ctx.Done():
			return api.OpenAnswer{}, unavailable(fmt.Errorf("not open yet: %w", ctx.Err()))
		}
	}
}

// Abort opens what the document leaves to this site.
func (s localSite) Abort(ctx context.Context, r api.OpenRequest) (api.OpenAnswer, error) {
	return s.Open(ctx, r)
}

// document is the version that an order speaks of, or a later one; from the order, else from the store.
func (s localSite) document(ctx context.Context, r api.OpenRequest) (topo.Ownership, error) {
	if len(r.Ownership) > 0 {
		return s.take(r.Ownership)
	}
	o, _, err := s.store.Ownership(ctx)
	if err != nil {
		return o, unavailable(err)
	}
	if o.Generation == r.Generation && o.Version < r.Version {
		return o, &api.Error{Status: 409, Code: api.CodeStale, Message: fmt.Sprintf("the store has ownership %d.%d, older than %d", o.Generation, o.Version, r.Version)}
	}
	return o, nil
}

// take accepts a document from another site's controller, which has it from the store. What is older than this site's
// own changes nothing.
func (s localSite) take(body json.RawMessage) (topo.Ownership, error) {
	o, err := topo.DecodeOwnership(body)
	if err != nil {
		return o, &api.Error{Status: 400, Code: api.CodeBadRequest, Message: err.Error()}
	}
	s.hub.Publish(o)
	return o, nil
}

// active is the database of a site whose lease this agent keeps; a standby touches no fence.
func (s localSite) active() (*database, error) {
	db := s.database.Load()
	if db == nil {
		return nil, unavailable(errors.New("the database is away: " + s.whyAway()))
	}
	if _, live := db.keeper.Deadline(); !live {
		st := db.keeper.Status()
		return nil, unavailable(fmt.Errorf("the site's lease is not in force here (%s): %s", st.Doing, orNone(st.Problem)))
	}
	return db, nil
}

func (a *agent) whyAway() string {
	if a.kept.Load() != nil {
		if err := a.standby(); err != nil {
			return err.Error()
		}
	}
	if why := a.why.Load(); why != nil {
		return *why
	}
	return "still connecting"
}

func checkedBound(ms int64) (time.Duration, error) {
	if ms < 1 || ms > maxBound.Milliseconds() {
		return 0, &api.Error{Status: 400, Code: api.CodeBadRequest, Message: fmt.Sprintf("bound of %d ms; want 1 to %d", ms, maxBound.Milliseconds())}
	}
	return time.Duration(ms) * time.Millisecond, nil
}

func unavailable(err error) error {
	return &api.Error{Status: 503, Code: api.CodeUnavailable, Message: err.Error()}
}
