package agent

import (
	"context"
	"fmt"
	"net"
	"sync"

	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/replicate"
	"github.com/atollhq/atoll/topo"
)

// door is the address for links. While this agent is not active, whoever comes is told so and sent away; the active
// agent has the listener to itself. It is for one goroutine at a time.
type door struct {
	agent *agent
	ln    net.Listener // not served; nil while somebody serves it, who closes it
	stop  context.CancelFunc
	wg    sync.WaitGroup
}

// refuse begins to send callers away.
func (d *door) refuse(ctx context.Context) {
	a := d.agent
	ctx, d.stop = context.WithCancel(ctx)
	serve := &replicate.Serve{Site: a.site, Deployment: a.cfg.Spec.Deployment, Identity: a.cfg.Identity,
		Open: func(context.Context, topo.SiteID) (replicate.Source, error) {
			why := a.standby()
			if why == nil {
				why = fmt.Errorf("this agent becomes active; try again")
			}
			return nil, link.Refusef(link.Closing, "agent %s: %v", a.name(), why)
		}}
	ln, err := d.take(ctx)
	if err != nil { // callers find nobody, which is a refusal too
		a.log.Debug("nobody answers on the link address while this agent is not active", "error", err)
		return
	}
	d.wg.Go(func() { _ = serve.Run(ctx, ln) }) // ends with ctx; it closes ln
}

// open ends the refusing and returns the listener. Its taker closes it.
func (d *door) open(ctx context.Context) (net.Listener, error) {
	d.close()
	return d.take(ctx)
}

func (d *door) take(ctx context.Context) (net.Listener, error) {
	if ln := d.ln; ln != nil {
		d.ln = nil
		return ln, nil
	}
	return listen(ctx, "link", d.agent.addr.Link)
}

// close ends the refusing.
func (d *door) close() {
	d.stop()
	d.wg.Wait()
}
