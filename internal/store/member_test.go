package store

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/atollhq/atoll/topo"
)

func TestMembersReachEachOtherThroughProxies(t *testing.T) {
	t.Parallel()
	c := startCluster(t, true)
	t.Cleanup(c.stop)
	if t.Failed() {
		t.FailNow()
	}
	all := c.client(t, "shop")
	if err := all.Bootstrap(within(t, 10*time.Second), firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	for _, from := range sites {
		for _, to := range sites {
			host := c.members[to].conf.AdvertisePeer
			if n := c.proxies[from].seen(host); from != to && n == 0 {
				t.Errorf("%s never dialled %s through its proxy", from, host)
			}
		}
	}

	// a alone: it must not answer, the others must.
	cutOff := func(cut bool) {
		for _, s := range sites {
			for _, o := range sites {
				if s != o && (s == "a" || o == "a") {
					c.proxies[s].setCut(c.members[o].conf.AdvertisePeer, cut)
				}
			}
		}
	}
	onlyA, others := c.client(t, "shop", "a"), c.client(t, "shop", "b", "w")
	cutOff(true)
	eventually(t, 10*time.Second, "b and w go on", func() bool {
		_, _, err := others.Ownership(within(t, time.Second))
		return err == nil
	})
	if _, _, err := onlyA.Ownership(within(t, 1500*time.Millisecond)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("a answered without a quorum: %v", err)
	}
	if _, _, err := all.Ownership(within(t, 5*time.Second)); err != nil {
		t.Errorf("a client that prefers a does not get past it: %v", err)
	}
	cutOff(false)
	eventually(t, 15*time.Second, "a is back", func() bool {
		_, _, err := onlyA.Ownership(within(t, time.Second))
		return err == nil
	})
}

func TestMemberEndsInTimeAndLeavesNothing(t *testing.T) { // not parallel: looks at all goroutines
	sharedCluster(t)
	before := goleak.IgnoreCurrent()
	dir := t.TempDir()
	cfg := oneMember(t, dir).config()
	ready := make(chan struct{})
	cfg.Ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- RunMember(ctx, cfg) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	client, err := Open(ctx, Config{
		Deployment: "shop", Endpoints: []Endpoint{{"a", cfg.AdvertiseClient}},
		TLS: tlsOf(t, cfg),
	})
	if err != nil {
		t.Fatal(err)
	}
	<-client.Watch(ctx) // an open stream is what etcd's Close waits for
	if err := client.Bootstrap(within(t, 5*time.Second), firstOwnership("a")); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	t.Logf("ended in %s", time.Since(start).Round(time.Millisecond))
	client.Close()
	if err := goleak.Find(before, goleak.IgnoreAnyFunction("go.opencensus.io/stats/view.(*worker).start")); err != nil {
		t.Error(err)
	}
}

func TestMemberRefusesToStart(t *testing.T) {
	t.Parallel()
	cases := []struct {
		name   string
		breaks func(t *testing.T, m *memberConf)
		want   []string
	}{
		{"port in use", func(t *testing.T, m *memberConf) {
			l, err := net.Listen("tcp", m.ListenPeer)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, []string{"address in use", "another process listens"}},
		{"data of another deployment", func(t *testing.T, m *memberConf) {
			other := m.config()
			other.Deployment = "books"
			if err := claimDir(other); err != nil {
				t.Fatal(err)
			}
		}, []string{`data of deployment "books"`, "choose another folder"}},
		{"data of another member", func(t *testing.T, m *memberConf) {
			other := m.config()
			other.Site = "b"
			if err := claimDir(other); err != nil {
				t.Fatal(err)
			}
		}, []string{"data of member b", "this is a"}},
		{"other addresses", func(t *testing.T, m *memberConf) {
			other := m.config()
			m.InitialCluster["b"] = "10.0.0.2:2380"
			other.InitialCluster = map[topo.SiteID]string{"a": m.AdvertisePeer, "b": "10.0.0.1:2380"}
			if err := claimDir(other); err != nil {
				t.Fatal(err)
			}
		}, []string{"restore the old addresses"}},
		{"member file of a newer version", func(t *testing.T, m *memberConf) {
			writeFile(t, filepath.Join(m.Dir, memberFileName), `{"format":2}`)
		}, []string{"newer version of atoll"}},
		{"garbage in the member file", func(t *testing.T, m *memberConf) {
			writeFile(t, filepath.Join(m.Dir, memberFileName), "\x00\x01")
		}, []string{"damaged"}},
		{"etcd data of unknown origin", func(t *testing.T, m *memberConf) {
			writeFile(t, filepath.Join(m.Dir, "etcd", "member", "wal", "0.wal"), "x")
		}, []string{"not known whose it is"}},
		{"garbage in etcd's log", func(t *testing.T, m *memberConf) {
			if err := claimDir(m.config()); err != nil {
				t.Fatal(err)
			}
			writeFile(t, filepath.Join(m.Dir, "etcd", "member", "wal", "0000000000000000-0000000000000000.wal"), strings.Repeat("garbage", 1000))
			writeFile(t, filepath.Join(m.Dir, "etcd", "member", "snap", "db"), strings.Repeat("garbage", 1000))
		}, []string{"cannot be used", "Keep the folder"}},
		{"operator's certificate", func(t *testing.T, m *memberConf) {
			ca := newTestCA(t, t.TempDir())
			m.CA, m.Cert, m.Key = ca.issue(t, "operator-anna")
		}, []string{"not a site's", "atoll ca issue site"}},
		{"certificate of another authority", func(t *testing.T, m *memberConf) {
			newTestCA(t, filepath.Dir(m.CA)) // replaces the file
		}, []string{"not good under"}},
		{"key missing", func(t *testing.T, m *memberConf) { m.Key += ".gone" }, []string{"no such file"}},
		{"bad address", func(t *testing.T, m *memberConf) { m.ListenClient = "2379" }, []string{"want host:port"}},
		{"not among the members", func(t *testing.T, m *memberConf) { m.AdvertisePeer = "10.1.1.1:1" }, []string{"list of members"}},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			m := oneMember(t, t.TempDir())
			tc.breaks(t, &m)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cfg := m.config()
			cfg.Ready = func() { t.Error("it started"); cancel() }
			err := RunMember(ctx, cfg)
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("does not say %q", want)
				}
			}
		})
	}
}

