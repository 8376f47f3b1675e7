package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/atollhq/atoll/topo"
)

// listenFor is how long a test listens to be sure that nothing comes: several retransmissions of an open connection.
const listenFor = 900 * time.Millisecond

// patience is for what is sent again: the kernel waits twice as long before each attempt.
const patience = 20 * time.Second

func needNamespaces(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	f, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no device to make: %v", err)
	}
	f.Close()
}

// country is two sites in namespaces, with a listener at b.
type country struct {
	*Network
	router   *router
	sites    map[topo.SiteID]*namespace
	listener net.Listener
}

func newCountry(t *testing.T) *country {
	t.Helper()
	needNamespaces(t)
	c := &country{Network: testNetwork(t), sites: map[topo.SiteID]*namespace{}}
	c.router = newRouter(c.Network, kindOfPort)
	for i, site := range []topo.SiteID{"a", "b"} {
		ns, err := newNamespace(siteAddr(i + 1))
		if err == nil {
			err = c.closeWith(ns)
		}
		if err != nil {
			t.Fatal(err)
		}
		c.sites[site] = ns
		c.router.attach(site, ns.addr, ns.device)
	}
	c.router.run()
	c.within(t, "b", func() (err error) {
		c.listener, err = net.Listen("tcp4", netip.AddrPortFrom(c.sites["b"].addr, portLink).String())
		return err
	})
	t.Cleanup(func() { c.listener.Close() })
	return c
}

// within runs f on a thread in a site's namespace. The sockets that it opens stay there.
func (c *country) within(t *testing.T, site topo.SiteID, f func() error) {
	t.Helper()
	if err := c.visit(site, f); err != nil {
		t.Fatalf("at %s: %v", site, err)
	}
}

func (c *country) visit(site topo.SiteID, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := c.sites[site].enter()
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// connect dials from a to b's listener.
func (c *country) connect(t *testing.T) (a, b net.Conn) {
	t.Helper()
	var both errgroup.Group
	both.Go(func() (err error) {
		b, err = c.listener.Accept()
		return err
	})
	both.Go(func() error {
		return c.visit("a", func() (err error) {
			a, err = net.DialTimeout("tcp4", c.listener.Addr().String(), patience)
			return err
		})
	})
	if err := both.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func write(t *testing.T, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(to, text); err != nil {
		t.Fatal(err)
	}
}

func arrives(t *testing.T, at net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	_ = at.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.ReadFull(at, got); err != nil || string(got) != want {
		t.Fatalf("%q, %v; want %q", got, err, want)
	}
}

// silent fails on a byte, and on any end of the connection.
func silent(t *testing.T, at net.Conn) {
	t.Helper()
	_ = at.SetReadDeadline(time.Now().Add(listenFor))
	var b [1]byte
	if n, err := at.Read(b[:]); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("%d bytes, %v; want silence", n, err)
	}
}

func TestNamespaces_CarryTCP(t *testing.T) {
	t.Parallel()
	c := newCountry(t)
	began := time.Now()
	a, b := c.connect(t)
	if took := time.Since(began); took < testRTT {
		t.Errorf("connected after %v, a round trip is %v", took, testRTT)
	}
	began = time.Now()
	write(t, a, "question")
	arrives(t, b, "question")
	write(t, b, "answer")
	arrives(t, a, "answer")
	if took := time.Since(began); took < testRTT {
		t.Errorf("answered after %v, a round trip is %v", took, testRTT)
	}
}

// Nothing passes a cut, not even an end; the connection outlives it and goes on, because the kernel sends again.
func TestNamespaces_Cut(t *testing.T) {
	t.Parallel()
	c := newCountry(t)
	a, b := c.connect(t)
	c.Cut("a", "b")
	write(t, a, "there")
	write(t, b, "back")
	silent(t, a)
	silent(t, b)
	if c.router.dropped.Load() < 2 {
		t.Errorf("%d packets were dropped", c.router.dropped.Load())
	}
	c.Heal("a", "b")
	arrives(t, b, "there")
	arrives(t, a, "back")
	write(t, a, " and on")
	arrives(t, b, " and on")
}

func TestNamespaces_CutOneWay(t *testing.T) {
	t.Parallel()
	c := newCountry(t)
	a, b := c.connect(t)
	c.CutOneWay(Way{"a", "b"}, AnyKind)
	write(t, b, "back")
	arrives(t, a, "back") // and its acknowledgement is lost
	write(t, a, "there")
	silent(t, b)
	silent(t, a) // what b sends again is not new
	c.Heal("a", "b")
	arrives(t, b, "there")
	write(t, b, " again")
	arrives(t, a, " again")
}

// A cut of one kind leaves other ports alone.
func TestNamespaces_CutKind(t *testing.T) {
	t.Parallel()
	c := newCountry(t)
	a, b := c.connect(t)
	c.CutKind("a", "b", StorePeer)
	write(t, a, "1")
	arrives(t, b, "1")
	c.CutKind("a", "b", Link)
	write(t, a, "2")
	silent(t, b)
	c.HealKind("a", "b", Link)
	arrives(t, b, "2")
}

// A SYN into a cut is lost, and sent again.
func TestNamespaces_DialIntoACut(t *testing.T) {
	t.Parallel()
	c := newCountry(t)
	c.Cut("a", "b")
	err := c.visit("a", func() error {
		conn, err := net.DialTimeout("tcp4", c.listener.Addr().String(), listenFor)
		if err == nil {
			conn.Close()
		}
		return err
	})
	var late net.Error
	if !errors.As(err, &late) || !late.Timeout() {
		t.Fatalf("dialling into a cut: %v, want a time-out", err)
	}
	before := c.router.dropped.Load()
	healed := make(chan struct{})
	go func() {
		defer close(healed)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for c.router.dropped.Load() == before { // until the next SYN is lost
			<-tick.C
		}
		c.Heal("a", "b")
	}()
	a, b := c.connect(t)
	<-healed
	write(t, a, "there")
	arrives(t, b, "there")
}

func TestNamespaces_Reset(t *testing.T) {
	t.Parallel()
	c := newCountry(t)
	a, b := c.connect(t)
	write(t, a, "there")
	arrives(t, b, "there")
	write(t, b, "back")
	arrives(t, a, "back")
	c.Reset("b", "a")
	for _, end := range []net.Conn{a, b} {
		_ = end.SetReadDeadline(time.Now().Add(listenFor))
		_, err := end.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) { // the router was not to know what it expects until it sends
			write(t, end, "more")
			_ = end.SetReadDeadline(time.Now().Add(patience))
			_, err = end.Read(make([]byte, 1))
		}
		if !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%v, want a reset", err)
		}
	}
	a, b = c.connect(t)
	write(t, a, "new")
	arrives(t, b, "new")
}

