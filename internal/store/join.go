package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.uber.org/zap"

	"github.com/atollhq/atoll/topo"
)

// How a member with an empty folder begins. An empty folder says nothing: it may be the first start of all, a member
// that is to join, or one that has lost its disk, and with it what it voted for. Only the other members know, so it asks
// them until it is certain, and never begins a store beside one that may be there.

const (
	askAgain     = 300 * time.Millisecond
	askBound     = 2 * time.Second
	remindEvery  = 30 * time.Second
	maxSighting  = 256 << 10
	membersPath  = "/members" // of etcd's peer address; answered without a leader
	waitHeader   = "Atoll-Store-Waiting"
	etcdIDHeader = "X-Etcd-Cluster-ID"
)

// ErrFolderLost: the store knows this member, and its folder is empty.
var ErrFolderLost = errors.New("the store knows this member, but its folder is empty")

// sighting is what another member's peer address says.
type sighting struct {
	waiting bool     // it has an empty folder, too
	cluster string   // id of its cluster; "" if it is waiting
	members []listed // of that cluster
	err     error    // it does not answer, or not as a member
}

// listed is a member as etcd's peer address lists it.
type listed struct {
	ID         uint64   `json:"id"`
	Name       string   `json:"name"`
	PeerURLs   []string `json:"peerURLs"`
	ClientURLs []string `json:"clientURLs"` // empty: it has never started
}

// beginning is how a member with an empty folder starts; the zero value waits.
type beginning struct {
	bootstrap bool              // every member is there, and has nothing: the store is new
	join      map[string]string // name → peer address of every member of the store that lists this one, this one too
	wait      string            // what it waits for, and what to do about it
}

// newcomer is a member with an empty folder.
type newcomer struct {
	site    topo.SiteID
	peer    string
	newborn string // id of the cluster that the members of the spec would begin
}

// decide is a pure function of what the other members say.
func (n newcomer) decide(seen map[topo.SiteID]sighting) (beginning, error) {
	me, peer := n.site, n.peer
	var silent []string
	var of topo.SiteID
	for _, site := range slices.Sorted(maps.Keys(seen)) {
		switch s := seen[site]; {
		case s.err != nil:
			silent = append(silent, fmt.Sprintf("%s (%v)", site, s.err))
		case s.waiting:
		case of != "" && seen[of].cluster != s.cluster:
			return beginning{wait: fmt.Sprintf("the members of %s and %s are of different stores; stop the one that is left over from before a recovery", of, site)}, nil
		default:
			of = site
		}
	}
	if of == "" {
		if len(silent) == 0 {
			return beginning{bootstrap: true}, nil
		}
		return beginning{wait: fmt.Sprintf("its folder is empty, and whether there is a store already is known only to members that do not answer: %s; "+
			"start them: a new store begins when all its members are there", strings.Join(silent, ", "))}, nil
	}
	join := map[string]string{}
	mine := false
	for _, m := range seen[of].members {
		at := ""
		if len(m.PeerURLs) > 0 {
			at = strings.TrimPrefix(m.PeerURLs[0], "https://")
		}
		name := m.Name
		if m.Name == string(me) || at == peer {
			switch {
			case len(m.ClientURLs) > 0:
				return beginning{}, fmt.Errorf("%w (says the member of %s): it would forget what it voted for; bring the folder back, or if its disk is lost, "+
					"run `atoll store remove %s`, then `atoll store add %s`, and start it again", ErrFolderLost, of, me, me)
			case at != peer:
				return beginning{}, fmt.Errorf("the store expects member %s at %s, and the spec has it at %s; correct the spec, or run `atoll store remove %s` and `atoll store add %s`", me, at, peer, me, me)
			}
			if m.Name != "" && seen[of].cluster == n.newborn { // the others have just begun it, with this one among them
				return beginning{bootstrap: true}, nil
			}
			if m.Name != "" {
				return beginning{}, fmt.Errorf("the store at %s was begun with this member, which never started, and has changed since; run `atoll store remove %s`, then `atoll store add %s`", of, me, me)
			}
			mine, name = true, string(me)
		}
		if name == "" { // another one that has never started
			name = fmt.Sprintf("%x", m.ID)
		}
		join[name] = at
	}
	if !mine {
		return beginning{wait: fmt.Sprintf("there is a store, at %s, and it does not know this member; run `atoll store add %s`", of, me)}, nil
	}
	return beginning{join: join}, nil
}

