package dns

import (
	"context"
	"log/slog"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

const (
	publishGap   = 5 * time.Second // at least, between two documents
	firstRetry   = 2 * time.Second
	longestRetry = time.Minute
)

// Publisher hands a document on whenever it differs from the last that was taken. It runs where a site's lease is held,
// and nowhere else; of several sites that hold theirs, the first in order of name publishes (see [Turn]).
type Publisher struct {
	Spec    *spec.Spec
	Site    topo.SiteID
	Health  func(context.Context) api.Health
	Publish func(context.Context, Document) error // bounded by itself; may be called again with what it has taken before
	Log     *slog.Logger

	good      Choice
	published *Document // nil: what is there is not known, another site may have published
	failures  int
}

// Run publishes until ctx ends.
func (p *Publisher) Run(ctx context.Context) error {
	for {
		wait := time.NewTimer(p.step(ctx))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return context.Cause(ctx)
		}
	}
}

// step looks once, publishes what has changed, and says when to look again. What only is guessed is not published: with
// no site known to be well, what is there stays.
func (p *Publisher) step(ctx context.Context) time.Duration {
	health := p.Health(ctx)
	sites := SitesOf(p.Spec)
	choice := Decide(sites, health, p.good)
	if choice.Basis == Healthy {
		p.good = choice
	}
	if !Turn(health) {
		if p.published != nil {
			p.Log.Info("another site publishes the addresses from now on")
		}
		p.published, p.failures = nil, 0
		return AskEvery
	}
	if choice.Basis != Healthy {
		return AskEvery
	}
	doc, err := newDocument(p.Spec, p.Site, sites, choice)
	if err == nil {
		if p.published != nil && p.published.Same(doc) {
			return AskEvery
		}
		doc.At = health.At
		err = p.Publish(ctx, doc)
	}
	if err != nil {
		if ctx.Err() == nil {
			p.Log.Error("the addresses are not published; trying again", "error", err)
		}
		p.published = nil // it may have been taken in part
		p.failures++
		return p.retry()
	}
	p.published, p.failures = &doc, 0
	p.Log.Info("the addresses are published", "sites", doc.Sites)
	return publishGap
}

func (p *Publisher) retry() time.Duration {
	return min(firstRetry<<min(p.failures, 10), longestRetry)
}

// Turn tells whether the answering agent is the one that publishes: it holds its site's lease, and no site before it in
// order of name may do so. A lease of which nothing is known may be held.
func Turn(h api.Health) bool {
	for _, s := range h.Sites {
		if s.Site < h.Site && s.Member && s.Lease != api.LeaseLapsed {
			return false
		}
	}
	return h.Holds
}