// What is lost is sent again by the kernel, and all arrives in order.
func TestNamespaces_Loss(t *testing.T) {
	t.Parallel()
	c := newCountry(t)
	a, b := c.connect(t)
	c.Lose(Way{"a", "b"}, AnyKind, 0.1)
	text := strings.Repeat("0123456789abcdef", 16<<10)
	var sending errgroup.Group
	sending.Go(func() error { _, err := io.WriteString(a, text); return err })
	arrives(t, b, text)
	if err := sending.Wait(); err != nil {
		t.Error(err)
	}
	if c.router.lost.Load() == 0 {
		t.Error("no packet was lost")
	}
}

// The namespaces of a lab that is killed are gone with it, and so is what ran in them.
func TestNamespaces_AreGoneWithTheLab(t *testing.T) {
	t.Parallel()
	needNamespaces(t)
	lab := exec.Command(os.Args[0])
	lab.Env = append(os.Environ(), roleEnv+"=netns-lab")
	in, err := lab.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := lab.StdoutPipe()
	if err == nil {
		err = lab.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	var child int
	var own, site string
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, e := fmt.Sscan(line, &child, &own, &site); err != nil || e != nil {
		t.Fatalf("the lab says %q, %v, %v", line, err, e)
	}
	mine, err := os.Readlink("/proc/self/ns/net")
	if err != nil || own == mine || site == mine || own == site {
		t.Fatalf("namespaces: the test's %s (%v), the lab's %s, a site's %s; want three", mine, err, own, site)
	}
	if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", child)); err != nil || got != site {
		t.Fatalf("the site's process is in %s, %v; want %s", got, err, site)
	}
	if err := lab.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = lab.Wait() // killed
	eventually(t, "nothing is in the lab's namespaces", func() bool {
		all, _ := filepath.Glob("/proc/[0-9]*/ns/net")
		for _, link := range all {
			if ns, err := os.Readlink(link); err == nil && (ns == own || ns == site) {
				return false
			}
		}
		return true
	})
}

// playNamespaceLab is a lab that is about to be killed.
func playNamespaceLab() error {
	if err := isolate(); err != nil {
		return err
	}
	ground, err := newNamespaces(NewNetwork(testRTT, 0), []topo.SiteID{"a"})
	if err != nil {
		return err
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), roleEnv+"=stubborn")
	proc, err := ground.start("a", child)
	if err != nil {
		return err
	}
	own, err := os.Readlink(ground.sites[""].path())
	if err != nil {
		return err
	}
	site, err := os.Readlink(ground.sites["a"].path())
	if err != nil {
		return err
	}
	fmt.Println(proc.PID(), own, site)
	_, err = bufio.NewReader(os.Stdin).ReadByte()
	return err
}

func TestNamespaces_StartFails(t *testing.T) {
	t.Parallel()
	c := newCountry(t)
	ground := &namespaces{sites: c.sites}
	if _, err := ground.start("a", exec.Command("/does/not/exist")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want that there is no such program", err)
	}
}
