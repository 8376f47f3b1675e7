package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/pkg/v3/featuregate"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"github.com/atollhq/atoll/internal/zaplog"
	"github.com/atollhq/atoll/topo"
)

// SiteServerName is the DNS name in every site's certificate. Members find each other by it: peers are reached
// through proxies and balancers, so that no address says who they are, and etcd checks nothing but host names.
const SiteServerName = "site.atoll.internal"

// closeBound is how long a member may take to end in good order. What it has acknowledged is on disk all along.
const closeBound = 4 * time.Second

// MemberConfig describes one member. Addresses are host:port.
type MemberConfig struct {
	Deployment string
	Site       topo.SiteID
	Dir        string // its data; never shared, never copied to another member

	ListenClient, ListenPeer       string // host must be an IP address, or empty for all
	AdvertiseClient, AdvertisePeer string // where others reach it; host names are resolved by whoever dials (see RunMember)

	// InitialCluster is every member's AdvertisePeer, this one's too, as the spec has them. Only a member with an empty
	// folder goes by it, to find the others; afterwards the store itself knows its members.
	InitialCluster map[topo.SiteID]string
	// Clients is every member's AdvertiseClient: a member that is left over from before a recovery is found out by it.
	// nil: nothing is looked for.
	Clients map[topo.SiteID]string

	CA, Cert, Key string // files; the site's certificate is used as server and as client

	Heartbeat, Election time.Duration // 0: 100 ms and 1 s

	Ready  func()       // called when the member serves, if not nil
	Logger *slog.Logger // nil discards
}

// RunMember runs a member of the store in this process until ctx ends or the member fails. Run it in a process of its
// own: etcd panics when its disk fails, and must not take an agent along.
//
// Clients and peers must show a certificate of a site of this deployment: issued by CA, with SiteServerName in it.
// Peers are dialled at their AdvertisePeer address, through the HTTP proxy that HTTPS_PROXY names unless NO_PROXY
// excepts it or the host is a loopback address; a proxied host name is resolved by the proxy alone.
func RunMember(ctx context.Context, cfg MemberConfig) error {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	broken := make(faults, 1)
	conf, err := cfg.embedConfig(log, broken)
	if err != nil {
		return fmt.Errorf("store member %s: %w", cfg.Site, err)
	}
	if err := claimDir(cfg); err != nil {
		return fmt.Errorf("store member %s: %w", cfg.Site, err)
	}
	switch err := cfg.begin(ctx, conf, log); {
	case ctx.Err() != nil: // while it waited
		return nil
	case err != nil:
		return fmt.Errorf("store member %s: %w", cfg.Site, err)
	}
	ending, end := context.WithCancel(context.Background())
	defer end()
	// Watches would keep Close waiting for its whole bound.
	var last lastAnswers
	leaders := newLeaderships(time.Duration(conf.ElectionMs) * time.Millisecond)
	conf.GRPCAdditionalServerOptions = append(conf.GRPCAdditionalServerOptions, grpc.ChainStreamInterceptor(endStreams(ending)),
		grpc.ChainUnaryInterceptor(last.unary, leaders.unary))

	member, err := startEtcd(cfg, conf, broken)
	if err != nil {
		return fmt.Errorf("store member %s: %w", cfg.Site, err)
	}
	stopping := member.Server.StoppingNotify()
	last.stopping.Store(&stopping)
	others := slices.DeleteFunc(slices.Sorted(maps.Keys(cfg.InitialCluster)), func(s topo.SiteID) bool { return s == cfg.Site })
	log.Info("store member started", "site", cfg.Site, "clients", cfg.ListenClient, "peers", cfg.ListenPeer, "others", others)
	var ready <-chan struct{}
	var watching sync.WaitGroup
	defer watching.Wait() // second
	defer end()           // first
	watching.Go(func() { leaders.watch(ending, member.Server) })
	looked, former := cfg.lookForNewer(ending, &watching, member)
	for {
		select {
		case <-looked: // nobody is told before
			looked = nil
			ready = member.Server.ReadyNotify()
			continue
		case <-ready:
			ready = nil
			log.Info("store member is ready", "site", cfg.Site)
			if cfg.Ready != nil {
				cfg.Ready()
			}
			continue
		case err = <-former:
			err = fmt.Errorf("store member %s: %w", cfg.Site, err)
		case <-ctx.Done():
		case err = <-member.Err():
			err = fmt.Errorf("store member %s: %w", cfg.Site, err)
			select {
			case <-member.Server.StoppingNotify(): // a part of it was the first to say so
				err = fmt.Errorf("%w; %w", cfg.stopped(), err)
			case <-time.After(time.Second):
			}
		case <-member.Server.StopNotify():
			err = cfg.stopped()
		case err = <-broken: // its goroutines are no longer whole: no good order to end in
			return fmt.Errorf("store member %s: etcd cannot go on: %w", cfg.Site, err)
		}
		end()
		return errors.Join(err, closeEtcd(member, cfg.Site))
	}
}

// stopped is why a member ends that nobody told to.
func (cfg MemberConfig) stopped() error {
	return fmt.Errorf("store member %s: etcd has stopped by itself: this member was removed from the store, or see its log", cfg.Site)
}

