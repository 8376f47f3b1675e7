package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/store"
	"github.com/atollhq/atoll/topo"
)

// member is a store of one member that all tests share, each with a deployment of its own.
var member struct {
	once sync.Once
	addr string
	id   *pki.Identity
	err  error
	stop func()
	next atomic.Int64
}

func TestMain(m *testing.M) {
	code := m.Run()
	if member.stop != nil {
		member.stop()
	}
	os.Exit(code)
}

func startMember() error {
	dir, err := os.MkdirTemp("", "atoll-control-")
	if err != nil {
		return err
	}
	pkiDir := filepath.Join(dir, "pki")
	if err := errors.Join(pki.Init(pkiDir, "shop"), pki.Issue(pkiDir, pki.Role{Kind: pki.Site, Name: "a"})); err != nil {
		return err
	}
	if member.id, err = pki.Load(pkiDir, "site-a"); err != nil {
		return err
	}
	var addrs []string
	for range 2 {
		addr, err := loopback.Addr()
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
	}
	member.addr = addrs[0]
	cfg := store.MemberConfig{Deployment: "shop", Site: "a", Dir: filepath.Join(dir, "store"), ListenClient: addrs[0], ListenPeer: addrs[1],
		AdvertiseClient: addrs[0], AdvertisePeer: addrs[1], InitialCluster: map[topo.SiteID]string{"a": addrs[1]}}
	cfg.CA, cfg.Cert, cfg.Key = member.id.Files()
	ready, ended := make(chan struct{}), make(chan error, 1)
	cfg.Ready = func() { close(ready) }
	ctx, cancel := context.WithCancel(context.Background())
	go func() { ended <- store.RunMember(ctx, cfg) }()
	member.stop = func() {
		cancel()
		<-ended
		os.RemoveAll(dir)
	}
	select {
	case <-ready:
		return nil
	case err := <-ended:
		ended <- err
		return err
	}
}

// realStore is a client of a deployment of its own.
func realStore(t *testing.T) *store.Client {
	t.Helper()
	member.once.Do(func() { member.err = startMember() })
	if member.err != nil {
		t.Fatal(member.err)
	}
	c, err := store.Open(t.Context(), store.Config{Deployment: fmt.Sprintf("t%d", member.next.Add(1)), Endpoints: []store.Endpoint{{Site: "a", Addr: member.addr}},
		Try: 3 * time.Second, TLS: func(s topo.SiteID) *tls.Config { return member.id.ClientTLS(s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}
