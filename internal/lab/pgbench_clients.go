package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/topo"
)

// benchClients are the bank's clients. Each is a pgbench process of one connection that runs pgbench's own script. It
// ends when the fence refuses a transaction or its connection breaks, as any program would that knows nothing of
// sites; then it is started again at the site that `atoll status` names.
type benchClients struct {
	n    int
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu struct {
		sync.Mutex
		runs    []benchRun
		until   time.Time // zero: not known yet
		at      topo.SiteID
		asked   time.Time
		follows bool // else every client goes to the seed: nobody else is there to be asked
		failed  error
	}
	asking sync.Mutex // held while `atoll status` is asked
}

// benchRun is one life of a client.
type benchRun struct {
	Client int         `json:"client"`
	Site   topo.SiteID `json:"site"`
	Began  time.Time   `json:"began"`
	Ended  time.Time   `json:"ended"`
	How    string      `json:"how"`
	log    string      // prefix of its log file
}

// How a client's life ended.
const (
	endedWell    = "time was up"
	endedFenced  = "the fence refused it"        // SQLSTATE AT001: not the owner
	endedLease   = "the fence's lease ran out"   // SQLSTATE AT002
	endedBroken  = "its connection broke"        // in the middle: whether its last transaction stands is unknown
	endedRefused = "nobody was there to connect" // nothing was sent
	endedOther   = "another error"
)

// againAfter keeps a client that is refused at once from spinning.
const againAfter = 50 * time.Millisecond

func (c *benchClients) start(b *bench) {
	ctx, stop := context.WithCancel(context.Background())
	c.stop = stop
	for i := range c.n {
		c.wg.Go(func() {
			if err := c.live(ctx, b, i); err != nil {
				c.mu.Lock()
				c.mu.failed = errors.Join(c.mu.failed, err)
				c.mu.Unlock()
			}
		})
	}
}

// follow: from now on a client asks who owns the bank before it connects.
func (c *benchClients) follow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.follows = true
}

// endAt names the end of the clients. A pgbench that is told its time ahead ends by itself and writes its log to the
// end; one that were killed would lose what it has buffered.
func (c *benchClients) endAt(at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.until = at
}

// wait returns when all clients have ended.
func (c *benchClients) wait() error {
	c.wg.Wait()
	c.stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.failed
}

// kill ends the clients at once, where the run has failed.
func (c *benchClients) kill() {
	if c.stop != nil {
		c.stop()
		c.wg.Wait()
	}
}

// live starts the client again and again until its time is up.
func (c *benchClients) live(ctx context.Context, b *bench, client int) error {
	for n := 0; ; n++ {
		left := c.left()
		if left <= 0 || ctx.Err() != nil {
			return nil
		}
		site := c.where(ctx, b)
		if site != "" {
			run := benchRun{Client: client, Site: site, Began: time.Now(), log: filepath.Join(b.logs, fmt.Sprintf("c%d-%d", client, n))}
			args := []string{"-n", "-c", "1", "-T", strconv.Itoa(max(1, int(left.Seconds()))), "-l", "--log-prefix", run.log}
			if b.opts.Rate > 0 {
				args = append(args, "-R", strconv.FormatFloat(float64(b.opts.Rate)/float64(c.n), 'f', -1, 64))
			}
			_, err := b.d.Processes.Run(ctx, Command{Name: fmt.Sprintf("pgbench client %d", client), Path: b.pgbench, Dir: b.d.Dir,
				Env: append(b.d.env(""), "PGCONNECT_TIMEOUT=5"), Args: append(args, b.connect(site)...)})
			if ctx.Err() != nil {
				return nil
			}
			run.Ended = time.Now()
			run.How = howEnded(err)
			if run.How == endedOther {
				return fmt.Errorf("client %d at site %s: %w", client, site, err)
			}
			c.mu.Lock()
			c.mu.runs = append(c.mu.runs, run)
			c.mu.Unlock()
		}
		if rest(ctx, againAfter) != nil {
			return nil
		}
	}
}

