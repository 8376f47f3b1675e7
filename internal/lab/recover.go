package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/topo"
)

// recover undoes every fault, known or not: paths are healed, paused processes go on, dead ones are started again,
// prepared transactions of the lab's are rolled back. It returns when the deployment serves, no handover is under way and
// no lost site is still to be settled; else, after the bound, what is missing is its error. The processes named are left
// alone.
func (d *Deployment) recover(ctx context.Context, bound time.Duration, leave ...string) error {
	sites := d.opts.everywhere()
	for i, a := range sites {
		d.Network.Light(a)
		for _, b := range sites[i+1:] {
			d.Network.Heal(a, b)
		}
	}
	for _, site := range d.opts.Sites {
		if s := d.databases[site]; s.Resume() != nil { // it does not run; else all of its processes go on
			if err := s.Restart(ctx); err != nil {
				return err
			}
		}
		if err := d.onDatabase(ctx, site, func(db *pgx.Conn) error { return rollBackPrepared(ctx, db) }); err != nil {
			return err
		}
	}
	for _, name := range d.Processes.Names() {
		if slices.Contains(leave, name) {
			continue
		}
		if d.Processes.Running(name) {
			if err := d.Processes.Resume(name); err != nil {
				return err
			}
		} else if err := d.Processes.Restart(name); err != nil {
			return err
		}
	}
	if err := d.awaitHealthy(ctx); err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	var last string
	err := every(bounded, 200*time.Millisecond, func() (bool, error) {
		last = d.unsettled(bounded)
		return last == "", nil
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("not settled after %v: %s", bound, last)
	}
	return ctx.Err()
}

// unsettled names what is still to be done after a fault: leases, links, handovers, tails.
func (d *Deployment) unsettled(ctx context.Context) string {
	st, err := d.status(ctx, d.opts.Sites[0])
	if err != nil {
		return err.Error()
	}
	for _, s := range st.Sites {
		if !slices.Contains(d.opts.Sites, s.Site) {
			continue // it was given up, and the spec still names it
		}
		if s.Error != "" || !s.Lease.Live {
			return fmt.Sprintf("site %s: lease %v, %s", s.Site, s.Lease.Live, s.Error)
		}
		for _, l := range s.Links {
			if l.Target == s.Site && (!l.Connected || l.LagMS > 1000) {
				return fmt.Sprintf("link %s → %s: %s, %d ms behind %s", l.Origin, l.Target, l.State, l.LagMS, l.Error)
			}
		}
	}
	for _, h := range st.Handovers {
		switch {
		case !h.Over():
			return fmt.Sprintf("handover %s is in %s", h.ID, h.Phase)
		case h.Failover != nil && h.Outcome == "done" && h.Failover.Return == nil && slices.Contains(d.opts.Sites, h.From):
			return fmt.Sprintf("the tail of %s is not settled (failover %s)", h.From, h.ID)
		}
	}
	return ""
}

// mostHandovers are more than an episode makes.
const mostHandovers = 200

// handovers asks a site's agent for the newest records.
func (d *Deployment) handovers(ctx context.Context, at topo.SiteID) ([]api.Handover, error) {
	id, err := pki.Load(d.Spec.PKI, "operator-"+operatorName)
	if err != nil {
		return nil, err
	}
	c := api.NewSiteClient([]string{d.at[at].api}, id.ClientTLS(at), nil)
	defer c.Close()
	out, err := c.Handovers(ctx, mostHandovers)
	if err != nil {
		return nil, fmt.Errorf("lab: handovers, by site %s: %w", at, err)
	}
	return out, nil
}

// preparedName begins the names of the lab's prepared transactions.
const preparedName = "lab-"

func rollBackPrepared(ctx context.Context, db *pgx.Conn) error {
	rows, err := db.Query(ctx, `SELECT gid FROM pg_prepared_xacts WHERE starts_with(gid, $1) AND database = current_database()`, preparedName)
	if err != nil {
		return err
	}
	gids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, gid := range gids {
		_, e := db.Exec(ctx, "ROLLBACK PREPARED '"+gid+"'")
		err = errors.Join(err, e)
	}
	return err
}

// storeLeader asks the members who leads them.
func (d *Deployment) storeLeader(ctx context.Context) (topo.SiteID, error) {
	id, err := pki.Load(d.Spec.PKI, "site-"+string(d.opts.Sites[0]))
	if err != nil {
		return "", err
	}
	var failures error
	for _, site := range d.opts.everywhere() {
		endpoint := "https://" + d.at[site].storeClient
		leads, err := func() (bool, error) {
			c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, TLS: id.ClientTLS(site), DialTimeout: 3 * time.Second})
			if err != nil {
				return false, err
			}
			defer c.Close()
			ask, cancel := context.WithTimeout(ctx, 3*time.Second)
			defer cancel()
			st, err := c.Status(ask, endpoint)
			return err == nil && st.Leader == st.Header.MemberId, err
		}()
		if leads {
			return site, nil
		}
		failures = errors.Join(failures, err)
	}
	return "", errors.Join(errors.New("lab: no member of the store leads"), failures)
}
