package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/handover"
)

const (
	storeBound = 8 * time.Second // one store action: the client goes through all members meanwhile
	readyBound = 3 * time.Second // one site's answer in PREPARE
	wayBound   = time.Second     // there and back, above the bound that a site keeps
)

// atSite does one step at a site. A failure, whatever it is, is an event: the machine knows what to do.
func (d *driver) atSite(ctx context.Context, a handover.Action, r handover.Record) handover.Event {
	ctx, cancel := context.WithTimeout(ctx, a.Bound+wayBound)
	defer cancel()
	ev, err := d.ask(ctx, a, r)
	if err == nil {
		return ev
	}
	var coded *api.Error
	if errors.As(err, &coded) && coded.Code == api.CodeWritersRemain && a.Do == handover.Close {
		return handover.WritersRemain{Text: coded.Message}
	}
	return handover.Failed{Do: a.Do, Site: a.Site, Text: err.Error()}
}

func (d *driver) ask(ctx context.Context, a handover.Action, r handover.Record) (handover.Event, error) {
	site := d.c.cfg.Sites[a.Site]
	if site == nil {
		return nil, fmt.Errorf("site %s is not in this agent's spec", a.Site)
	}
	doc := d.ledger.document(a.Version)
	boundMS := a.Bound.Milliseconds()
	switch a.Do {
	case handover.Settle, handover.AwaitRelease:
		answer, err := site.Settled(ctx, api.SettleRequest{Handover: r.ID, Generation: doc.generation, Version: a.Version, Ownership: doc.body, BoundMS: boundMS})
		if err != nil {
			return nil, err
		}
		if a.Do == handover.Settle {
			return handover.Settled{Site: a.Site, Facts: settleFacts(answer)}, nil
		}
		return handover.Released{Site: a.Site, Facts: settleFacts(answer)}, nil
	case handover.Close:
		answer, err := site.CloseBuckets(ctx, api.CloseRequest{Handover: r.ID, Keyspace: r.Move.Keyspace, Buckets: r.Move.Epochs,
			BoundMS: boundMS, EndBlockers: r.Bounds.EndBlockers})
		return handover.Closed{Marker: answer.Marker}, err
	case handover.AwaitMarker:
		answer, err := site.CaughtUp(ctx, api.CaughtUpRequest{Handover: r.ID, From: r.Move.From, BoundMS: boundMS})
		return handover.MarkerArrived{Marker: answer.Marker}, err
	case handover.Open, handover.Reopen:
		request := api.OpenRequest{Handover: r.ID, Generation: doc.generation, Version: a.Version, Ownership: doc.body, BoundMS: boundMS}
		step := site.Open
		if a.Do == handover.Reopen {
			step = site.Abort
		}
		answer, err := step(ctx, request)
		return handover.Reached{Site: a.Site, Version: answer.Version}, err
	}
	panic("BUG: no site does " + string(a.Do))
}

func settleFacts(a api.SettleAnswer) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d gateways in %s", a.Gateways, (time.Duration(a.WaitedUS) * time.Microsecond).Round(100*time.Microsecond))
	if len(a.Unsettled) > 0 {
		fmt.Fprintf(&b, ", not settled: %s", strings.Join(a.Unsettled, " "))
	}
	if len(a.Gone) > 0 {
		fmt.Fprintf(&b, ", gone: %s", strings.Join(a.Gone, " "))
	}
	return b.String()
}