// left is how long a client that starts now may run. Until the end is known it gets turns, so that it ends in time.
func (c *benchClients) left() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.until.IsZero() {
		return benchTurn
	}
	return time.Until(c.mu.until)
}

// benchTurn is the longest life of a client while the end is not known: it could not be told to end.
const benchTurn = 5 * time.Second

// where is the site to connect to now; "" where nobody can say. Clients that ask at one moment share an answer.
func (c *benchClients) where(ctx context.Context, b *bench) topo.SiteID {
	wanted := time.Now()
	c.asking.Lock()
	defer c.asking.Unlock()
	c.mu.Lock()
	at, fresh, follows := c.mu.at, c.mu.asked.After(wanted), c.mu.follows
	c.mu.Unlock()
	switch {
	case !follows:
		return b.opts.Sites[0]
	case fresh:
		return at
	}
	asked := time.Now()
	st, err := b.status(ctx)
	at = ""
	if err == nil {
		at = owner(st)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.at, c.mu.asked = at, asked
	return at
}

// howEnded reads what pgbench said. It prints no SQLSTATE, but the fence's own words.
func howEnded(err error) string {
	if err == nil {
		return endedWell
	}
	said := err.Error()
	has := func(text string) bool { return strings.Contains(said, text) }
	switch {
	case has("its lease has run out (bucket"):
		return endedLease
	case has("is not open for writes at site"):
		return endedFenced
	case has("could not create connection") || has("could not connect") || has("connection to server at"):
		return endedRefused
	case has("perhaps the backend died") || has("server closed the connection") || has("terminating connection") ||
		has("server conn crashed") || has("could not send data") || has("could not receive data"):
		return endedBroken
	}
	return endedOther
}

// benchTx is a transaction that pgbench counted as done. Times are in microseconds since 1970, on the machine's clock.
type benchTx struct {
	client     int
	began, end int64
}

// lives lists the runs that have ended.
func (c *benchClients) lives() []benchRun {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.mu.runs)
}

// acknowledged reads the logs of all runs.
func (c *benchClients) acknowledged() ([]benchTx, error) {
	var out []benchTx
	for _, r := range c.lives() {
		files, err := filepath.Glob(r.log + ".*")
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			txs, err := readBenchLog(file, r.Client)
			if err != nil {
				return nil, err
			}
			out = append(out, txs...)
		}
	}
	slices.SortFunc(out, func(a, b benchTx) int { return int(a.end - b.end) })
	return out, nil
}

// readBenchLog reads a file of pgbench --log: client, number, latency in µs, script, when it was done, in seconds and µs,
// and with a rate how much of the latency went before its begin, in µs.
func readBenchLog(path string, client int) ([]benchTx, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("lab: pgbench log: %w", err)
	}
	defer f.Close()
	var out []benchTx
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		tx, err := parseBenchLine(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("lab: %s, line %d: %w", filepath.Base(path), len(out)+1, err)
		}
		tx.client = client
		out = append(out, tx)
	}
	return out, lines.Err()
}

func parseBenchLine(line string) (benchTx, error) {
	fields := strings.Fields(line)
	if len(fields) < 6 {
		return benchTx{}, fmt.Errorf("%q is no line of pgbench --log", line)
	}
	wanted := []string{fields[2], fields[4], fields[5]}
	if len(fields) > 6 {
		wanted = append(wanted, fields[6])
	}
	var n [4]int64
	for i, field := range wanted {
		var err error
		if n[i], err = strconv.ParseInt(field, 10, 64); err != nil {
			return benchTx{}, fmt.Errorf("%q is no line of pgbench --log", line)
		}
	}
	end := n[1]*1_000_000 + n[2]
	return benchTx{began: end - n[0] + n[3], end: end}, nil
}
