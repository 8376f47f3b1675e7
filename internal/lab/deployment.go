package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/supervise"
	"github.com/atollhq/atoll/topo"
)

const (
	agentRole = "atoll"
	shopRole  = "tickets"
	database  = "tickets"
)

// Options say what to build.
type Options struct {
	Atoll   string // path of the binary
	Tickets string // path of the binary

	Sites     []topo.SiteID // full sites, the seed first; default a, b
	Witness   topo.SiteID   // default w; none with NoWitness
	NoWitness bool          // the full sites vote alone
	Gateways  int           // per full site, default 2
	Buckets   int           // of the keyspace users, default 256
	RTT       time.Duration // default 30ms
	Jitter    time.Duration
	Pooler    string // in front of the shops' databases: "" for none, or PgBouncer
	Netns     bool   // sites in network namespaces, packets between them, instead of proxies; takes root
	Shape     Shape
	Lease     spec.LeasePolicy // default the fast profile, with its Store
	Store     spec.StorePolicy

	reshape     func(*spec.Spec)           // for another application than the shop
	databaseEnv func(topo.SiteID) []string // of a site's database server
	// Agents reach their databases as they would without a lab. A path can be broken, but whatever passes it wakes the lab
	// twice: a measurement that breaks none does without.
	directDatabase bool
}

// Shape is how much there is in the shop.
type Shape struct{ Customers, Seats, Events int }

func (o *Options) setDefaults() {
	if len(o.Sites) == 0 {
		o.Sites = []topo.SiteID{"a", "b"}
	}
	if o.Witness == "" {
		o.Witness = "w"
	}
	if o.NoWitness {
		o.Witness = ""
	}
	if o.Gateways == 0 {
		o.Gateways = 2
	}
	if o.Buckets == 0 {
		o.Buckets = 256
	}
	if o.RTT == 0 {
		o.RTT = 30 * time.Millisecond
	}
	if o.Shape == (Shape{}) {
		o.Shape = Shape{Customers: 1000, Seats: 20000, Events: 4}
	}
	if o.Lease == (spec.LeasePolicy{}) {
		o.Lease, o.Store = fastLease, fastStore
	}
}

func (o *Options) check() error {
	if o.Netns && o.Pooler != "" {
		return errors.New("lab: --pooler and --netns do not go together yet: leave one of them out")
	}
	return checkPooler(o.Pooler)
}

// enter moves the lab to where it has to stand to build what is asked for; it may execute this process again.
func (o *Options) enter() error {
	if !o.Netns {
		return nil
	}
	return isolate()
}

// SiteNames are the first n full sites: a, b, c, …
func SiteNames(n int) ([]topo.SiteID, error) {
	if n < 2 || n > maxSites {
		return nil, fmt.Errorf("lab: %d full sites; want 2 to %d", n, maxSites)
	}
	var out []topo.SiteID
	for i := range n {
		out = append(out, topo.SiteID(rune('a'+i)))
	}
	return out, nil
}

// maxSites is what one machine carries.
const maxSites = 5

// everywhere lists all sites, the witness last.
func (o *Options) everywhere() []topo.SiteID {
	out := slices.Clone(o.Sites)
	if o.Witness != "" {
		out = append(out, o.Witness)
	}
	return out
}

// places says in words where everything runs.
func (o *Options) places() string {
	text := "the sites " + names(o.Sites, "and")
	if o.Witness != "" {
		text += fmt.Sprintf(" with the witness %s", o.Witness)
	}
	return text
}

