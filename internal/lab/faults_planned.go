package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/topo"
)

// errNothingThere: the fault needs something that was not there, and was left out.
var errNothingThere = errors.New("there is nothing that it could concern")

// fault makes the fault of a schedule's step.
func (d *Deployment) fault(p *planned) Fault {
	process := string(p.Site) + "/" + p.part()
	switch p.Do {
	case actKillAgent, actKillGateway, actKillShop, actKillStore:
		return d.KillProcess(process)
	case actStopAgent, actStopGateway:
		return d.PauseProcess(process)
	case actKillDatabase:
		return d.KillDatabase(p.Site)
	case actFillDisk:
		return d.FillDisk(p.Site)
	case actStopDatabase:
		return d.PauseDatabase(p.Site)
	case actStopMaster:
		return d.stopOne(p, func(context.Context) (int, error) { return d.postmaster(p.Site) })
	case actStopBackend:
		return d.stopOne(p, func(ctx context.Context) (int, error) { return d.shopBackend(ctx, p.Site, p.Draw) })
	case actStopApplier:
		return d.StopApplier(p.Site, p.Other)
	case actStopLeader:
		return d.PauseLeader()
	case actCut, actCutOneWay, actDelay, actLosePackets:
		return d.spoilPath(p)
	case actLagLink:
		return d.LagLink(Way{p.Site, p.Other}, p.Extra)
	case actReset:
		return Fault{Name: p.what(), Inject: func(context.Context) error { d.Network.Reset(p.Site, p.Other); return nil }, Heal: healed}
	case actLoseSite:
		return d.LoseSite(p.Site)
	case actPrepared:
		return d.Prepare(p.Site, p.Draw)
	}
	panic("BUG: no fault: " + string(p.Do))
}

func healed(context.Context) error { return nil }

// KillDatabase ends a site's database server as a crash does; healing starts it again with what it had.
func (d *Deployment) KillDatabase(site topo.SiteID) Fault {
	return Fault{
		Name:   fmt.Sprintf("SIGKILL of %s/db", site),
		Inject: func(context.Context) error { return d.databases[site].Kill() },
		Heal:   func(ctx context.Context) error { return d.databases[site].Restart(ctx) },
	}
}

// PauseDatabase stops a site's database server, all of its processes; healing lets them go on.
func (d *Deployment) PauseDatabase(site topo.SiteID) Fault {
	return Fault{
		Name:   fmt.Sprintf("SIGSTOP of %s/db", site),
		Inject: func(context.Context) error { return d.databases[site].Pause() },
		Heal:   func(context.Context) error { return d.databases[site].Resume() },
	}
}

// stopOne stops one process of a database server; healing lets it go on.
func (d *Deployment) stopOne(p *planned, find func(context.Context) (pid int, err error)) Fault {
	pid := 0
	return Fault{
		Name: p.what(),
		Inject: func(ctx context.Context) (err error) {
			found, err := find(ctx)
			if err == nil {
				err = signalBackend(found, syscall.SIGSTOP)
			}
			if err == nil {
				pid = found
			}
			return err
		},
		Heal: func(context.Context) error {
			if pid == 0 {
				return nil
			}
			if err := signalBackend(pid, syscall.SIGCONT); !errors.Is(err, syscall.ESRCH) { // the server may have ended it
				return err
			}
			return nil
		},
	}
}

// postmaster reads which process a database server began with.
func (d *Deployment) postmaster(site topo.SiteID) (pid int, err error) {
	data, err := os.ReadFile(filepath.Join(d.databases[site].Dir, "postmaster.pid"))
	if err == nil {
		_, err = fmt.Sscan(string(data), &pid)
	}
	if err != nil {
		return 0, fmt.Errorf("lab: postmaster of site %s: %w", site, err)
	}
	return pid, nil
}

// shopBackend picks a backend that serves the shop.
func (d *Deployment) shopBackend(ctx context.Context, site topo.SiteID, draw uint64) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	var pids []int
	err := d.onDatabase(ctx, site, func(db *pgx.Conn) error {
		rows, err := db.Query(ctx, `SELECT pid FROM pg_stat_activity WHERE usename = $1 AND backend_type = 'client backend' ORDER BY state = 'active' DESC, pid`, shopRole)
		if err != nil {
			return err
		}
		pids, err = pgx.CollectRows(rows, pgx.RowTo[int])
		return err
	})
	if err != nil || len(pids) == 0 {
		return 0, errors.Join(errNothingThere, err)
	}
	return pids[draw%uint64(len(pids))], nil
}

