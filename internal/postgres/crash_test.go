package postgres

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// bankTables are pgbench's, with a history that has no key: a row that is applied twice or not at all shows.
const bankTables = `CREATE TABLE accounts (aid int PRIMARY KEY, bid int, abalance int, filler char(84) DEFAULT '');
	CREATE TABLE tellers (tid int PRIMARY KEY, bid int, tbalance int); CREATE TABLE branches (bid int PRIMARY KEY, bbalance int);
	CREATE TABLE history (tid int, bid int, aid int, delta int, mtime timestamptz DEFAULT now());`

const bankRows = `INSERT INTO accounts SELECT i, i % 10, 0 FROM generate_series(1, 2000) i; INSERT INTO tellers SELECT i, i, 0 FROM generate_series(1, 100) i;
	INSERT INTO branches SELECT i, 0 FROM generate_series(0, 9) i;`

var bankSpecs = []TableSpec{keyedTable("accounts", "aid"), keyedTable("tellers", "tid"), keyedTable("branches", "bid"),
	{Schema: "public", Name: "history", Kind: topo.Home, Keyspace: "catalog", AppendOnly: true}}

// bankTraffic makes pgbench-like transactions, now and then a large one or one that rolls back, until stop is closed.
func bankTraffic(s *streamSite, clients int, stop <-chan struct{}) (count *atomic.Int64, wait func()) {
	count = new(atomic.Int64)
	var wg sync.WaitGroup
	for c := range clients {
		conn := s.connect()
		rnd := rand.New(rand.NewPCG(uint64(c), 7))
		wg.Go(func() {
			ctx := context.Background()
			for {
				select {
				case <-stop:
					return
				default:
				}
				aid, tid, bid, delta := rnd.IntN(2000)+1, rnd.IntN(100)+1, rnd.IntN(10), rnd.IntN(10000)-5000
				err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
					sql := fmt.Sprintf("UPDATE accounts SET abalance = abalance + %[4]d WHERE aid = %[1]d; UPDATE tellers SET tbalance = tbalance + %[4]d WHERE tid = %[2]d; "+
						"UPDATE branches SET bbalance = bbalance + %[4]d WHERE bid = %[3]d; INSERT INTO history VALUES (%[2]d, %[3]d, %[1]d, %[4]d)", aid, tid, bid, delta)
					switch rnd.IntN(200) {
					case 0:
						sql += fmt.Sprintf("; INSERT INTO history SELECT i, %d, i, i FROM generate_series(1, 3000) i", c)
					case 1, 2, 3:
						sql += "; SELECT 1/0"
					}
					_, err := tx.Exec(ctx, sql)
					return err
				})
				if err == nil {
					count.Add(1)
				} else if state := sqlState(err); state != "22012" && state != "40P01" {
					s.t.Errorf("traffic: %v", err)
					return
				}
			}
		})
	}
	return count, wg.Wait
}

