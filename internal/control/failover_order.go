package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/topo"
)

// Failover starts a takeover that an operator asks for, and waits until it stands or is given up; with DryRun it says
// whether it would be tried.
func (c *Controller) Failover(ctx context.Context, who string, r api.FailoverRequest) (api.FailoverAnswer, error) {
	l, err := c.asked(r)
	if err != nil {
		return api.FailoverAnswer{}, err
	}
	state, err := l.fresh(ctx)
	if err != nil {
		return api.FailoverAnswer{}, err
	}
	if !state.UnderWay() {
		if against := handover.Unmet(state.Conditions(handover.Ask{Manual: true, Override: r.Override}, time.Now())); len(against) > 0 {
			return api.FailoverAnswer{}, l.refuse(ctx, who, r, against)
		}
	}
	answer := api.FailoverAnswer{DryRun: r.DryRun, Standing: l.standing()}
	if r.DryRun {
		answer.Handover = wire(handover.Record{Kind: handover.KindFailover, Who: who, Why: r.Why, Phase: handover.Prepare, Outcome: handover.OutcomeReady,
			Move: handover.Move{From: l.of, To: c.cfg.Site}, Failover: &handover.Failover{Override: r.Override, LossMS: milliseconds(state.Loss(time.Now()))}})
		return answer, nil
	}
	o := order{handover.Order{ID: newID(), Who: who, Why: r.Why, Override: r.Override}, make(chan handover.Lookout, 1)}
	select {
	case l.orders <- o:
		state = <-o.reply
	case <-ctx.Done():
		return api.FailoverAnswer{}, unavailable("the failover was not begun", context.Cause(ctx))
	}
	if !state.UnderWay() { // a condition ended meanwhile
		return api.FailoverAnswer{}, l.refuse(ctx, who, r, handover.Unmet(state.Conditions(handover.Ask{Manual: true, Override: r.Override}, time.Now())))
	}
	rec, err := l.settled(ctx, state.Record.ID)
	if err != nil {
		return api.FailoverAnswer{}, err
	}
	answer.ID, answer.Handover = rec.ID, wire(rec)
	return answer, nil
}

// asked checks a request.
func (c *Controller) asked(r api.FailoverRequest) (*lookout, error) {
	if r.To != c.cfg.Site {
		return nil, badRequest(fmt.Sprintf("site %q takes over by its own agent; this one is of %s", r.To, c.cfg.Site), fmt.Sprintf("ask the agent of %q", r.To))
	}
	if r.Site == c.cfg.Site || c.cfg.Sites[r.Site] == nil {
		return nil, badRequest(fmt.Sprintf("site %q is no other site with a database", r.Site), fmt.Sprintf("sites: %v", c.sites()))
	}
	for _, rule := range r.Override {
		if !slices.Contains(handover.Overridable(), rule) {
			return nil, badRequest(fmt.Sprintf("rule %q cannot be set aside", rule), fmt.Sprintf("these can: %v; the others are what makes a takeover safe or possible", handover.Overridable()))
		}
	}
	l := c.lookout(r.Site)
	if l == nil {
		return nil, notActive()
	}
	return l, nil
}

func notActive() error {
	return &api.Error{Status: 503, Code: api.CodeUnavailable, Message: "this agent is stopping or not active: it watches no site", Hint: "where two agents run, ask the active one"}
}

// refuse says no, and has it in the audit.
func (l *lookout) refuse(ctx context.Context, who string, r api.FailoverRequest, against []handover.Condition) error {
	out := &api.Error{Status: 409, Code: api.CodeRefused, Message: fmt.Sprintf("the failover from %s to %s is refused; nothing was changed", l.of, l.c.cfg.Site)}
	line := fmt.Sprintf("failover from %s to %s refused (by %s)", l.of, l.c.cfg.Site, who)
	for _, c := range against {
		hint := c.Hint
		if slices.Contains(handover.Overridable(), c.Rule) {
			hint += " (--override " + c.Rule + ")"
		}
		out.Problems = append(out.Problems, api.Problem{Check: c.Rule, Site: l.c.cfg.Site, Text: c.Text, Hint: hint})
		line += "; " + c.Rule + ": " + c.Text
	}
	if !r.DryRun {
		l.audit(line)
	}
	return out
}

// fresh waits for a look that begins from now on.
func (l *lookout) fresh(ctx context.Context) (handover.Lookout, error) {
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, storeBound)
	defer cancel()
	l.look()
	for {
		s, changed := l.snapshot()
		if !s.Facts.Began.Before(asked) {
			return s, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			cause := context.Cause(ctx)
			if s.Blind != "" {
				cause = errors.New(s.Blind)
			}
			return s, unavailable(fmt.Sprintf("site %s cannot be looked at", l.of), cause)
		}
	}
}

// settled waits until a failover that is under way stands or has been given up.
func (l *lookout) settled(ctx context.Context, id topo.HandoverID) (handover.Record, error) {
	for {
		s, changed := l.snapshot()
		switch {
		case s.Last == id && s.Record.ID == id:
			return s.Record, nil
		case s.Last == id: // and another has begun
			rec, _, err := l.record(ctx, id)
			return rec, err
		case s.Record.ID != id || !s.UnderWay():
			return s.Record, &api.Error{Status: 409, Code: api.CodeRefused, Message: fmt.Sprintf("failover %s was begun and given up; %s keeps what it owns", id, l.of),
				Hint: "atoll explain says why"}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return s.Record, unavailable(fmt.Sprintf("failover %s is under way (%s); see atoll explain", id, s.Stage), context.Cause(ctx))
		}
	}
}

func (l *lookout) standing() api.Standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.standing
}

func milliseconds(d time.Duration) int64 {
	if d < 0 {
		return -1
	}
	return d.Milliseconds()
}