// begin fills in how etcd starts; on data that is there, it simply goes on.
func (cfg MemberConfig) begin(ctx context.Context, conf *embed.Config, log *slog.Logger) error {
	if _, err := os.Stat(filepath.Join(conf.Dir, "member", "wal")); err == nil {
		return nil
	}
	urls, err := types.NewURLsMap(conf.InitialCluster)
	if err != nil {
		return err
	}
	born, err := membership.NewClusterFromURLsMap(zap.NewNop(), conf.InitialClusterToken, urls)
	if err != nil {
		return err
	}
	b, err := cfg.awaitBeginning(ctx, newcomer{cfg.Site, cfg.AdvertisePeer, born.ID().String()}, log)
	if err != nil || b.bootstrap {
		return err
	}
	var members []string
	for _, name := range slices.Sorted(maps.Keys(b.join)) {
		members = append(members, name+"=https://"+b.join[name])
	}
	conf.ClusterState = embed.ClusterStateFlagExisting
	conf.InitialCluster = strings.Join(members, ",")
	log.Info("joining the store", "site", cfg.Site, "members", conf.InitialCluster)
	return nil
}

// awaitBeginning asks the other members until it is known how to begin. Meanwhile it tells those who ask that it waits.
func (cfg MemberConfig) awaitBeginning(ctx context.Context, n newcomer, log *slog.Logger) (beginning, error) {
	secure, err := cfg.siteTLS()
	if err != nil {
		return beginning{}, err
	}
	stop, err := cfg.sayWaiting(secure)
	if err != nil {
		return beginning{}, err
	}
	defer stop()
	ask := secure.Clone()
	client := &http.Client{Timeout: askBound, Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: ask, DisableKeepAlives: true}}
	said, reminded := "", time.Now()
	for {
		b, err := n.decide(cfg.sightings(ctx, client))
		if err != nil || b.wait == "" || ctx.Err() != nil {
			return b, errors.Join(err, ctx.Err())
		}
		if b.wait != said || time.Since(reminded) > remindEvery {
			log.Warn("store member waits: "+b.wait, "site", cfg.Site)
			said, reminded = b.wait, time.Now()
		}
		pause := time.NewTimer(askAgain)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return beginning{}, ctx.Err()
		}
	}
}

// sightings asks every other member at once.
func (cfg MemberConfig) sightings(ctx context.Context, client *http.Client) map[topo.SiteID]sighting {
	var mu sync.Mutex
	var wg sync.WaitGroup
	seen := map[topo.SiteID]sighting{}
	for site, peer := range cfg.InitialCluster {
		if site == cfg.Site {
			continue
		}
		wg.Go(func() {
			s := sight(ctx, client, peer)
			mu.Lock()
			defer mu.Unlock()
			seen[site] = s
		})
	}
	wg.Wait()
	return seen
}

func sight(ctx context.Context, client *http.Client, peer string) sighting {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+peer+membersPath, nil)
	if err != nil {
		return sighting{err: err}
	}
	resp, err := client.Do(req)
	if err != nil {
		return sighting{err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxSighting))
	if err != nil {
		return sighting{err: err}
	}
	return parseSighting(resp.StatusCode, resp.Header.Get(waitHeader), resp.Header.Get(etcdIDHeader), body)
}

// parseSighting reads an answer of a peer address.
func parseSighting(status int, waiting, cluster string, body []byte) sighting {
	switch {
	case status == http.StatusServiceUnavailable && waiting != "":
		return sighting{waiting: true}
	case status != http.StatusOK || cluster == "":
		return sighting{err: fmt.Errorf("answers %d, and not as a store member", status)}
	}
	s := sighting{cluster: cluster}
	if err := json.Unmarshal(body, &s.members); err != nil {
		return sighting{err: fmt.Errorf("answers with no list of members: %w", err)}
	}
	if len(s.members) == 0 { // its data is there, and not read yet
		return sighting{err: errors.New("is starting")}
	}
	return s
}

// sayWaiting answers the other members' question at this member's peer address, until stop.
func (cfg MemberConfig) sayWaiting(secure *tls.Config) (stop func(), err error) {
	clients, err := cfg.bind(cfg.ListenClient) // only to see that it can be had: whoever dials it is to go on to another member
	if err != nil {
		return nil, err
	}
	if err := clients.Close(); err != nil {
		return nil, err
	}
	ln, err := cfg.bind(cfg.ListenPeer)
	if err != nil {
		return nil, err
	}
	srv := &http.Server{
		TLSConfig: secure.Clone(), ReadHeaderTimeout: askBound, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set(waitHeader, string(cfg.Site))
			w.WriteHeader(http.StatusServiceUnavailable)
		}),
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = srv.ServeTLS(ln, "", "") // ends with stop
	}()
	return func() { _ = srv.Close(); <-ended }, nil
}

func (cfg MemberConfig) bind(addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", bindAddr(addr))
	if errors.Is(err, syscall.EADDRINUSE) {
		err = fmt.Errorf("address in use (clients %s, peers %s): another process listens there, perhaps this member already runs: %w",
			cfg.ListenClient, cfg.ListenPeer, err)
	}
	return ln, err
}

// siteTLS dials other members, and lets in who shows a site's certificate: as etcd is configured.
func (cfg MemberConfig) siteTLS() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(cfg.CA)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, RootCAs: roots, ClientCAs: roots,
		ServerName: SiteServerName, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: func(state tls.ConnectionState) error { return state.PeerCertificates[0].VerifyHostname(SiteServerName) },
	}, nil
}
