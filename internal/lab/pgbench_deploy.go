package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/topo"
)

// bank is the keyspace of pgbench's tables: they have one home, for each of its transactions touches all of them.
const bank topo.KeyspaceID = "bank"

// benchTables are pgbench's. Its history has no key, so whole rows identify.
var benchTables = map[string]*spec.Table{
	"public.pgbench_accounts": {Kind: topo.Home, Keyspace: bank},
	"public.pgbench_tellers":  {Kind: topo.Home, Keyspace: bank},
	"public.pgbench_branches": {Kind: topo.Home, Keyspace: bank},
	"public.pgbench_history":  {Kind: topo.Home, Keyspace: bank, Identity: "full"},
}

// asBank turns the shop's specification into the bank's: an application that speaks SQL and nothing else. Gateways are
// declared, since every site has one, and none is started.
func asBank(s *spec.Spec) {
	s.Keyspaces = map[topo.KeyspaceID]*spec.Keyspace{bank: {Buckets: 1}}
	s.Tables, s.Routes = benchTables, nil
	for _, site := range s.Sites {
		site.Upstreams = nil
	}
}

func findPgbench() (string, error) {
	if b, err := pgserver.Find(); err == nil {
		if _, err := os.Stat(b.Path("pgbench")); err == nil {
			return b.Path("pgbench"), nil
		}
	}
	path, err := exec.LookPath("pgbench")
	if err != nil {
		return "", errors.New("lab: no pgbench found; install it with: apt-get install -y postgresql")
	}
	return path, nil
}

// build is the adoption of a database that is at work: the bank's tables are filled and its clients run at the seed
// before anything of Atoll is there.
func (b *bench) build(ctx context.Context) (err error) {
	b.d, err = build(ctx, b.opts.Options, func(what string) { b.screen.say("  %s", what) }, func(d *Deployment) []buildStep {
		b.d = d
		return []buildStep{
			{"networks and addresses", d.layOut},
			{"certificates", d.certify},
			{"databases", d.startDatabases},
			{"poolers", d.startPoolers},
			{fmt.Sprintf("pgbench -i -s %d", b.opts.Scale), b.fill},
			{"the bank opens; nothing of Atoll is there yet", b.open},
			{"atoll apply --adopt, under its clients", b.adopt},
			{"stores", d.startStores},
			{"agents, and the first copy of the data", b.startReplication},
		}
	})
	return err
}

// fill makes the tables: at the seed with their rows, elsewhere without.
func (b *bench) fill(ctx context.Context) error {
	for i, site := range b.opts.Sites {
		err := b.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			_, err := db.Exec(ctx, "GRANT CREATE ON SCHEMA public TO "+shopRole)
			return err
		})
		if err != nil {
			return err
		}
		steps := "dtp" // drop, tables, primary keys
		if i == 0 {
			steps = "dtgp"
		}
		_, err = b.d.Processes.Run(ctx, Command{Name: "pgbench -i", Path: b.pgbench, Dir: b.d.Dir, Env: b.d.env(""),
			Args: append([]string{"-i", "-I", steps, "-q", "-s", strconv.Itoa(b.opts.Scale)}, b.connect(site)...)})
		if err != nil {
			return err
		}
	}
	return nil
}

// connect are pgbench's arguments for a site's database, as the application reaches it.
func (b *bench) connect(site topo.SiteID) []string {
	port := b.d.at[site].database
	if p := b.d.poolers[site]; p != nil {
		port = p.Port
	}
	return []string{"-h", "127.0.0.1", "-p", strconv.Itoa(port), "-U", shopRole, database}
}

func (b *bench) open(ctx context.Context) error {
	b.logs = filepath.Join(b.d.Dir, "pgbench")
	if err := os.Mkdir(b.logs, 0o755); err != nil {
		return err
	}
	b.clients.start(b)
	return rest(ctx, 2*time.Second)
}

func (b *bench) adopt(ctx context.Context) error {
	b.adopting[0] = time.Now()
	for i, site := range b.opts.Sites {
		args := []string{"apply", "-f", b.d.SpecFile, "--site", string(site)}
		if i == 0 {
			args = append(args, "--adopt")
		}
		if _, err := b.d.Processes.Run(ctx, Command{Name: "atoll apply", Path: b.opts.Atoll, Env: b.d.env(site), Args: args}); err != nil {
			return err
		}
	}
	return nil
}