func (cfg MemberConfig) embedConfig(log *slog.Logger, broken faults) (*embed.Config, error) {
	if err := topo.CheckName(cfg.Deployment); err != nil {
		return nil, fmt.Errorf("deployment: %w", err)
	}
	if got := cfg.InitialCluster[cfg.Site]; got != cfg.AdvertisePeer {
		return nil, fmt.Errorf("advertises %q to its peers, but the list of members has %q", cfg.AdvertisePeer, got)
	}
	if cfg.Heartbeat == 0 {
		cfg.Heartbeat, cfg.Election = 100*time.Millisecond, time.Second
	}
	if cfg.Heartbeat < time.Millisecond || cfg.Election < 5*cfg.Heartbeat || cfg.Election > 50*time.Second {
		return nil, fmt.Errorf("heartbeat %s and election %s; election must be at least 5 heartbeats, and at most 50 s", cfg.Heartbeat, cfg.Election)
	}
	if err := checkCertificate(cfg.CA, cfg.Cert, cfg.Key); err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name, c.Dir = string(cfg.Site), filepath.Join(cfg.Dir, "etcd")
	c.InitialClusterToken = "atoll-" + cfg.Deployment
	var err error
	set := func(into *[]url.URL, addr string) {
		u, e := httpsURL(addr)
		err = errors.Join(err, e)
		*into = []url.URL{u}
	}
	set(&c.ListenClientUrls, bindAddr(cfg.ListenClient))
	set(&c.ListenPeerUrls, bindAddr(cfg.ListenPeer))
	set(&c.AdvertiseClientUrls, cfg.AdvertiseClient)
	set(&c.AdvertisePeerUrls, cfg.AdvertisePeer)
	var members []string
	for _, site := range slices.Sorted(maps.Keys(cfg.InitialCluster)) {
		u, e := httpsURL(cfg.InitialCluster[site])
		err = errors.Join(err, e)
		members = append(members, string(site)+"="+u.String())
	}
	if err != nil {
		return nil, err
	}
	c.InitialCluster = strings.Join(members, ",")
	tls := transport.TLSInfo{
		CertFile: cfg.Cert, KeyFile: cfg.Key, TrustedCAFile: cfg.CA,
		ClientCertAuth:      true,
		ServerName:          SiteServerName,           // what a dialled peer must be, whatever its address
		AllowedHostnames:    []string{SiteServerName}, // what may dial: sites, not operators
		SkipClientSANVerify: true,                     // or etcd would look the dialler's address up in its certificate
	}
	c.PeerTLSInfo, c.ClientTLSInfo = tls, tls
	c.TickMs, c.ElectionMs = uint(cfg.Heartbeat.Milliseconds()), uint(cfg.Election.Milliseconds())
	c.PreVote, c.StrictReconfigCheck = true, true // raft's check-quorum is always on in etcd
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, "1h"
	c.QuotaBackendBytes = 512 << 20
	c.EnableGRPCGateway = false
	gates := c.ServerFeatureGate.(featuregate.MutableFeatureGate)
	if err := gates.Set("CompactHashCheck=true,InitialCorruptCheck=true"); err != nil {
		return nil, err
	}
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zaplog.New(log, "etcd: "), zap.WithFatalHook(broken), zap.WithPanicHook(broken)))
	return c, nil
}

// startEtcd turns what etcd does to say that it cannot start (errors, panics, fatal logs in any goroutine) into errors
// that say what to do. After such an error the process should end: parts of etcd may still run.
func startEtcd(cfg MemberConfig, conf *embed.Config, broken faults) (*embed.Etcd, error) {
	type result struct {
		member *embed.Etcd
		err    error
	}
	started := make(chan result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				select {
				case broken <- fmt.Errorf("%v", p):
				default:
				}
			}
		}()
		member, err := embed.StartEtcd(conf)
		started <- result{member, err}
	}()
	select {
	case r := <-started:
		switch {
		case errors.Is(r.err, syscall.EADDRINUSE):
			return nil, fmt.Errorf("address in use (clients %s, peers %s): another process listens there, perhaps this member already runs: %w",
				cfg.ListenClient, cfg.ListenPeer, r.err)
		case r.err != nil:
			return nil, fmt.Errorf("etcd does not start: %w", r.err)
		}
		return r.member, nil
	case err := <-broken:
		return nil, fmt.Errorf("its data in %s cannot be used: %w; the other members go on without it. "+
			"Keep the folder, and do not start this member on an empty one: it would forget what it voted for", conf.Dir, err)
	}
}

func closeEtcd(member *embed.Etcd, site topo.SiteID) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		member.Close()
	}()
	bound := time.NewTimer(closeBound)
	defer bound.Stop()
	select {
	case <-done:
		return nil
	case <-bound.C:
		return fmt.Errorf("store member %s: not ended within %s; its data is safe, the process may exit", site, closeBound)
	}
}

// endStreams makes every stream end when ctx does.
func endStreams(ctx context.Context) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
		inner, cancel := context.WithCancel(stream.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return handler(srv, endingStream{stream, inner})
	}
}

type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s endingStream) Context() context.Context { return s.ctx }

func httpsURL(addr string) (url.URL, error) {
	if host, port, err := net.SplitHostPort(addr); err != nil || host == "" || port == "" {
		return url.URL{}, fmt.Errorf("address %q; want host:port", addr)
	}
	return url.URL{Scheme: "https", Host: addr}, nil
}

func bindAddr(addr string) string {
	if strings.HasPrefix(addr, ":") {
		return "0.0.0.0" + addr
	}
	return addr
}
