package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// heard collects what a server gets; each piece with its moment.
func heard(t *testing.T) (addr string, pieces <-chan string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	out := make(chan string, 64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 4096)
				for {
					n, err := c.Read(buf)
					if n > 0 {
						out <- string(buf[:n])
					}
					if err != nil {
						out <- "end"
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), out
}

func TestTrap_HoldsFromItsBytesOn(t *testing.T) {
	t.Parallel()
	const held = 300 * time.Millisecond
	n := testNetwork(t)
	target, pieces := heard(t)
	addr, err := n.Path("a", "a", Database, target)
	if err != nil {
		t.Fatal(err)
	}
	trap := n.HoldWhen(Way{"a", "a"}, Database, []byte("extend"), held)
	other := n.HoldWhen(Way{"a", "b"}, Database, []byte("SELECT"), time.Hour) // of another way
	defer n.Disarm(other)
	c := dial(t, addr)
	write := func(text string) {
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	write("SELECT 1; ext")
	if got := <-pieces; got != "SELECT 1; ext" {
		t.Fatalf("before its bytes: %q", got)
	}
	write("end")
	<-trap.Sprung
	// The sender dies with the held bytes under way. They arrive all the same.
	if err := c.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if got := <-pieces; got != "end" && got != "endend" || time.Since(trap.At) < held {
		t.Errorf("%q after %v; want what was held after %v", got, time.Since(trap.At), held)
	}
	began := time.Now()
	c = dial(t, addr)
	write("extend")
	if got := <-pieces; got != "extend" && got != "end" || time.Since(began) >= held {
		t.Errorf("it held twice: %q after %v", got, time.Since(began))
	}
}

func TestTrap_Disarmed(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	target, pieces := heard(t)
	addr, err := n.Path("b", "a", Database, target)
	if err != nil {
		t.Fatal(err)
	}
	trap := n.HoldWhen(Way{"b", "a"}, Database, []byte("word"), time.Hour)
	n.Disarm(trap)
	if _, err := dial(t, addr).Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	if got := <-pieces; got != "word" {
		t.Errorf("%q", got)
	}
}

func TestNetwork_CutKind(t *testing.T) {
	t.Parallel()
	n := testNetwork(t)
	link, store := dialPath(t, n, Link), dialPath(t, n, StoreClient)
	mustPing(t, link, testRTT)
	d := &Deployment{Network: n}
	cut := d.CutKinds("a", "b", Link, AgentAPI)
	if err := cut.Inject(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustPing(t, store, testRTT)
	if _, err := link.Write([]byte("word")); err != nil {
		t.Fatal(err)
	}
	silence(t, link)
	if err := cut.Heal(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := hear(link); err != nil {
		t.Fatal(err)
	}
}

func TestLoseSite_KillsAllAndStartsAllAgain(t *testing.T) {
	t.Parallel()
	p := testProcesses(t, func(name string) { t.Errorf("%s ended by surprise", name) })
	d := &Deployment{Processes: p, Network: testNetwork(t), at: map[topo.SiteID]*addresses{"a": {}, "b": {}}}
	for _, name := range []string{"a/store", "b/store", "a/agent"} {
		if err := p.Start(roleCommand(name, "stubborn")); err != nil {
			t.Fatal(err)
		}
	}
	f := d.LoseSite("a")
	if err := f.Inject(t.Context()); err != nil {
		t.Fatal(err)
	}
	running := func() []string { return slices.DeleteFunc(p.Names(), func(n string) bool { return !p.Running(n) }) }
	if got := running(); !slices.Equal(got, []string{"b/store"}) {
		t.Errorf("%v run after the loss of a", got)
	}
	for range 2 { // healing again changes nothing
		if err := f.Heal(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if got := running(); len(got) != 3 {
		t.Errorf("%v run after a was started again", got)
	}
	if err := d.Do(t.Context(), "kill", "b"); err != nil || p.Running("b/store") {
		t.Errorf("kill b: %v", err)
	}
	agent := d.KillProcess("a/agent")
	if err := errors.Join(agent.Inject(t.Context()), agent.Heal(t.Context()), agent.Heal(t.Context())); err != nil || !p.Running("a/agent") {
		t.Errorf("killed and healed: %v, runs %v", err, p.Running("a/agent"))
	}
	if err := d.Do(t.Context(), "pause", "a"); err == nil || !strings.Contains(err.Error(), "a/agent") {
		t.Errorf("pause of a site: %v; want the names of its processes", err)
	}
}

// An applier, as one looks from outside, is caught only in the middle of a transaction, and the database goes on.
func TestStopApplier(t *testing.T) {
	t.Parallel()
	server := pgserver.Shared(t)
	name := server.Database(t)
	ctx := context.Background()
	connect := func(application string) *pgx.Conn {
		conf, err := pgx.ParseConfig(server.DSN(pgserver.Superuser, name))
		if err != nil {
			t.Fatal(err)
		}
		conf.RuntimeParams["application_name"] = application
		c, err := pgx.ConnectConfig(ctx, conf)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(ctx) })
		return c
	}
	dsn := server.DSN(pgserver.Superuser, name)
	db, applier := connect("test"), connect(applierOf+"a")
	execSQL(t, db, `CREATE SCHEMA lab; CREATE SCHEMA atoll; CREATE TABLE atoll.progress (origin text PRIMARY KEY, position int); INSERT INTO atoll.progress VALUES ('a', 0)`)
	pid := int(applier.PgConn().PID())
	if err := stopOnce(ctx, db, pid, "a"); !errors.Is(err, errNotYet) {
		t.Fatalf("between transactions: %v", err)
	}
	if _, err := tryCatch(ctx, dsn, "b"); err == nil {
		t.Fatal("an applier that is not there was caught")
	}
	execSQL(t, applier, `BEGIN; UPDATE atoll.progress SET position = 1`)
	if caught, err := tryCatch(ctx, dsn, "a"); err != nil || caught != pid {
		t.Fatalf("backend %d was caught, want %d: %v", caught, pid, err)
	}
	// It stands: what is sent now is done when it goes on, and not before.
	done := make(chan error, 1)
	go func() {
		_, err := applier.Exec(ctx, `COMMIT`)
		done <- err
	}()
	execSQL(t, db, `INSERT INTO lab.probe DEFAULT VALUES`)
	select {
	case err := <-done:
		t.Fatalf("a stopped backend answered: %v", err)
	default:
	}
	if err := signalBackend(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestOutage_Explains(t *testing.T) {
	t.Parallel()
	in, beside := keyIn(7), keyIn(8)
	o := &outage{lost: "a", taker: "b", killed: second(10), settled: second(30),
		buckets: map[topo.KeyspaceID]topo.Spans{users: topo.SpansOf(7)}}
	via := func(target string, r Operation) Operation { r.Target = target; return r }
	for _, test := range []struct {
		what string
		op   Operation
		want bool
	}{
		{"failed before the kill", via("a/g1", request(8, 9, in, 503, 0)), false},
		{"under way at the kill", via("b/g1", request(9, 11, in, 503, 0)), true},
		{"to the lost bucket before it was open again", via("b/g1", request(13, 14, in, 503, 0)), true},
		{"to the lost bucket behind the opening", via("b/g1", request(17, 18, in, 503, 0)), false},
		{"to another bucket", via("b/g1", request(12, 13, beside, 503, 0)), false},
		{"to another bucket by the lost gateway", via("a/g1", request(20, 20.1, beside, 0, 0)), true},
		{"by the lost gateway, long after it was back", via("a/g1", request(33, 34, beside, 0, 0)), false},
	} {
		if got := o.explains(&test.op, second(14), 1024); got != test.want {
			t.Errorf("%s: explained %v, want %v", test.what, got, test.want)
		}
	}
	slow := via("b/g1", request(20, 21, beside, 0, 0))
	slow.Op, slow.Error = registerRead, "context deadline exceeded"
	m := aDemo()
	o.cut, m.outages = second(9), []*outage{o}
	if got := m.failuresOfOutages([]Operation{slow}, nil); len(got) != 0 {
		t.Errorf("a register's client lost its patience, and that counts: %v", got[0])
	}
	slow.Error = "connection reset"
	if got := m.failuresOfOutages([]Operation{slow}, nil); len(got) != 1 {
		t.Errorf("%d failures, want 1", len(got))
	}
	buy := via("b/g1", request(12, 13, beside, 503, 0))
	buy.Op = buyOp
	o.buckets[catalog] = topo.SpansOf(0)
	if !o.explains(&buy, second(14), 1024) {
		t.Error("a purchase needs the catalogue, which was lost")
	}
	if o.settled = (time.Time{}); !o.explains(&buy, time.Time{}, 1024) {
		t.Error("a site that was never replaced explains everything of its own")
	}
}

// anOutage is a loss that went as it should, with the epoch rows that show it.
func anOutage(name string) (*outage, []EpochRow) {
	o := &outage{name: name, lost: "a", taker: "b", cut: second(9), killed: second(10), seen: second(14), back: second(20), settled: second(24),
		buckets: map[topo.KeyspaceID]topo.Spans{users: topo.SpansOf(7, 8)}}
	row := func(b topo.BucketID, at float64) EpochRow {
		return EpochRow{Database: "b", Site: "b", Keyspace: users, Bucket: b, Epoch: 2, Open: true, At: second(at)}
	}
	return o, []EpochRow{row(7, 5), row(7, 13.9), row(8, 14)}
}

func TestSumUpOutages(t *testing.T) {
	t.Parallel()
	m := aDemo()
	o, epochs := anOutage(nominalLoss)
	stopped, _ := anOutage(stoppedApplier)
	stopped.held, stopped.stoppedAt = second(13), "b"
	m.outages = []*outage{o, stopped}
	r := &Report{Home: Switches{Tried: 2, Count: 2}}
	e := &evidence{Evidence: Evidence{Epochs: epochs}}
	m.sumUpOutages(r, e)
	if f := r.Failover; f.Count != 1 || f.OpenedAfterMS != 4000 || f.DownMS != 10000 || f.SettledAfterMS != 4000 || f.LeaseS != 3 || f.WS != 1 {
		t.Errorf("%+v", f)
	}
	want(t, m.checkFailover(r), "no record")
	want(t, m.checkDrills(r, e), "")
	stopped.held = second(16)
	want(t, m.checkDrills(r, e), "before its applier went on")
	stopped.stoppedAt = "c" // then b need not wait for it
	want(t, m.checkDrills(r, e), "")
	accounted := func() Check {
		c := Check{Name: "tail"}
		accountFor(&c, r)
		return c
	}
	want(t, accounted(), "only 0 writes")
	r.Failover.RPOWrites, r.Failover.AppliedAfterReturn, r.Failover.InConflictLog = 30, 20, 9
	want(t, accounted(), "1 writes are neither")
	r.Failover.InConflictLog = 10
	want(t, accounted(), "")
	o.seen, epochs[2].At = time.Time{}, second(21)
	m.sumUpOutages(r, e)
	if r.Failover.Count != 0 || !strings.Contains(r.Failover.Problem, "did not open all buckets") {
		t.Errorf("%+v", r.Failover)
	}
	want(t, m.checkFailover(r), "did not open all buckets")
}

func TestFailoverText(t *testing.T) {
	t.Parallel()
	r := &Report{Failover: Failovers{Count: 1, LeaseS: 3, WS: 1, RPOWrites: 41, AppliedAfterReturn: 38, InConflictLog: 3, RTOms: Quantiles{P50: 4200, Max: 5100, Count: 40},
		Course: Course{Lost: "a", Taker: "b", Buckets: 129, OpenedAfterMS: 4100, DownMS: 12000, SettledAfterMS: 2500, Automatic: true}},
		Drills: map[string]Failovers{stoppedApplier: {Course: Course{Problem: "the fault could not be brought about"}}}}
	var out bytes.Buffer
	r.failoverText(func(format string, args ...any) { fmt.Fprintf(&out, format+"\n", args...) }, &screen{})
	for _, part := range []string{"41 writes that nobody else had", "38 are in the data, 3 gave way", "opened a's 129 buckets 4.1 s after the kill", "drill: stopped applier", "could not be brought about"} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), part) {
			t.Errorf("the report lacks %q:\n%s", part, out.String())
		}
	}
	for _, l := range wrap("one two three", 7) {
		if len(l) > 7 {
			t.Errorf("%q is too long", l)
		}
	}
}
