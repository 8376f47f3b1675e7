package postgres

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

// The race: many writers of every kind against agents that close and open the very buckets that they write to. The
// verdict comes from the database's own change stream, in commit order: a row of a bucket that stands behind the
// bucket's closed row and not behind its next open row was accepted against I3.
//
// ATOLL_RACE=60s runs it longer. With `-tags plant_wait_out_removed` closing does not wait writers out; then the race
// must find violations, or it could not have found them here.
func TestFenceRace(t *testing.T) {
	duration := 15 * time.Second
	if text := os.Getenv("ATOLL_RACE"); text != "" {
		var err error
		if duration, err = time.ParseDuration(text); err != nil {
			t.Fatalf("ATOLL_RACE: %v", err)
		}
	} else if testing.Short() {
		duration = 4 * time.Second
	}
	s := newFenceSite(t, pgserver.Shared(t), fenceTables, fenceDeployment()).install()
	runFenceRace(t, s, duration)
}

// runFenceRace races on a site whose application connects by the site's appDSN.
func runFenceRace(t *testing.T, s *fenceSite, duration time.Duration) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("ATOLL_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ATOLL_SEED: %v", err)
		}
	}
	t.Logf("seed %d; again with: ATOLL_SEED=%[1]d ATOLL_RACE=%s go test -run '^%[3]s$' ./internal/postgres", seed, duration, t.Name())

	s.openAll(1)
	s.extend(duration + 10*time.Minute)
	s.exec(s.adminDSN, "ALTER ROLE "+s.app+" SET deadlock_timeout = '20ms'", "SELECT pg_create_logical_replication_slot('race_"+s.db+"', 'test_decoding')")
	r := newFenceRace(s, seed)
	ctx, cancel := context.WithTimeout(t.Context(), duration+time.Minute)
	defer cancel()
	go r.endAfter(ctx, cancel, duration)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() { r.write(ctx, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	for i := range 2 { // each has its own buckets, in the same words
		wg.Go(func() {
			r.flip(ctx, rand.New(rand.NewPCG(seed, uint64(100+i))), r.buckets[i*len(r.buckets)/2:(i+1)*len(r.buckets)/2])
		})
	}
	wg.Wait()
	v := r.verdict()
	t.Logf("%d transactions committed (%d prepared), %d refused, %d broken otherwise; %d windows; %d rows of %d transactions decoded, %d of them in closed buckets",
		r.committed.Load(), r.prepared.Load(), r.refused.Load(), r.broken.Load(), r.windows.Load(), v.rows, v.transactions, v.violations)
	if t.Failed() {
		return
	}
	if !r.enough() || v.closings < 50 {
		t.Errorf("too little happened for a verdict")
	}
	switch {
	case plant.WaitOutRemoved && v.violations == 0:
		t.Error("waiting writers out is removed from this build, and the race did not notice")
	case !plant.WaitOutRemoved && v.violations > 0:
		t.Errorf("%d rows were committed in closed buckets; first: %s", v.violations, v.first)
	}
}

type fenceRace struct {
	s        *fenceSite
	keys     []int64
	bucketOf map[int64]topo.BucketID
	buckets  []topo.BucketID
	gid      atomic.Int64

	committed, prepared, refused, broken, windows atomic.Int64
}

// newFenceRace picks a few hot keys in a dozen buckets.
func newFenceRace(s *fenceSite, seed uint64) *fenceRace {
	r := &fenceRace{s: s, bucketOf: map[int64]topo.BucketID{}}
	rnd := rand.New(rand.NewPCG(seed, 7))
	for len(r.buckets) < 12 {
		key := rnd.Int64N(100000)
		b := s.bucketOf(fmt.Sprint(key))
		if _, ok := r.bucketOf[key]; ok {
			continue
		}
		r.keys = append(r.keys, key)
		r.bucketOf[key] = b
		if !slices.Contains(r.buckets, b) {
			r.buckets = append(r.buckets, b)
		}
	}
	return r
}

// enough tells whether what happened is worth a verdict.
func (r *fenceRace) enough() bool {
	return r.committed.Load() >= 200 && r.prepared.Load() >= 10 && r.refused.Load() >= 50 && r.windows.Load() >= 60
}

// endAfter ends the race after its time, or later on a machine that is too busy for enough to happen in it.
func (r *fenceRace) endAfter(ctx context.Context, end context.CancelFunc, duration time.Duration) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for began := time.Now(); time.Since(began) < duration || !r.enough(); {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
	end()
}

func (r *fenceRace) key(rnd *rand.Rand) int64 { return r.keys[rnd.IntN(len(r.keys))] }

// raceWrites are the ways to write. $1 and $2 are hot keys.
var raceWrites = []string{
	"INSERT INTO item VALUES ($1) ON CONFLICT (id) DO UPDATE SET n = item.n + 1",
	"INSERT INTO part VALUES ($1) ON CONFLICT (id) DO UPDATE SET n = part.n + 1",
	"INSERT INTO item VALUES ($1) ON CONFLICT DO NOTHING",
	"UPDATE item SET n = n + 1 WHERE id = $1",
	"UPDATE item SET n = n + 1 WHERE id IN ($1, $2)",
	"UPDATE part SET n = n + 1 WHERE id = $1",
	"UPDATE part_0 SET n = n + 1 WHERE id IN ($1, $2)",
	"UPDATE part_1 SET n = n + 1 WHERE id IN ($1, $2)",
	"DELETE FROM item WHERE id = $1",
	"DELETE FROM part WHERE id = $1",
	"UPDATE item SET id = $2 WHERE id = $1 AND NOT EXISTS (SELECT FROM item WHERE id = $2)",
	"UPDATE part SET id = $2 WHERE id = $1 AND NOT EXISTS (SELECT FROM part WHERE id = $2)",
	"MERGE INTO item USING (VALUES ($1::bigint)) v (id) ON item.id = v.id WHEN MATCHED THEN UPDATE SET n = item.n + 7 WHEN NOT MATCHED THEN INSERT VALUES (v.id, 0, 'm')",
	"MERGE INTO part USING (VALUES ($1::bigint)) v (id) ON part.id = v.id WHEN MATCHED THEN DELETE WHEN NOT MATCHED THEN INSERT VALUES (v.id, 0, 'm')",
	"WITH gone AS (DELETE FROM item WHERE id = $1 RETURNING id) INSERT INTO part SELECT id FROM gone ON CONFLICT (id) DO UPDATE SET n = 0",
	"INSERT INTO parent VALUES ($1) ON CONFLICT DO NOTHING",
	"INSERT INTO child VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET parent = excluded.parent",
	"DELETE FROM parent WHERE id = $1",              // cascades into other buckets
	"UPDATE parent SET id = $2 WHERE id = $1",       // likewise
	"UPDATE child SET v = $2 % 7 WHERE parent = $1", // rows of any bucket
}

// write runs random transactions until ctx ends. The transaction in flight then is finished.
func (r *fenceRace) write(ctx context.Context, rnd *rand.Rand) {
	c, err := pgx.Connect(context.Background(), r.s.appDSN)
	if err != nil {
		r.s.t.Error(err)
		return
	}
	defer closeConn(c)
	for ctx.Err() == nil {
		err := r.transaction(c, rnd)
		switch code := sqlState(err); {
		case err == nil:
			r.committed.Add(1)
			continue
		case code == CodeNotOwned:
			r.refused.Add(1)
		// serialization, deadlock, unique, foreign key, wrong partition: part of the game
		case slices.Contains([]string{"40001", "40P01", "23505", "23503", "23514"}, code):
			r.broken.Add(1)
		default:
			r.s.t.Errorf("writer: %v", err)
			return
		}
		if _, err := c.Exec(context.Background(), "ROLLBACK"); err != nil {
			r.s.t.Errorf("writer: %v", err)
			return
		}
	}
}

func (r *fenceRace) transaction(c *pgx.Conn, rnd *rand.Rand) error {
	ctx := context.Background()
	exec := func(sql string, args ...any) error {
		_, err := c.Exec(ctx, sql, args...)
		return err
	}
	level := []string{"READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"}[rnd.IntN(3)]
	if err := exec("BEGIN ISOLATION LEVEL " + level); err != nil {
		return err
	}
	if rnd.IntN(2) == 0 {
		if err := exec("SET LOCAL synchronous_commit = off"); err != nil {
			return err
		}
	}
	for range 1 + rnd.IntN(4) {
		var err error
		switch rnd.IntN(12) {
		case 0:
			err = r.savepoint(c, rnd)
		case 1:
			err = r.copy(c, rnd)
		default:
			err = r.statement(c, rnd)
		}
		if err != nil {
			return err
		}
		if rnd.IntN(4) == 0 {
			if err := exec("SELECT pg_sleep($1)", rnd.Float64()*0.004); err != nil {
				return err
			}
		}
	}
	if rnd.IntN(10) != 0 {
		return exec("COMMIT")
	}
	gid := fmt.Sprintf("%s_%d", r.s.db, r.gid.Add(1))
	if err := exec("PREPARE TRANSACTION '" + gid + "'"); err != nil {
		return err
	}
	r.prepared.Add(1)
	if err := exec("SELECT pg_sleep($1)", rnd.Float64()*0.005); err != nil {
		return err
	}
	if rnd.IntN(8) == 0 {
		return exec("ROLLBACK PREPARED '" + gid + "'")
	}
	return exec("COMMIT PREPARED '" + gid + "'")
}

func (r *fenceRace) statement(c *pgx.Conn, rnd *rand.Rand) error {
	sql := raceWrites[rnd.IntN(len(raceWrites))]
	args := []any{r.key(rnd)}
	if strings.Contains(sql, "$2") {
		args = append(args, r.key(rnd))
	}
	_, err := c.Exec(context.Background(), sql, args...)
	return err
}

// savepoint writes behind a savepoint and goes back to it after an error, and now and then without one.
func (r *fenceRace) savepoint(c *pgx.Conn, rnd *rand.Rand) error {
	if _, err := c.Exec(context.Background(), "SAVEPOINT s"); err != nil {
		return err
	}
	if err := r.statement(c, rnd); err == nil && rnd.IntN(2) == 0 {
		return nil
	}
	_, err := c.Exec(context.Background(), "ROLLBACK TO SAVEPOINT s")
	return err
}

func (r *fenceRace) copy(c *pgx.Conn, rnd *rand.Rand) error {
	key := r.key(rnd)
	table := []string{"item", "part", "part_0", "part_1"}[rnd.IntN(4)]
	if _, err := c.Exec(context.Background(), "DELETE FROM "+table[:4]+" WHERE id = $1", key); err != nil {
		return err
	}
	_, err := c.CopyFrom(context.Background(), pgx.Identifier{table}, []string{"id", "n"}, pgx.CopyFromRows([][]any{{key, int32(1)}}))
	return err
}

// flip closes and opens a few of its buckets at a time, through a Fence of its own as another agent would have.
func (r *fenceRace) flip(ctx context.Context, rnd *rand.Rand, buckets []topo.BucketID) {
	bg := context.Background()
	f, err := OpenFence(bg, r.s.agentDSN, r.s.d.Site)
	if err != nil {
		r.s.t.Error(err)
		return
	}
	defer f.Close()
	c, err := pgx.Connect(bg, r.s.agentDSN)
	if err != nil {
		r.s.t.Error(err)
		return
	}
	defer closeConn(c)
	epoch := map[topo.BucketID]topo.Epoch{}
	for n := 0; ctx.Err() == nil; n++ {
		var spans []topo.EpochSpan
		for _, i := range rnd.Perm(len(buckets))[:1+rnd.IntN(3)] {
			b := buckets[i]
			epoch[b] = max(epoch[b], 1)
			spans = append(spans, topo.EpochSpan{First: b, Last: b, Epoch: epoch[b]})
		}
		slices.SortFunc(spans, func(a, b topo.EpochSpan) int { return int(a.First) - int(b.First) })
		ho := topo.HandoverID(fmt.Sprintf("h%d-%d", buckets[0], n))
		if _, err := f.CloseBuckets(bg, CloseOrder{Handover: ho, Keyspace: "users", Buckets: spans, Bound: 30 * time.Second}); err != nil {
			r.s.t.Errorf("close: %v", err)
			return
		}
		if _, err := c.Exec(bg, "SELECT pg_sleep($1)", rnd.Float64()*0.015); err != nil {
			r.s.t.Error(err)
			return
		}
		for i, s := range spans {
			epoch[s.First]++
			spans[i].Epoch++
		}
		if err := f.OpenBuckets(bg, OpenOrder{Handover: ho, Keyspace: "users", Buckets: spans}); err != nil {
			r.s.t.Errorf("open: %v", err)
			return
		}
		r.windows.Add(int64(len(spans)))
		if _, err := c.Exec(bg, "SELECT pg_sleep($1)", rnd.Float64()*0.01); err != nil {
			r.s.t.Error(err)
			return
		}
	}
}

type raceVerdict struct {
	transactions, rows, closings, violations int
	first                                    string
}

var (
	raceRow    = regexp.MustCompile(`^table public\.`)
	raceKey    = regexp.MustCompile(`\bid\[bigint\]:(\d+)`)
	raceBucket = regexp.MustCompile(`^table atoll\.bucket: .*\bbucket\[integer\]:(\d+) .*\bstate\[text\]:'(\w+)'`)
)

// verdict reads the change stream in commit order.
func (r *fenceRace) verdict() raceVerdict {
	t := r.s.t
	c := r.s.connect(r.s.adminDSN)
	rows, err := c.Query(context.Background(), "SELECT lsn::text, data FROM pg_logical_slot_get_changes($1, NULL, NULL)", "race_"+r.s.db)
	if err != nil {
		t.Fatal(err)
	}
	var v raceVerdict
	closed := map[topo.BucketID]bool{}
	var written []int64
	var states [][]string
	var lsn, data string
	_, err = pgx.ForEachRow(rows, []any{&lsn, &data}, func() error {
		switch {
		case strings.HasPrefix(data, "BEGIN"):
			written, states = nil, nil
		case raceRow.MatchString(data):
			for _, m := range raceKey.FindAllStringSubmatch(data, -1) { // old key and new key
				key, err := strconv.ParseInt(m[1], 10, 64)
				if err != nil {
					return err
				}
				if _, ok := r.bucketOf[key]; !ok {
					return fmt.Errorf("key %d is nobody's: %s", key, data)
				}
				written = append(written, key)
			}
		case raceBucket.MatchString(data):
			states = append(states, raceBucket.FindStringSubmatch(data))
		case strings.HasPrefix(data, "COMMIT"):
			v.judge(closed, written, r.bucketOf, lsn)
			for _, st := range states {
				b, err := strconv.Atoi(st[1])
				if err != nil {
					return err
				}
				closed[topo.BucketID(b)] = st[2] == "closed"
				if st[2] == "closed" {
					v.closings++
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *raceVerdict) judge(closed map[topo.BucketID]bool, keys []int64, bucketOf map[int64]topo.BucketID, lsn string) {
	if len(keys) == 0 {
		return
	}
	v.transactions++
	for _, key := range keys {
		v.rows++
		if b := bucketOf[key]; closed[b] {
			v.violations++
			if v.first == "" {
				v.first = fmt.Sprintf("key %d of bucket %d, committed at %s", key, b, lsn)
			}
		}
	}
}
