package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/supervise"
	"github.com/atollhq/atoll/topo"
)

const (
	tunDevice  = "/dev/net/tun"
	deviceName = "atoll"
	deviceMTU  = 1500

	// isolatedEnv holds the process id of a lab that has moved into a network namespace of its own.
	isolatedEnv = "ATOLL_LAB_NETNS"
)

// isolate moves this process into a network namespace and a mount namespace of its own, by executing itself again from a thread that is there:
// the threads of a Go program cannot be moved together. It returns in the process that has arrived. Nothing of the
// machine's own network and mounts is touched, and the kernel removes the namespaces with their last process, however that ends.
func isolate() error {
	if isolated() {
		return nil
	}
	if os.Geteuid() != 0 {
		return errors.New("lab: --netns makes network namespaces, which takes root: run it as root, or leave --netns out")
	}
	tun, err := os.OpenFile(tunDevice, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("lab: --netns needs the device %s, which is missing or closed to this process (%w): load the kernel's module tun with `modprobe tun`, or hand the device to the container", tunDevice, err)
	}
	tun.Close()
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("lab: --netns: which program this is: %w", err)
	}
	runtime.LockOSThread() // for good: it ends in the execution, or with an error that ends the lab
	if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("lab: --netns: namespaces for the lab (%w): a container must have the capability SYS_ADMIN", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("lab: --netns: keep the lab's mounts to itself: %w", err)
	}
	err = syscall.Exec(self, os.Args, append(os.Environ(), isolatedEnv+"="+strconv.Itoa(os.Getpid())))
	return fmt.Errorf("lab: --netns: execute %s again: %w", self, err)
}

// isolated: children inherit the variable, but not the process id.
func isolated() bool { return os.Getenv(isolatedEnv) == strconv.Itoa(os.Getpid()) }

// namespace is a network namespace with loopback and one device, whose other end is the router's.
type namespace struct {
	addr   netip.Addr
	device *os.File
	file   *os.File // keeps it, and leads into it
}

// newNamespace makes one whose device has the address.
func newNamespace(addr netip.Prefix) (*namespace, error) {
	type made struct {
		ns  *namespace
		err error
	}
	done := make(chan made)
	go func() {
		// Never unlocked: the thread ends with this goroutine, or is put away for good where it is the program's first, so
		// that nothing else finds itself in there.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: fmt.Errorf("lab: make a network namespace: %w", err)}
			return
		}
		ns, err := furnish(addr)
		done <- made{ns, err}
	}()
	m := <-done
	return m.ns, m.err
}

// furnish puts loopback and a device into the namespace of the calling thread.
func furnish(addr netip.Prefix) (_ *namespace, err error) {
	ns := &namespace{addr: addr.Addr()}
	defer func() {
		if err != nil {
			ns.Close()
		}
	}()
	if ns.file, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return nil, fmt.Errorf("lab: network namespace: %w", err)
	}
	if ns.device, err = openTUN(); err != nil {
		return nil, err
	}
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lab: configure a network namespace: %w", err)
	}
	defer unix.Close(sock)
	set := func(device string, request uint, fill func(*unix.Ifreq) error) {
		if err != nil {
			return
		}
		ifr, e := unix.NewIfreq(device)
		if e == nil {
			e = fill(ifr)
		}
		if e == nil {
			e = unix.IoctlIfreq(sock, request, ifr)
		}
		if e != nil {
			err = fmt.Errorf("lab: configure %s in a network namespace: %w", device, e)
		}
	}
	up := func(ifr *unix.Ifreq) error { ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }
	ip, mask := addr.Addr().AsSlice(), net.CIDRMask(addr.Bits(), 32)
	set("lo", unix.SIOCSIFFLAGS, up)
	set(deviceName, unix.SIOCSIFADDR, func(ifr *unix.Ifreq) error { return ifr.SetInet4Addr(ip) })
	set(deviceName, unix.SIOCSIFNETMASK, func(ifr *unix.Ifreq) error { return ifr.SetInet4Addr(mask) })
	set(deviceName, unix.SIOCSIFMTU, func(ifr *unix.Ifreq) error { ifr.SetUint32(deviceMTU); return nil })
	set(deviceName, unix.SIOCSIFFLAGS, up)
	return ns, err
}

// openTUN makes the device in the namespace of the calling thread.
func openTUN() (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "lab: open", Path: tunDevice, Err: err}
	}
	ifr, err := unix.NewIfreq(deviceName)
	if err == nil {
		ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("lab: make a device of %s: %w", tunDevice, err)
	}
	return os.NewFile(uintptr(fd), tunDevice), nil // not blocking: closing it ends a read
}