// names lists sites in a sentence.
func names(sites []topo.SiteID, and string) string {
	var b strings.Builder
	for i, s := range sites {
		switch {
		case i > 0 && i == len(sites)-1:
			b.WriteString(" " + and + " ")
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(string(s))
	}
	return b.String()
}

// Deployment is a ticket shop at several sites of real processes on this machine, in one folder that is gone when it
// is closed, or when the lab dies.
type Deployment struct {
	Dir       string
	SpecFile  string
	Spec      *spec.Spec
	Network   *Network
	Processes *Processes

	opts      Options
	ground    ground
	at        map[topo.SiteID]*addresses
	watchdog  *watchdog
	databases map[topo.SiteID]*pgserver.Server
	poolers   map[topo.SiteID]*pgserver.Pooler // nil without
	deaths    chan string                      // names of processes that ended by themselves
	closing   sync.Once

	watch struct { // what lags looks with
		sync.Mutex
		conns map[topo.SiteID]*pgx.Conn
	}
}

// buildStep is one step of building a deployment.
type buildStep struct {
	what string
	do   func(context.Context) error
}

// Build builds and starts a deployment and waits until it serves; say hears what it does. On an error nothing is left.
func Build(ctx context.Context, o Options, say func(string)) (*Deployment, error) {
	return build(ctx, o, say, func(d *Deployment) []buildStep {
		return []buildStep{
			{"networks and addresses", d.layOut},
			{"certificates", d.certify},
			{"databases", d.startDatabases},
			{"poolers", d.startPoolers},
			{"the shop's tables", d.initShop},
			{"atoll apply", d.apply},
			{"stores", d.startStores},
			{"agents", d.startAgents},
			{"gateways and shops", d.startFronts},
			{"first copy of the data", d.awaitHealthy},
		}
	})
}

func build(ctx context.Context, o Options, say func(string), steps func(*Deployment) []buildStep) (_ *Deployment, err error) {
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	for _, bin := range []*string{&o.Atoll, &o.Tickets} {
		if *bin, err = filepath.Abs(*bin); err != nil {
			return nil, fmt.Errorf("lab: %w", err)
		}
		if _, err := os.Stat(*bin); err != nil {
			return nil, fmt.Errorf("lab: %w; `make build` builds the binaries", err)
		}
	}
	d := &Deployment{opts: o, at: map[topo.SiteID]*addresses{}, databases: map[topo.SiteID]*pgserver.Server{}, deaths: make(chan string, 64)}
	if d.Dir, d.watchdog, err = newRunFolder(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Close())
		}
	}()
	for _, step := range steps(d) {
		say(step.what)
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return d, nil
}

// Close stops everything and removes the folder: first the shops, gateways, agents and stores, then the databases
// under them, then the paths. It may be called again.
func (d *Deployment) Close() (err error) {
	d.closing.Do(func() {
		if d.Processes != nil {
			err = errors.Join(err, d.Processes.Close())
		}
		for _, db := range d.watch.conns {
			_ = db.Close(context.Background()) // its server is about to end
		}
		for _, site := range d.opts.Sites {
			if s := d.databases[site]; s != nil {
				_ = s.Resume() // a paused server would not see that it shall end
				err = errors.Join(err, s.Immediate())
			}
		}
		if d.Network != nil {
			d.Network.Close()
		}
		unmountDisks(d.Dir)
		err = errors.Join(err, os.RemoveAll(d.Dir), d.watchdog.done())
	})
	return err
}

func (d *Deployment) layOut(context.Context) error {
	d.Network = NewNetwork(d.opts.RTT, d.opts.Jitter)
	logs := filepath.Join(d.Dir, "logs")
	if err := os.Mkdir(logs, 0o755); err != nil {
		return err
	}
	d.Processes = NewProcesses(logs, func(name string) {
		select {
		case d.deaths <- name:
		default: // so many deaths that nobody will miss one
		}
	})
	sites := d.opts.everywhere()
	d.ground = &proxies{Network: d.Network, directDatabase: d.opts.directDatabase}
	if d.opts.Netns {
		var err error
		if d.ground, err = newNamespaces(d.Network, sites); err != nil {
			return err
		}
	}
	d.Processes.start = d.ground.start
	for _, site := range sites {
		a, err := d.ground.addresses(site, site == d.opts.Witness, d.opts.Gateways)
		if err != nil {
			return err
		}
		d.at[site] = a
	}
	s, err := makeSpec(d.opts, d.at, d.ground)
	if err != nil {
		return err
	}
	if d.opts.reshape != nil {
		d.opts.reshape(s)
	}
	d.SpecFile = filepath.Join(d.Dir, "atoll.yaml")
	d.Spec, err = writeSpec(d.SpecFile, s)
	return err
}