func TestMemberRefusesOperators(t *testing.T) {
	t.Parallel()
	c := sharedCluster(t)
	cfg := c.config(t, "refused", "a")
	ca, cert, key := c.ca.issue(t, "operator-anna")
	cfg.TLS = func(topo.SiteID) *tls.Config { return clientTLS(t, ca, cert, key) }
	if _, _, err := open(t, cfg).Ownership(within(t, 2*time.Second)); !errors.Is(err, ErrUnavailable) {
		t.Errorf("an operator's certificate got: %v", err)
	}
}

func oneMember(t *testing.T, dir string) memberConf {
	t.Helper()
	m := memberConf{
		Deployment: "shop", Site: "a", Dir: filepath.Join(dir, "data"),
		ListenClient: freeAddr(t), ListenPeer: freeAddr(t),
	}
	m.AdvertiseClient, m.AdvertisePeer = m.ListenClient, m.ListenPeer
	m.InitialCluster = map[topo.SiteID]string{"a": m.AdvertisePeer}
	m.CA, m.Cert, m.Key = newTestCA(t, dir).issue(t, "site-a", SiteServerName)
	return m
}

func tlsOf(t *testing.T, cfg MemberConfig) func(topo.SiteID) *tls.Config {
	return func(topo.SiteID) *tls.Config { return clientTLS(t, cfg.CA, cfg.Cert, cfg.Key) }
}

func writeFile(t *testing.T, path, body string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, bound time.Duration, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.After(bound)
	for !holds() {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("not within %s: %s", bound, what)
		}
	}
}
