package lab

import (
	"context"
	"fmt"
	"net"
	"time"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// PgBouncer is the pooler that Options.Pooler may name.
const PgBouncer = "pgbouncer"

// poolSize is below the shop's own number of connections, so that its transactions do share server connections.
const poolSize = 12

func checkPooler(name string) error {
	if name == "" || name == PgBouncer {
		return nil
	}
	return fmt.Errorf("lab: unknown pooler %q; the lab knows %s", name, PgBouncer)
}

// startPoolers puts a pooler in transaction mode between each site's shop and its database. Agents connect straight to
// the server: a replication stream does not pass a pooler, and the fence's sessions rely on their settings.
func (d *Deployment) startPoolers(ctx context.Context) error {
	if d.opts.Pooler == "" {
		return nil
	}
	d.poolers = map[topo.SiteID]*pgserver.Pooler{}
	for _, site := range d.opts.Sites {
		port, err := loopback.Port()
		if err != nil {
			return err
		}
		p, err := pgserver.NewPooler(pgserver.PoolerOptions{Dir: d.Dir, Name: string(site) + "-pooler", Port: port,
			Server: d.at[site].database, Roles: []string{shopRole}, PoolSize: poolSize})
		if err != nil {
			return err
		}
		err = d.Processes.Start(Command{Name: string(site) + "/pooler", Site: site, Path: p.Path, Args: p.Args, Env: d.env(site), Dir: d.Dir, As: p.As})
		if err != nil {
			return err
		}
		if err := awaitListening(ctx, local(port)); err != nil {
			return fmt.Errorf("pooler of site %s: %w; its log ends: %s", site, err, d.Processes.Tail(string(site)+"/pooler", 3))
		}
		d.poolers[site] = p
	}
	return nil
}

// awaitListening waits, bounded, until an address takes connections.
func awaitListening(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return every(ctx, 20*time.Millisecond, func() (bool, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return false, nil
		}
		return true, conn.Close()
	})
}

// shopDSN is where a site's shop connects to.
func (d *Deployment) shopDSN(site topo.SiteID) string {
	if p := d.poolers[site]; p != nil {
		return p.DSN(shopRole, database)
	}
	return d.databases[site].DSN(shopRole, database)
}