// enter moves the calling thread into the namespace.
func (ns *namespace) enter() error {
	if err := unix.Setns(int(ns.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("lab: enter a network namespace: %w", err)
	}
	return nil
}

// path names it for `nsenter --net`. /proc/PID/ns/net would be that of one thread.
func (ns *namespace) path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd()) }

// Close lets go of it; it is gone with the last process in it.
func (ns *namespace) Close() error {
	var err error
	for _, f := range []*os.File{ns.device, ns.file} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// namespaces is the ground of `--netns`: every site in a network namespace of its own, with the same ports at an address
// of its own, and a router of packets between them and the lab.
type namespaces struct {
	sites  map[topo.SiteID]*namespace
	router *router
}

// packets counts what passed between namespaces; nil where there are none.
func (d *Deployment) packets() *Packets {
	s, ok := d.ground.(*namespaces)
	if !ok {
		return nil
	}
	p := s.router.packets()
	return &p
}

// Addresses are 10.77.N.1: N is 0 for the lab, and counts the sites.
func siteAddr(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(n), 1}), 16)
}

// newNamespaces makes the sites' namespaces and starts the router, which ends with the network.
func newNamespaces(n *Network, sites []topo.SiteID) (*namespaces, error) {
	if !isolated() {
		panic("BUG: the lab stands in the machine's own network namespace")
	}
	r := newRouter(n, kindOfPort)
	s := &namespaces{router: r, sites: map[topo.SiteID]*namespace{}}
	for i, site := range append([]topo.SiteID{""}, sites...) {
		open := newNamespace
		if site == "" {
			open = furnish // the lab's, in which this thread is like every other one that nobody moved
		}
		ns, err := open(siteAddr(i))
		if err == nil {
			err = n.closeWith(ns)
		}
		if err != nil {
			return nil, err
		}
		s.sites[site] = ns
		r.attach(site, ns.addr, ns.device)
	}
	r.run()
	return s, nil
}

// Ports of a site; those of gateways follow one another.
const (
	portStoreClient = 2379
	portStorePeer   = 2380
	portDatabase    = 5432
	portAPI         = 7400
	portLink        = 7401
	portGateway     = 8080
	portPeer        = 8440
	portAdmin       = 8480
	portApp         = 9000
)

// kindOfPort tells what listens on a port at every site.
func kindOfPort(port uint16) Kind {
	switch {
	case port == portStoreClient:
		return StoreClient
	case port == portStorePeer:
		return StorePeer
	case port == portAPI:
		return AgentAPI
	case port == portLink:
		return Link
	case port >= portPeer && port < portAdmin:
		return GatewayPeer
	}
	return AnyKind
}

func (s *namespaces) addresses(site topo.SiteID, witness bool, gateways int) (*addresses, error) {
	at := func(port int) string { return netip.AddrPortFrom(s.sites[site].addr, uint16(port)).String() }
	a := &addresses{storeClient: at(portStoreClient), storePeer: at(portStorePeer), gateways: map[string]gatewayAddresses{}}
	a.peerName = a.storePeer
	if witness {
		return a, nil
	}
	a.api, a.link, a.app = at(portAPI), at(portLink), at(portApp)
	a.database, a.databasePath, a.namespace = portDatabase, local(portDatabase), s.sites[site].path()
	for i := range gateways {
		a.gateways[fmt.Sprintf("g%d", i+1)] = gatewayAddresses{at(portGateway + i), at(portPeer + i), local(portAdmin + i)}
	}
	return a, nil
}

// reach has nothing to say: every site's addresses are reached as they are.
func (s *namespaces) reach(topo.SiteID, topo.SiteID, *addresses) (*spec.Reach, error) {
	return nil, nil
}

// peerEnv takes away the proxy that the machine may have for the web.
func (s *namespaces) peerEnv(topo.SiteID, map[topo.SiteID]*addresses) ([]string, error) {
	return []string{"HTTPS_PROXY=", "https_proxy=", "NO_PROXY=*", "no_proxy=*"}, nil
}

func (s *namespaces) start(site topo.SiteID, cmd *exec.Cmd) (*supervise.Process, error) {
	if site == "" {
		return supervise.Start(cmd)
	}
	return supervise.StartWithin(cmd, s.sites[site].enter)
}