// PauseLeader stops whichever store member leads; healing lets it go on, still sure that it does.
func (d *Deployment) PauseLeader() Fault {
	var leader string
	return Fault{
		Name: "SIGSTOP of the store's leader",
		Inject: func(ctx context.Context) error {
			site, err := d.storeLeader(ctx)
			if err != nil {
				return err
			}
			leader = string(site) + "/store"
			return d.Processes.Pause(leader)
		},
		Heal: func(context.Context) error {
			if leader == "" {
				return nil
			}
			return d.Processes.Resume(leader)
		},
	}
}

// spoilPath cuts, delays or loses packets; healing undoes all of that between the two sites.
func (d *Deployment) spoilPath(p *planned) Fault {
	ways := []Way{{p.Site, p.Other}}
	if p.Do != actCutOneWay {
		ways = append(ways, ways[0].back())
	}
	kinds := p.Kinds
	if kinds == nil {
		kinds = []Kind{AnyKind}
	}
	return Fault{
		Name: p.what(),
		Inject: func(context.Context) error {
			for _, w := range ways {
				for _, k := range kinds {
					switch p.Do {
					case actDelay:
						d.Network.Delay(w, k, p.Extra)
					case actLosePackets:
						d.Network.Lose(w, k, float64(p.Count)/100)
					default:
						d.Network.CutOneWay(w, k)
					}
				}
			}
			return nil
		},
		Heal: func(context.Context) error { d.Network.Heal(p.Site, p.Other); return nil },
	}
}

// Prepare leaves a prepared transaction of the application's at a site, with a lock on a customer of it; healing commits
// it, or, by the draw, rolls it back. That it is gone by then is not wrong: W ends what outlives a lease.
func (d *Deployment) Prepare(site topo.SiteID, draw uint64) Fault {
	gid := fmt.Sprintf("%s%s-%x", preparedName, site, draw)
	var once sync.Once
	return Fault{
		Name: "a prepared transaction at " + string(site),
		Inject: func(ctx context.Context) error {
			owned, err := d.ownedBy(ctx, users, site)
			if err != nil {
				return err
			}
			var customers []string
			err = d.onDatabase(ctx, site, func(db *pgx.Conn) (err error) {
				customers, err = customersIn(ctx, db, owned, d.opts.Buckets, 16)
				return err
			})
			if err != nil || len(customers) == 0 {
				return errors.Join(errNothingThere, err)
			}
			db, err := pgx.Connect(ctx, d.databases[site].CallerDSN(shopRole, database))
			if err != nil {
				return err
			}
			defer db.Close(context.WithoutCancel(ctx))
			_, err = db.Exec(ctx, fmt.Sprintf("BEGIN; UPDATE customers SET name = name WHERE id = '%s'; PREPARE TRANSACTION '%s'", customers[draw%uint64(len(customers))], gid))
			return err
		},
		Heal: func(ctx context.Context) (err error) {
			once.Do(func() {
				end := []string{"COMMIT", "ROLLBACK"}[draw>>8%2]
				err = d.onDatabase(ctx, site, func(db *pgx.Conn) error {
					_, err := db.Exec(ctx, end+" PREPARED '"+gid+"'")
					return err
				})
			})
			var refused *pgconn.PgError
			if errors.As(err, &refused) && strings.HasPrefix(refused.Code, "42704") {
				return nil
			}
			return err
		},
	}
}

// ownedBy lists a site's buckets of a keyspace, by the word of whichever agent answers.
func (d *Deployment) ownedBy(ctx context.Context, ks topo.KeyspaceID, site topo.SiteID) (topo.Spans, error) {
	owners, err := d.owners(ctx, ks)
	return owners[site], err
}

// owners says who owns which buckets of a keyspace.
func (d *Deployment) owners(ctx context.Context, ks topo.KeyspaceID) (map[topo.SiteID]topo.Spans, error) {
	var failures error
	for _, at := range d.opts.Sites {
		bounded, cancel := context.WithTimeout(ctx, askBound)
		st, err := d.status(bounded, at)
		cancel()
		if err != nil || st.Ownership == nil {
			failures = errors.Join(failures, err)
			continue
		}
		out := map[topo.SiteID]topo.Spans{}
		for _, k := range st.Ownership.Keyspaces {
			for _, o := range k.Owners {
				if k.Keyspace != ks {
					continue
				}
				if out[o.Site], err = topo.ParseSpans(o.Buckets, k.Buckets); err != nil {
					return nil, fmt.Errorf("lab: buckets of %s: %w", o.Site, err)
				}
			}
		}
		return out, nil
	}
	return nil, errors.Join(errors.New("lab: no agent says who owns what"), failures)
}