// TestExactlyOnceOverCrashes ends backends of both sides at random moments under traffic in both directions.
func TestExactlyOnceOverCrashes(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, bankTables+"CREATE TABLE back (id int PRIMARY KEY, v int)", append([]TableSpec{keyedTable("back", "id")}, bankSpecs...)...)
	a.exec(bankRows)
	ab, ba := newStreamLink(a, b), newStreamLink(b, a)
	ab.copy, ab.retry, ba.retry = true, true, true
	ab.start()
	ba.start()
	stop := make(chan struct{})
	count, wait := bankTraffic(a, 3, stop)
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	admin := a.connect()
	ended := 0
	end := time.After(10 * time.Second)
	for i := 0; ; i++ {
		pause := time.NewTimer(time.Duration(20+rnd.IntN(300)) * time.Millisecond)
		select {
		case <-end:
			end = nil
		case <-pause.C:
		}
		if end == nil {
			break
		}
		b.exec("INSERT INTO back VALUES ($1, 0)", i)
		var n int
		err := admin.QueryRow(context.Background(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = ANY ($1) AND pid <> pg_backend_pid()`,
			[]string{[]string{"atoll capture for " + string(b.id), "atoll apply from " + string(a.id)}[rnd.IntN(2)]}).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		ended += n
	}
	close(stop)
	wait()
	ab.settle()
	ba.settle()
	ab.stop()
	ba.stop()
	t.Logf("%d transactions, %d backends ended, %d restarts of the link, %d target transactions; last failure: %v", count.Load(), ended, ab.restarts, ab.batches.Load(), ab.failure())
	if ended < 5 || count.Load() < 100 {
		t.Fatal("too little happened")
	}
	equal(a, b, "accounts", "tellers", "branches", "history", "back")
	b.want("0", "SELECT count(*) FROM atoll.conflict")
	a.want("0", "SELECT count(*) FROM atoll.conflict")
	a.wantKept()
	b.wantKept()
	p, err := ab.sink.Progress(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if at, _, err := ab.source.Confirmed(context.Background()); err != nil || at > p.Position {
		t.Fatalf("the slot let go of %s, the target has %s: %v", lsn(at), lsn(p.Position), err)
	}
}

// TestCopyUnderLoad: copy and stream meet without gap or overlap.
func TestCopyUnderLoad(t *testing.T) {
	t.Parallel()
	a, b := newStreamSites(t, bankTables, bankSpecs...)
	a.exec(bankRows + "INSERT INTO history SELECT i, 0, i, 0 FROM generate_series(1, 50000) i")
	a.exec(`INSERT INTO atoll.bucket (site, keyspace, bucket, epoch, state) VALUES ($1, 'users', 5, 3, 'open'), ('z', 'users', 5, 2, 'closed')`, string(a.id))
	stop := make(chan struct{})
	count, wait := bankTraffic(a, 3, stop)
	l := newStreamLink(a, b)
	l.copy = true
	comesAbout(t, func() bool { return count.Load() > 50 })
	during := count.Load()
	l.start()
	during = count.Load() - during
	upTo := count.Load() + 200
	comesAbout(t, func() bool { return count.Load() > upTo })
	close(stop)
	wait()
	l.settle()
	t.Logf("%d transactions during the copy, %d in all", during, count.Load())
	equal(a, b, "accounts", "tellers", "branches", "history")
	b.want("0", "SELECT count(*) FROM atoll.conflict")
	b.want(string(a.id)+" 3", "SELECT site || ' ' || epoch FROM atoll.bucket")
	p, err := l.sink.Progress(context.Background())
	if err != nil || p.Epochs["users"][5] != 3 {
		t.Fatalf("epochs with the copy: %v %v", p.Epochs, err)
	}
}

// BenchmarkBacklog drains a backlog of b.N pgbench-like transactions (three updates, one insert). Run it with
// -benchtime 100000x.
func BenchmarkBacklog(bench *testing.B) {
	a, b := newStreamSites(bench, bankTables, bankSpecs...)
	a.exec(strings.Replace(bankRows, "2000", "100000", 1))
	l := newStreamLink(a, b)
	l.copy = true
	if err := l.place(context.Background()); err != nil {
		bench.Fatal(err)
	}
	a.exec(`CREATE PROCEDURE fill(n int) LANGUAGE plpgsql AS $$
		DECLARE a int; t int; r int; d int;
		BEGIN
			SET synchronous_commit = off;
			FOR i IN 1..n LOOP
				a := 1 + random() * 99999; t := 1 + random() * 99; r := random() * 9; d := random() * 10000;
				UPDATE accounts SET abalance = abalance + d WHERE aid = a;
				UPDATE tellers SET tbalance = tbalance + d WHERE tid = t;
				UPDATE branches SET bbalance = bbalance + d WHERE bid = r;
				INSERT INTO history VALUES (t, r, a, d);
				COMMIT;
			END LOOP;
		END $$`)
	a.exec(fmt.Sprintf("CALL fill(%d)", bench.N))
	bench.ResetTimer()
	l.start()
	l.settle()
	bench.StopTimer()
	bench.ReportMetric(backendMicroseconds(a, "atoll capture for "+string(b.id))/float64(4*bench.N), "walsender-µs/row")
	bench.ReportMetric(backendMicroseconds(b, "atoll apply from "+string(a.id))/float64(4*bench.N), "apply-µs/row")
	l.stop()
	bench.ReportMetric(float64(bench.N)/bench.Elapsed().Seconds(), "tx/s")
	bench.ReportMetric(4*float64(bench.N)/bench.Elapsed().Seconds(), "rows/s")
	bench.ReportMetric(float64(bench.N)/float64(l.batches.Load()), "tx/batch")
	equal(a, b, "accounts", "tellers", "branches", "history")
}

// backendMicroseconds is the processor time of a backend, which says more than the clock where others are at work.
func backendMicroseconds(s *streamSite, application string) float64 {
	pid := s.text("SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1", application)
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		s.t.Fatal(err)
	}
	var user, system float64
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &system); err != nil {
		s.t.Fatal(err)
	}
	return (user + system) * 10_000 // ticks of a hundredth of a second
}
