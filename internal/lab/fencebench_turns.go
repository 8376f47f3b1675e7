package lab

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

const (
	fencedTable = "fenced"
	plainTable  = "plain"
)

// fenceWork is one kind of transaction: a single prepared statement, with the table's name for %s.
type fenceWork struct {
	name string
	sql  string
	rows int
	args func(*fenceClient) []any
}

var fenceWorks = []fenceWork{
	{"update", "UPDATE %s SET n = n + 1 WHERE id = $1", 1, func(c *fenceClient) []any { return []any{1 + c.rnd.Int64N(fenceFilled)} }},
	{"insert", "INSERT INTO %s VALUES ($1, 1, 'forty letters, as many as those filled in')", 1, func(c *fenceClient) []any { return []any{c.nextID()} }},
	{"insert of 100", "INSERT INTO %s SELECT id, 1, 'forty letters, as many as those filled in' FROM unnest($1::bigint[]) id", 100, func(c *fenceClient) []any {
		ids := make([]int64, 100)
		for i := range ids {
			ids[i] = c.nextID()
		}
		return []any{ids}
	}},
}

// fenceCases lists what is measured.
func fenceCases(clients []int) []FenceCase {
	var out []FenceCase
	for _, w := range fenceWorks {
		for _, durable := range []bool{true, false} {
			for _, n := range clients {
				c := FenceCase{Name: w.name, Clients: n, Durable: durable, Rows: w.rows, work: w}
				c.Goal = FenceGoal{CPUPerTx: 8}
				if w.rows > 1 {
					c.Goal = FenceGoal{CPUPerRow: 1}
				}
				if durable {
					c.Goal.Ratio = 0.95
					if w.rows > 1 {
						c.Goal.Ratio = 0.8
					}
				}
				out = append(out, c)
			}
		}
	}
	return out
}

// fenceClient is one connection of the application.
type fenceClient struct {
	conn *pgx.Conn
	rnd  *rand.Rand
	id   int64 // the last one that it inserted
	step int64 // between its ids: clients take turns, as interleaved keys do
}

func (c *fenceClient) nextID() int64 {
	c.id += c.step
	return c.id
}

// fenceTurn is what one turn of one side came to.
type fenceTurn struct {
	transactions int
	tps          float64
	cpu          time.Duration // of the clients' backends
}

func (t fenceTurn) cpuPerTx() float64 {
	return float64(t.cpu.Nanoseconds()) / 1000 / float64(t.transactions)
}

// measure plays a case: rounds of one turn with the fence and one without, the first of a round taking turns too.
func (b *fenceBench) measure(ctx context.Context, c *FenceCase) error {
	if err := b.prepare(ctx); err != nil {
		return err
	}
	clients, err := b.connect(ctx, c)
	if err != nil {
		return err
	}
	defer func() {
		for _, cl := range clients {
			_ = cl.conn.Close(ctx) // nothing is left on it
		}
	}()
	var done [2]int
	sides := [2]string{fencedTable, plainTable}
	for round := range 1 + b.opts.Rounds { // the first warms up
		var turns [2]fenceTurn
		for i := range sides {
			side := (i + round) % len(sides)
			t, err := b.turn(ctx, c.work, clients, sides[side])
			if err != nil {
				return err
			}
			turns[side] = t
			done[side] += t.transactions
		}
		if round > 0 {
			c.rounds = append(c.rounds, turns)
		}
	}
	for i, table := range sides {
		if err := b.audit(ctx, table, done[i]*c.Rows); err != nil {
			return err
		}
	}
	c.sum()
	return nil
}

func (b *fenceBench) connect(ctx context.Context, c *FenceCase) ([]*fenceClient, error) {
	var out []*fenceClient
	for i := range c.Clients {
		conn, err := pgx.Connect(ctx, b.srv.DSN(shopRole, fenceDB))
		if err != nil {
			return out, err
		}
		out = append(out, &fenceClient{conn: conn, rnd: rand.New(rand.NewPCG(1, uint64(i))), id: fenceFilled + int64(i) + 1, step: int64(c.Clients)})
		for _, table := range []string{fencedTable, plainTable} {
			if _, err := conn.Prepare(ctx, table, fmt.Sprintf(c.work.sql, table)); err != nil {
				return out, err
			}
		}
		commit := "off"
		if c.Durable {
			commit = "on"
		}
		if _, err := conn.Exec(ctx, "SET synchronous_commit = "+commit); err != nil {
			return out, err
		}
	}
	return out, nil
}

// turn lets all clients work on one table for a while, each as fast as it can.
func (b *fenceBench) turn(ctx context.Context, w fenceWork, clients []*fenceClient, table string) (fenceTurn, error) {
	before, err := cpuOf(clients)
	if err != nil {
		return fenceTurn{}, err
	}
	counts := make([]int, len(clients))
	start := time.Now()
	end := start.Add(b.opts.Turn)
	var g errgroup.Group
	for i, c := range clients {
		g.Go(func() error {
			for counts[i] == 0 || time.Now().Before(end) {
				if _, err := c.conn.Exec(ctx, table, w.args(c)...); err != nil {
					return fmt.Errorf("table %s: %w", table, err)
				}
				counts[i]++
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return fenceTurn{}, err
	}
	took := time.Since(start)
	after, err := cpuOf(clients)
	if err != nil {
		return fenceTurn{}, err
	}
	t := fenceTurn{cpu: after - before}
	for _, n := range counts {
		t.transactions += n
	}
	t.tps = float64(t.transactions) / took.Seconds()
	return t, nil
}

// audit makes sure that what was counted was written: every row that is changed or inserted adds one to the sum of n.
func (b *fenceBench) audit(ctx context.Context, table string, want int) error {
	var got int
	if err := b.admin.QueryRow(ctx, "SELECT sum(n) FROM "+table).Scan(&got); err != nil {
		return err
	}
	if got != want {
		return fmt.Errorf("table %s holds %d rows' work where %d were counted", table, got, want)
	}
	return nil
}

// cpuOf is the CPU time that the clients' backends have used so far, user and system. They are idle at this moment, so
// what the kernel has noted is complete. (/proc/PID/stat has the same in ticks of 10 ms, which is too coarse.)
func cpuOf(clients []*fenceClient) (time.Duration, error) {
	var sum time.Duration
	for _, c := range clients {
		path := fmt.Sprintf("/proc/%d/schedstat", c.conn.PgConn().PID())
		data, err := os.ReadFile(path)
		if err != nil {
			return 0, fmt.Errorf("CPU time of a backend: %w; a kernel with CONFIG_SCHED_INFO is needed", err)
		}
		first, _, _ := strings.Cut(string(data), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("CPU time of a backend: %s: %w", path, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
