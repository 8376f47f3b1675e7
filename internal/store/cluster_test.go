package store

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/topo"
)

// Members run as child processes: this test binary, started again with its configuration in the environment.
const memberEnv = "ATOLL_TEST_STORE_MEMBER"

func TestMain(m *testing.M) {
	if conf := os.Getenv(memberEnv); conf != "" {
		os.Exit(memberMain(conf))
	}
	code := m.Run()
	if shared.cluster != nil {
		shared.cluster.stop()
	}
	if code == 0 {
		err := goleak.Find( // a member that found its data damaged leaves these; its process is meant to end
			goleak.IgnoreAnyFunction("go.etcd.io/etcd/server/v3/storage.OpenBackend"),
			goleak.IgnoreAnyFunction("go.etcd.io/etcd/client/pkg/v3/transport.(*tlsListener).acceptLoop"))
		if err != nil {
			fmt.Fprintln(os.Stderr, "goroutines left behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// memberConf is MemberConfig without its functions.
type memberConf struct {
	Deployment                     string
	Site                           topo.SiteID
	Dir                            string
	ListenClient, ListenPeer       string
	AdvertiseClient, AdvertisePeer string
	InitialCluster                 map[topo.SiteID]string
	Clients                        map[topo.SiteID]string
	CA, Cert, Key                  string
}

func (m memberConf) config() MemberConfig {
	return MemberConfig{
		Deployment: m.Deployment, Site: m.Site, Dir: m.Dir,
		ListenClient: m.ListenClient, ListenPeer: m.ListenPeer,
		AdvertiseClient: m.AdvertiseClient, AdvertisePeer: m.AdvertisePeer,
		InitialCluster: m.InitialCluster, Clients: m.Clients, CA: m.CA, Cert: m.Cert, Key: m.Key,
		Heartbeat: 50 * time.Millisecond, Election: 500 * time.Millisecond,
	}
}

func memberMain(conf string) int {
	var mc memberConf
	if err := json.Unmarshal([]byte(conf), &mc); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() { // the parent's death closes stdin: no member outlives its test
		_, _ = bufio.NewReader(os.Stdin).ReadByte()
		os.Exit(3)
	}()
	cfg := mc.config()
	cfg.Ready = func() { fmt.Println("ready") }
	cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	if err := RunMember(ctx, cfg); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// cluster is three members, a, b and w.
type cluster struct {
	dir     string
	ca      *testCA
	members map[topo.SiteID]*process
	proxies map[topo.SiteID]*connectProxy // of the member's outgoing peer traffic; nil without proxies
}

type process struct {
	conf memberConf
	env  []string
	cmd  *exec.Cmd
	in   *os.File // kept open: the child ends when it closes
	said *said    // to stderr
	come chan bool
}

// said collects what a process says.
type said struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *said) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(s.text.String(), text)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

var sites = []topo.SiteID{"a", "b", "w"}

// startCluster starts three members. With proxied, members advertise host names that do not exist, and reach each
// other only through one proxy per member.
func startCluster(t testing.TB, proxied bool) *cluster {
	t.Helper()
	c := newCluster(t, proxied, sites...)
	c.start(t, sites...)
	return c
}

// newCluster prepares members; the first three are each other's initial ones.
func newCluster(t testing.TB, proxied bool, of ...topo.SiteID) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "atoll-store-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{dir: dir, ca: newTestCA(t, dir), members: map[topo.SiteID]*process{}, proxies: map[topo.SiteID]*connectProxy{}}
	initial, clients := map[topo.SiteID]string{}, map[topo.SiteID]string{}
	listen := map[string]string{} // advertised peer address → where it listens
	for _, s := range of {
		conf := memberConf{
			Deployment: "shop", Site: s, Dir: filepath.Join(dir, "data-"+string(s)),
			ListenClient: freeAddr(t), ListenPeer: freeAddr(t), InitialCluster: initial, Clients: clients,
		}
		conf.AdvertiseClient, conf.AdvertisePeer = conf.ListenClient, conf.ListenPeer
		if proxied {
			conf.AdvertisePeer = string(s) + ".store.atoll:2380"
		}
		conf.CA, conf.Cert, conf.Key = c.ca.issue(t, "site-"+string(s), SiteServerName)
		if len(initial) < len(sites) {
			initial[s], clients[s], listen[conf.AdvertisePeer] = conf.AdvertisePeer, conf.AdvertiseClient, conf.ListenPeer
		} else { // of an edited spec
			conf.InitialCluster, conf.Clients = maps.Clone(initial), maps.Clone(clients)
			conf.InitialCluster[s], conf.Clients[s] = conf.AdvertisePeer, conf.AdvertiseClient
		}
		c.members[s] = &process{conf: conf}
	}
	for _, s := range of {
		if proxied {
			c.proxies[s] = newConnectProxy(t, listen)
			c.members[s].env = []string{"HTTPS_PROXY=http://" + c.proxies[s].addr()}
		}
	}
	return c
}

// start starts members at the same time, and waits for all.
func (c *cluster) start(t testing.TB, of ...topo.SiteID) {
	t.Helper()
	var wg sync.WaitGroup
	for _, s := range of {
		wg.Go(func() { c.members[s].start(t) })
	}
	wg.Wait()
}

func (c *cluster) stop() {
	for _, p := range c.members {
		p.kill()
	}
	for _, p := range c.proxies {
		p.close()
	}
	os.RemoveAll(c.dir)
}

// start returns when the member is ready.
func (p *process) start(t testing.TB) {
	t.Helper()
	p.spawn(t)
	p.await(t)
}

// spawn starts the member; it may wait for others.
func (p *process) spawn(t testing.TB) {
	body, err := json.Marshal(p.conf)
	if err != nil {
		t.Error(err)
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Error(err)
		return
	}
	p.in, p.said, p.come = w, &said{}, make(chan bool, 1)
	p.cmd = exec.Command(os.Args[0], "-test.run=^$")
	p.cmd.Env = append(os.Environ(), memberEnv+"="+string(body))
	p.cmd.Env = append(p.cmd.Env, p.env...)
	p.cmd.Stdin, p.cmd.Stderr = r, p.said
	if testing.Verbose() && os.Getenv("ATOLL_TEST_STORE_LOG") != "" {
		p.cmd.Stderr = os.Stderr
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Error(err)
		return
	}
	if err := p.cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	r.Close()
	come := p.come
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		come <- strings.TrimSpace(line) == "ready"
	}()
}

// await returns when the member is ready.
func (p *process) await(t testing.TB) {
	t.Helper()
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	select {
	case ok := <-p.come:
		if !ok {
			t.Errorf("member %s ended before it was ready: %s", p.conf.Site, p.said)
		}
	case <-time.After(60 * time.Second):
		p.cmd.Process.Kill()
		<-p.come
		t.Errorf("member %s is not ready after 60 s: %s", p.conf.Site, p.said)
	}
}

// ended waits for a member that ends by itself, and returns what it said.
func (p *process) ended(t testing.TB) string {
	t.Helper()
	stuck := time.AfterFunc(60*time.Second, func() {
		t.Errorf("member %s goes on: %s", p.conf.Site, p.said)
		p.cmd.Process.Kill()
	})
	p.cmd.Wait()
	stuck.Stop()
	p.in.Close()
	p.cmd = nil
	return p.said.String()
}

func (p *process) signal(sig syscall.Signal) { p.cmd.Process.Signal(sig) }

// terminate asks the member to end, and waits for it.
func (p *process) terminate() error {
	p.signal(syscall.SIGTERM)
	err := p.cmd.Wait()
	p.in.Close()
	p.cmd = nil
	return err
}

func (p *process) kill() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	p.signal(syscall.SIGCONT)
	p.cmd.Process.Kill()
	p.cmd.Wait()
	p.in.Close()
	p.cmd = nil
}

// shared is a healthy cluster for all tests that leave it so; each uses a deployment of its own in it.
var shared struct {
	once    sync.Once
	cluster *cluster
}

func sharedCluster(t testing.TB) *cluster {
	t.Helper()
	shared.once.Do(func() { shared.cluster = startCluster(t, false) })
	if shared.cluster == nil {
		t.Fatal("the shared cluster did not start")
	}
	return shared.cluster
}

// config is a client's, for members of the given sites (none: all).
func (c *cluster) config(t testing.TB, deployment string, of ...topo.SiteID) Config {
	t.Helper()
	ca, cert, key := c.ca.issue(t, "site-client", SiteServerName)
	cfg := Config{Deployment: deployment, Prefer: "a", Peers: map[topo.SiteID]string{}, TLS: func(topo.SiteID) *tls.Config { return clientTLS(t, ca, cert, key) }}
	if len(of) == 0 {
		of = sites
	}
	for _, s := range of {
		cfg.Endpoints = append(cfg.Endpoints, Endpoint{s, c.members[s].conf.AdvertiseClient})
		cfg.Peers[s] = c.members[s].conf.AdvertisePeer
	}
	return cfg
}

func (c *cluster) client(t testing.TB, deployment string, of ...topo.SiteID) *Client {
	t.Helper()
	return open(t, c.config(t, deployment, of...))
}

func open(t testing.TB, cfg Config) *Client {
	t.Helper()
	cl, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func freeAddr(t testing.TB) string {
	t.Helper()
	addr, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// testCA issues certificates of the form that a deployment has.
type testCA struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	mu   sync.Mutex
}

func newTestCA(t testing.TB, dir string) *testCA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", der)
	return &testCA{dir: dir, cert: cert, key: key}
}

// issue returns the files of the authority, the certificate and the key.
func (ca *testCA) issue(t testing.TB, name string, dns ...string) (caFile, cert, key string) {
	t.Helper()
	ca.mu.Lock()
	defer ca.mu.Unlock()
	caFile, cert, key = filepath.Join(ca.dir, "ca.crt"), filepath.Join(ca.dir, name+".crt"), filepath.Join(ca.dir, name+".key")
	if _, err := os.Stat(cert); err == nil {
		return caFile, cert, key
	}
	priv, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, DNSNames: dns,
		URIs:      []*url.URL{{Scheme: "atoll", Host: "shop", Path: "/" + strings.Replace(name, "-", "/", 1)}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &priv.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, key, "PRIVATE KEY", raw)
	writePEM(t, cert, "CERTIFICATE", der)
	return caFile, cert, key
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

func clientTLS(t testing.TB, ca, cert, key string) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(ca)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(body)
	return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: SiteServerName, MinVersion: tls.VersionTLS13}
}
