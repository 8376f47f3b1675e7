package postgres

import (
	"bytes"
	"io"
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// A lease write that is held on its way to the database until its lease is over must not open the fence again: it can
// only write the moment that was meant when it was sent.
func TestLateLeaseWrite(t *testing.T) {
	t.Parallel()
	s := newInstalledSite(t)
	s.openAll(1)
	s.exec(s.adminDSN, "SELECT setval('atoll.lease', 0)")
	way := newHeldWay(t, s.srv.Port, []byte("/* atoll.lease */"))
	config, err := pgx.ParseConfig(s.agentDSN)
	if err != nil {
		t.Fatal(err)
	}
	dsn := "postgres://" + config.User + "@127.0.0.1:" + strconv.Itoa(way.port) + "/" + s.db + "?sslmode=disable"
	f, err := OpenFence(t.Context(), dsn, s.d.Site)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Close)
	const lease = 2 * time.Second // a write that would be let through behind it has as long to come
	late := 0
	for tries := 1; late < 5; tries++ {
		deadline := time.Now().Add(lease)
		written := make(chan error, 1)
		go func() { written <- f.ExtendLease(t.Context(), deadline, 0) }()
		select {
		case <-way.held:
		case err := <-written: // this machine stood still for a whole lease
			if err == nil || tries > 100 {
				t.Fatalf("lease write %d of %d was not held: %v", late+1, tries, err)
			}
			continue
		}
		late++
		waitUntil(t, "the lease is over", func() bool { return time.Now().After(deadline) })
		way.release <- struct{}{}
		if err := <-written; err != nil {
			t.Fatal(err)
		}
		if err := s.try("INSERT INTO item VALUES (1)"); sqlState(err) != CodeLeaseRunOut {
			t.Fatalf("lease write %d arrived when its lease was over, and a write got %v, want SQLSTATE %s", late, err, CodeLeaseRunOut)
		}
	}
}

// heldWay passes connections on to a server, and holds whatever is sent with certain words in it.
type heldWay struct {
	port    int
	held    chan struct{} // something is held
	release chan struct{}
}

func newHeldWay(t *testing.T, server int, words []byte) *heldWay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &heldWay{port: l.Addr().(*net.TCPAddr).Port, held: make(chan struct{}), release: make(chan struct{})}
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			to, err := net.Dial("tcp", "127.0.0.1:"+strconv.Itoa(server))
			if err != nil {
				t.Error(err)
				from.Close()
				return
			}
			passing.Go(func() { w.pass(to, from, words) })
			passing.Go(func() { w.pass(from, to, nil) })
		}
	})
	t.Cleanup(func() { // after the connections' ends are closed by their owners
		l.Close()
		passing.Wait()
	})
	return w
}

// pass copies one direction. A statement of this size arrives in one piece.
func (w *heldWay) pass(to, from net.Conn, words []byte) {
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if len(words) > 0 && bytes.Contains(buf[:n], words) {
			w.held <- struct{}{}
			<-w.release
		}
		if _, e := to.Write(buf[:n]); e != nil || err == io.EOF || err != nil {
			return
		}
	}
}
