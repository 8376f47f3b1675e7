// Package members takes sites in and lets them go while the deployment runs. The main type is [Members]; its steps are
// the operator's commands.
//
// The members stand in the ownership document, so that each change of them is one compare-and-set with the owners, and
// every site acknowledges it as it does a change of owners. A new site is first a copy of another one, then joining (it is
// kept for, and owns nothing), and a member when every other one has acknowledged that and it has what they had then.
//
// It guarantees that no site is let go of which others lack something, unless the operator gives that up in words; that a
// site that is let go owns nothing and its lease is nobody's; and that each command may be repeated, from wherever the one
// before ended. It refuses to begin without every other member.
package members

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

const (
	lookEvery = 200 * time.Millisecond
	bound     = time.Minute // for what others have to apply or to acknowledge
)

// Store is what is needed of the control store.
type Store interface {
	Ownership(context.Context) (topo.Ownership, store.Revision, error)
	Lease(context.Context, topo.SiteID) (store.Lease, store.Revision, error)
	Commit(context.Context, store.Change) (store.Revision, error)
}

// Sites are the agents of the sites, this one's included.
type Sites interface {
	// Standing is what one site knows of another.
	Standing(ctx context.Context, at, of topo.SiteID) (api.Standing, error)
	// Point is a position of a site's stream behind all that is committed there.
	Point(ctx context.Context, at topo.SiteID) (uint64, error)
	// Dismiss has a site let go of all that it keeps of and for one that is no member.
	Dismiss(ctx context.Context, at, gone topo.SiteID) error
}

// Config is what Members works with.
type Config struct {
	Site   topo.SiteID
	Listed []topo.SiteID // full sites of the spec, this one included
	Store  Store
	Sites  Sites
	// Rebuild brings this site, which is no member, to another one's content; see package rejoin.
	Rebuild func(ctx context.Context, who string, r api.RebuildRequest) (api.RebuildAnswer, error)
	W       time.Duration // of a lapsed lease
	Logger  *slog.Logger  // nil discards
}

// Members changes who takes part.
type Members struct {
	cfg Config
	log *slog.Logger
}

// New makes a Members; it does nothing by itself.
func New(cfg Config) *Members {
	m := &Members{cfg: cfg, log: cfg.Logger}
	if m.log == nil {
		m.log = slog.New(slog.DiscardHandler)
	}
	return m
}

// change is one command under way.
type change struct {
	*Members
	who    string
	req    api.MemberRequest
	answer api.MemberAnswer
}

// Change carries a command out, or with DryRun says whether it would start.
func (m *Members) Change(ctx context.Context, who string, req api.MemberRequest) (api.MemberAnswer, error) {
	c := &change{Members: m, who: who, req: req, answer: api.MemberAnswer{Site: req.Site, Do: req.Do, DryRun: req.DryRun}}
	var err error
	switch req.Do {
	case api.MemberAdd:
		err = c.add(ctx)
	case api.MemberRemove, api.MemberForget:
		err = c.letGo(ctx)
	default:
		err = &api.Error{Status: 400, Code: api.CodeBadRequest, Message: fmt.Sprintf("%q is nothing that can be done with a member; want add, remove or forget", req.Do)}
	}
	var coded *api.Error
	if err != nil && !errors.As(err, &coded) {
		err = &api.Error{Status: 503, Code: api.CodeUnavailable, Message: fmt.Sprintf("%s site %s: %v", req.Do, req.Site, err), Hint: "run the same command again: it goes on from there"}
	}
	return c.answer, err
}

// refused says no; nothing was changed.
func (c *change) refused(check, hint, format string, args ...any) error {
	return &api.Error{Status: 409, Code: api.CodeRefused, Message: fmt.Sprintf("to %s site %s is refused; nothing was changed", c.req.Do, c.req.Site),
		Problems: []api.Problem{{Check: check, Site: c.req.Site, Text: fmt.Sprintf(format, args...), Hint: hint}}}
}

// did notes a step, for the answer.
func (c *change) did(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	c.answer.Steps = append(c.answer.Steps, text)
	c.log.Info("members", "site", c.req.Site, "do", c.req.Do, "step", text)
}

// document reads the ownership; one that has no list of members yet is given that of the spec, in what is committed next.
func (c *change) document(ctx context.Context) (topo.Ownership, store.Revision, error) {
	o, rev, err := c.cfg.Store.Ownership(ctx)
	listed := slices.Clone(c.cfg.Listed)
	if c.req.Do == api.MemberAdd { // it is in the spec already
		listed = slices.DeleteFunc(listed, func(s topo.SiteID) bool { return s == c.req.Site })
	}
	return o.WithMembers(listed), rev, err
}

// others are the members besides the site that the command is about.
func (c *change) others(o topo.Ownership) []topo.SiteID {
	return slices.DeleteFunc(o.TakingPart(nil, true), func(s topo.SiteID) bool { return s == c.req.Site })
}

// commit writes a document in the place of the one that was read, with a line in the audit. Of two commands one wins.
func (c *change) commit(ctx context.Context, next topo.Ownership, rev store.Revision, lease *store.LeaseChange, format string, args ...any) error {
	text := fmt.Sprintf(format, args...) + fmt.Sprintf(" (by %s", c.who)
	if c.req.Why != "" {
		text += ": " + c.req.Why
	}
	_, err := c.cfg.Store.Commit(ctx, store.Change{Ownership: &store.OwnershipChange{Expect: rev, Next: next}, Lease: lease, Audit: text + ")"})
	if err == nil {
		c.answer.Version = next.Version
	}
	return err
}

// until looks again and again, at most for the bound; look says what is missing, "" if nothing is.
func until(ctx context.Context, look func(context.Context) (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	missing := "nothing was seen yet"
	for {
		text, err := look(ctx)
		switch {
		case err == nil && text == "":
			return nil
		case err != nil:
			missing = err.Error()
		default:
			missing = text
		}
		timer := time.NewTimer(lookEvery)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%s: %w", missing, context.Cause(ctx))
		}
	}
}

// applied waits until sites have applied an origin's stream up to a position.
func (c *change) applied(ctx context.Context, sites []topo.SiteID, of topo.SiteID, position uint64) error {
	return until(ctx, func(ctx context.Context) (string, error) {
		for _, at := range sites {
			st, err := c.cfg.Sites.Standing(ctx, at, of)
			if err != nil {
				return "", fmt.Errorf("site %s does not say how far it is with the changes of site %s: %w", at, of, err)
			}
			if st.Applied < position {
				return fmt.Sprintf("site %s has the changes of site %s up to %d, and not yet up to %d", at, of, st.Applied, position), nil
			}
		}
		return "", nil
	})
}