// startReplication starts the agents and waits until changes travel both ways and the copy is done.
func (b *bench) startReplication(ctx context.Context) error {
	if err := b.d.startAgents(ctx); err != nil {
		return err
	}
	if err := b.awaitLevel(ctx, 2*healthyBound); err != nil {
		return err
	}
	b.adopting[1] = time.Now()
	b.clients.follow()
	return nil
}

// awaitLevel waits, bounded, until every site has its lease and has applied what every other had written when all
// links stood. By the databases' word: a site that has just taken the first copy has to get that copy out of its own
// stream again before anything of its own comes through, and its links look well meanwhile.
func (b *bench) awaitLevel(ctx context.Context, bound time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, bound)
	defer cancel()
	var last error
	var written map[topo.SiteID]int64
	err := every(ctx, 300*time.Millisecond, func() (bool, error) {
		select {
		case name := <-b.d.deaths:
			return false, fmt.Errorf("%s ended; its log ends:\n%s", name, b.d.Processes.Tail(name, 8))
		default:
		}
		if last = b.level(ctx); last != nil {
			return false, nil
		}
		if written == nil {
			written, last = b.written(ctx)
			return false, last
		}
		last = b.appliedUpTo(ctx, written)
		return last == nil, nil
	})
	if err != nil && last != nil {
		err = fmt.Errorf("%w; last: %w", err, last)
	}
	return err
}

// written is how far each site's change stream has come.
func (b *bench) written(ctx context.Context) (map[topo.SiteID]int64, error) {
	out := map[topo.SiteID]int64{}
	for _, site := range b.opts.Sites {
		err := b.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			var at int64
			err := db.QueryRow(ctx, "SELECT (pg_current_wal_lsn() - '0/0')::bigint").Scan(&at)
			out[site] = at
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (b *bench) appliedUpTo(ctx context.Context, written map[topo.SiteID]int64) error {
	for _, site := range b.opts.Sites {
		err := b.d.onDatabase(ctx, site, func(db *pgx.Conn) error {
			var origin topo.SiteID
			var position int64
			return eachRow(ctx, db, "SELECT origin, position FROM atoll.progress", []any{&origin, &position}, func() error {
				if behind := written[origin] - position; behind > 0 {
					return fmt.Errorf("%d bytes of the stream of %s are still to be applied", behind, origin)
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) level(ctx context.Context) error {
	st, err := b.status(ctx)
	if err != nil {
		return err
	}
	links := 0
	for _, s := range st.Sites {
		if s.Error != "" || !s.Lease.Live || !s.Database.Connected {
			return fmt.Errorf("site %s does not serve: %s %s", s.Site, s.Error, s.Database.Error)
		}
		for _, l := range s.Links {
			if l.Target != s.Site {
				continue
			}
			if !l.Connected || l.LagMS < 0 || l.LagMS > 1000 {
				return fmt.Errorf("link %s → %s: %s, %d ms behind %s", l.Origin, l.Target, l.State, l.LagMS, l.Error)
			}
			links++
		}
	}
	if want := len(b.opts.Sites) * (len(b.opts.Sites) - 1); links < want {
		return fmt.Errorf("%d of %d links report", links, want)
	}
	return nil
}

// status is what `atoll status --json` prints.
func (b *bench) status(ctx context.Context) (api.Status, error) {
	var st api.Status
	out, err := b.d.Atoll(ctx, "status", "--json")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal(out, &st); err != nil {
		return st, fmt.Errorf("lab: atoll status --json: %w", err)
	}
	return st, nil
}

// owner is the site that owns the bank's bucket in a status; "" while it moves or where nobody says so.
func owner(st api.Status) topo.SiteID {
	if st.Ownership == nil {
		return ""
	}
	for _, k := range st.Ownership.Keyspaces {
		if k.Keyspace == bank && len(k.Moving) == 0 && len(k.Owners) == 1 {
			return k.Owners[0].Site
		}
	}
	return ""
}
