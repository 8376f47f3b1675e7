package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// Fault is something that goes wrong on purpose. It is injected once and healed once; healing one that was never
// injected does nothing.
type Fault struct {
	Name   string // what is said of it
	Inject func(context.Context) error
	Heal   func(context.Context) error
}

// CutKinds cuts what travels between two sites to and from some kinds of endpoints; the rest passes.
func (d *Deployment) CutKinds(a, b topo.SiteID, kinds ...Kind) Fault {
	name := make([]string, len(kinds))
	for i, k := range kinds {
		name[i] = string(k)
	}
	return Fault{
		Name: fmt.Sprintf("the paths %s between %s and %s are cut", strings.Join(name, ", "), a, b),
		Inject: func(context.Context) error {
			for _, k := range kinds {
				d.Network.CutKind(a, b, k)
			}
			return nil
		},
		Heal: func(context.Context) error {
			for _, k := range kinds {
				d.Network.HealKind(a, b, k)
			}
			return nil
		},
	}
}

// LagLink has one site's changes come late to another: what travels replication links in that direction, and nothing else.
// Agents, gateways and the store are as they were, so nobody has a reason to doubt the origin: the copy alone is old. A link that
// breaks meanwhile does not stand again where connecting, which goes to and fro, takes longer than the agents wait. Healing
// lets what is sent from then on pass as ever, behind what is under way.
func (d *Deployment) LagLink(w Way, by time.Duration) Fault {
	return Fault{
		Name:   fmt.Sprintf("the changes of %s come %v later to %s", w.From, by, w.To),
		Inject: func(context.Context) error { d.Network.Delay(w, Link, by); return nil },
		Heal:   func(context.Context) error { d.Network.Delay(w, Link, 0); return nil },
	}
}

// LoseSite is the loss of everything at a site: each of its processes and its database are killed at one moment; healing starts them
// again, the database first. The data are as the crash left them; what was still under way behind a cut died with the
// site. In network namespaces nothing leaves the site meanwhile, not even the news that its connections are gone.
func (d *Deployment) LoseSite(site topo.SiteID) Fault {
	return Fault{
		Name:   fmt.Sprintf("SIGKILL of everything at %s", site),
		Inject: func(context.Context) error { return d.killSite(site) },
		Heal: func(ctx context.Context) error {
			if d.runs(site) {
				return nil
			}
			return d.startSite(ctx, site)
		},
	}
}

// KillProcess kills one process; healing starts it again.
func (d *Deployment) KillProcess(name string) Fault {
	return Fault{
		Name:   "SIGKILL of " + name,
		Inject: func(context.Context) error { return d.Processes.Kill(name) },
		Heal: func(context.Context) error {
			if d.Processes.Running(name) {
				return nil
			}
			return d.Processes.Restart(name)
		},
	}
}

// PauseProcess stops one process where it is; healing lets it go on.
func (d *Deployment) PauseProcess(name string) Fault {
	return Fault{
		Name:   "SIGSTOP of " + name,
		Inject: func(context.Context) error { return d.Processes.Pause(name) },
		Heal:   func(context.Context) error { return d.Processes.Resume(name) },
	}
}

// processesOf lists a site's processes in the order of their start.
func (d *Deployment) processesOf(site topo.SiteID) []string {
	return slices.DeleteFunc(d.Processes.Names(), func(name string) bool { return !strings.HasPrefix(name, string(site)+"/") })
}

// runs tells whether any process of a site runs.
func (d *Deployment) runs(site topo.SiteID) bool {
	return slices.ContainsFunc(d.processesOf(site), d.Processes.Running)
}

// killSite signals everything before it waits for anything, so that nothing at the site sees the rest of it dead.
func (d *Deployment) killSite(site topo.SiteID) error {
	if d.opts.Netns { // else its kernel, which lives on, would tell everybody; a proxy would only hold that back
		d.Network.Darken(site)
	}
	err := d.Processes.KillAll(d.processesOf(site))
	if s := d.databases[site]; s != nil {
		err = errors.Join(err, s.Kill())
	}
	return err
}

func (d *Deployment) startSite(ctx context.Context, site topo.SiteID) error {
	d.Network.Light(site)
	for other := range d.at {
		if other != site && !d.runs(site) {
			d.Network.Reset(site, other)
		}
	}
	if s := d.databases[site]; s != nil {
		if err := s.Restart(ctx); err != nil {
			return fmt.Errorf("lab: database of site %s: %w", site, err)
		}
	}
	for _, name := range d.processesOf(site) {
		if d.Processes.Running(name) {
			continue
		}
		if err := d.Processes.Restart(name); err != nil {
			return err
		}
	}
	return nil
}

// Do applies an action to a process, a database or all of a site by name: kill, pause, resume, stop, restart. All of a
// site can only be killed and restarted.
func (d *Deployment) Do(ctx context.Context, action, name string) error {
	if site := topo.SiteID(name); d.at[site] != nil {
		switch action {
		case "kill":
			return d.killSite(site)
		case "restart":
			return d.startSite(ctx, site)
		}
		return fmt.Errorf("lab: all of a site can be killed and restarted; to %s, name a process: %s", action, strings.Join(d.processesOf(site), " "))
	}
	site, part, _ := strings.Cut(name, "/")
	if s := d.databases[topo.SiteID(site)]; s != nil && part == "db" {
		return doDatabase(ctx, s, action)
	}
	switch action {
	case "kill":
		return d.Processes.Kill(name)
	case "pause":
		return d.Processes.Pause(name)
	case "resume":
		return d.Processes.Resume(name)
	case "stop":
		return d.Processes.Stop(name)
	case "restart":
		return d.Processes.Restart(name)
	}
	return fmt.Errorf("lab: unknown action %q", action)
}

func doDatabase(ctx context.Context, s *pgserver.Server, action string) error {
	switch action {
	case "kill":
		return s.Kill()
	case "pause":
		return s.Pause()
	case "resume":
		return s.Resume()
	case "stop":
		return s.Stop()
	case "restart":
		return s.Restart(ctx)
	}
	return fmt.Errorf("lab: unknown action %q", action)
}