func (d *Deployment) certify(ctx context.Context) error {
	calls := [][]string{{"ca", "init"}, {"ca", "issue", "operator", operatorName}}
	for _, site := range slices.Sorted(maps.Keys(d.at)) {
		calls = append(calls, []string{"ca", "issue", "site", string(site)})
	}
	for _, args := range calls {
		if _, err := d.Atoll(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// Atoll runs the binary to its end against this deployment and returns its standard output.
func (d *Deployment) Atoll(ctx context.Context, args ...string) ([]byte, error) {
	return d.Processes.Run(ctx, Command{Name: "atoll " + args[0], Path: d.opts.Atoll, Dir: d.Dir, Env: d.env(""),
		Args: append(slices.Clone(args), "-f", d.SpecFile)})
}

// agentEnv is env for a site's agent, which reaches its database over a path of the network.
func (d *Deployment) agentEnv(site topo.SiteID) []string {
	dsn := url.URL{Scheme: "postgres", User: url.User(agentRole), Host: d.at[site].databasePath, Path: "/" + database, RawQuery: "sslmode=disable"}
	return append(d.env(site), "ATOLL_DSN="+dsn.String()) // the last one counts
}

// env is what the processes of a site find in their environment; site "" is an operator's.
func (d *Deployment) env(site topo.SiteID) []string {
	env := []string{runEnv + "=" + d.Dir}
	if os.Getenv("GOMAXPROCS") == "" { // each site has its share of the machine, not all of it
		env = append(env, fmt.Sprintf("GOMAXPROCS=%d", max(1, runtime.NumCPU()/(len(d.opts.Sites)+1))))
	}
	if s := d.databases[site]; s != nil {
		env = append(env, "ATOLL_DSN="+s.DSN(agentRole, database), "ATOLL_ADMIN_DSN="+s.DSN(pgserver.Superuser, database),
			"SHOP_DSN="+d.shopDSN(site), "SHOP_ADMIN_DSN="+s.DSN(pgserver.Superuser, database))
	}
	return env
}

func (d *Deployment) startDatabases(ctx context.Context) error {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	for _, site := range d.opts.Sites {
		g.Go(func() error {
			options := pgserver.Options{Dir: d.databaseDir(site), Name: string(site), Port: d.at[site].database}
			if d.at[site].namespace != "" {
				if err := d.mountDisk(site); err != nil {
					return err
				}
				options.Settings = map[string]string{"max_wal_size": diskWAL}
				options.Start = func(cmd *exec.Cmd) (*supervise.Process, error) { return d.ground.start(site, cmd) }
			}
			if d.opts.databaseEnv != nil {
				options.Env = d.opts.databaseEnv(site)
			}
			s, err := pgserver.Start(ctx, options)
			if err != nil {
				return err
			}
			mu.Lock()
			d.databases[site] = s
			mu.Unlock()
			if err := s.CreateDatabase(ctx, database); err != nil {
				return err
			}
			return d.onDatabase(ctx, site, func(db *pgx.Conn) error {
				_, err := db.Exec(ctx, fmt.Sprintf("CREATE ROLE %s LOGIN REPLICATION; CREATE ROLE %s LOGIN", agentRole, shopRole))
				return err
			})
		})
	}
	return g.Wait()
}

// onDatabase runs f on a connection of the superuser's, straight to the server.
func (d *Deployment) onDatabase(ctx context.Context, site topo.SiteID, f func(*pgx.Conn) error) error {
	db, err := pgx.Connect(ctx, d.databases[site].CallerDSN(pgserver.Superuser, database))
	if err != nil {
		return fmt.Errorf("database of site %s: %w", site, err)
	}
	defer db.Close(context.WithoutCancel(ctx))
	if err := f(db); err != nil {
		return fmt.Errorf("database of site %s: %w", site, err)
	}
	return nil
}

func (d *Deployment) initShop(ctx context.Context) error {
	for i, site := range d.opts.Sites {
		args := []string{"init", "--dsn-env", "SHOP_ADMIN_DSN", "--grant", shopRole}
		if i == 0 {
			args = append(args, d.shapeFlags(0)...)
			args = append(args, "--seats", strconv.Itoa(d.opts.Shape.Seats))
		} else {
			args = append(args, "--schema-only")
		}
		if _, err := d.Processes.Run(ctx, Command{Name: "tickets init", Site: site, Path: d.opts.Tickets, Args: args, Env: d.env(site)}); err != nil {
			return err
		}
	}
	return nil
}

// shapeFlags describe the shop, all of it or without the last few of its customers.
func (d *Deployment) shapeFlags(without int) []string {
	return []string{"--customers", strconv.Itoa(d.opts.Shape.Customers - without), "--events", strconv.Itoa(d.opts.Shape.Events)}
}

// apply runs `atoll apply` at every site; then the lab puts its own witness beside it, before any agent runs.
func (d *Deployment) apply(ctx context.Context) error {
	tables := watchedTables(d.Spec)
	for _, site := range d.opts.Sites {
		_, err := d.Processes.Run(ctx, Command{Name: "atoll apply", Site: site, Path: d.opts.Atoll, Env: d.env(site),
			Args: []string{"apply", "-f", d.SpecFile, "--site", string(site)}})
		if err != nil {
			return err
		}
		err = d.onDatabase(ctx, site, func(db *pgx.Conn) error { return installEvidence(ctx, db, tables, agentRole) })
		if err != nil {
			return err
		}
	}
	return nil
}
