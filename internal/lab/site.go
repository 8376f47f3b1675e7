package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// healthyBound is how long a new deployment may take to serve, the first copy included.
const healthyBound = 60 * time.Second

func (d *Deployment) startStores(context.Context) error {
	for _, site := range slices.Sorted(maps.Keys(d.at)) {
		env, err := d.ground.peerEnv(site, d.at)
		if err != nil {
			return err
		}
		if err := d.startRole(site, "store", append(d.env(site), env...)); err != nil {
			return err
		}
	}
	return nil
}

func (d *Deployment) startAgents(context.Context) error {
	for _, site := range d.opts.Sites {
		if err := d.startRole(site, "agent", d.agentEnv(site)); err != nil {
			return err
		}
	}
	return nil
}

func (d *Deployment) startRole(site topo.SiteID, role string, env []string, more ...string) error {
	name := string(site) + "/" + role
	if role == "gateway" {
		name = string(site) + "/" + more[1]
	}
	return d.Processes.Start(Command{Name: name, Site: site, Path: d.opts.Atoll, Env: env, Dir: d.Dir,
		Args: append([]string{role, "-f", d.SpecFile, "--site", string(site), "--log-format", "json"}, more...)})
}

func (d *Deployment) startFronts(context.Context) error {
	for _, site := range d.opts.Sites {
		a := d.at[site]
		names := slices.Sorted(maps.Keys(a.gateways))
		for _, name := range names {
			if err := d.startRole(site, "gateway", d.env(site), "--name", name); err != nil {
				return err
			}
		}
		err := d.Processes.Start(Command{Name: string(site) + "/app", Site: site, Path: d.opts.Tickets, Env: d.env(site), Dir: d.Dir,
			Args: []string{"serve", "--dsn-env", "SHOP_DSN", "--listen", a.app, "--gateway", "http://" + a.gateways[names[0]].listen,
				"--site", string(site), "--slow-endpoint"}})
		if err != nil {
			return err
		}
	}
	return nil
}

// awaitHealthy waits until `atoll status` says that all is well and every site serves the shop with the whole data;
// the last is looked at in the databases and from outside.
func (d *Deployment) awaitHealthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthyBound)
	defer cancel()
	var last error
	err := every(ctx, 200*time.Millisecond, func() (bool, error) {
		select {
		case name := <-d.deaths:
			return false, fmt.Errorf("%s ended; its log ends:\n%s", name, d.Processes.Tail(name, 8))
		default:
		}
		last = d.healthy(ctx)
		return last == nil, nil
	})
	if err != nil && last != nil {
		err = fmt.Errorf("%w; last: %w", err, last)
	}
	return err
}

// every calls f at once and then at intervals until it is done or fails, or ctx ends.
func every(ctx context.Context, interval time.Duration, f func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if done, err := f(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (d *Deployment) healthy(ctx context.Context) error {
	out, err := d.Atoll(ctx, "status", "--json")
	if err != nil {
		return err
	}
	if !json.Valid(out) {
		return fmt.Errorf("atoll status --json printed no JSON: %.200s", out)
	}
	for _, site := range d.opts.Sites {
		err := d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			var customers int
			err := db.QueryRow(ctx, "SELECT count(*) FROM customers").Scan(&customers)
			if err == nil && customers != d.opts.Shape.Customers {
				err = fmt.Errorf("%d of %d customers are there", customers, d.opts.Shape.Customers)
			}
			return err
		})
		if err != nil {
			return err
		}
		for name, g := range d.at[site].gateways {
			if err := probe(ctx, g.listen); err != nil {
				return fmt.Errorf("gateway %s/%s: %w", site, name, err)
			}
		}
	}
	return d.linked(ctx)
}

// linked makes sure that changes travel both ways, by the databases' own progress rows.
func (d *Deployment) linked(ctx context.Context) error {
	for _, site := range d.opts.Sites {
		err := d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			rows, err := db.Query(ctx, "SELECT origin FROM atoll.progress")
			if err != nil {
				return err
			}
			origins, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err == nil && len(origins) < len(d.opts.Sites)-1 {
				err = errors.New("changes of " + strings.Join(origins, ",") + " arrive, of others not yet")
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
