package store

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/atollhq/atoll/topo"
)

// A store that was recovered begins a new generation in a cluster of another id. Members of the former one that come to
// life again must not serve beside it: they end as soon as they see it. Clients that know the newer generation refuse
// them besides (see former in Client), and sites that were told of it accept nothing under an older one.

const lookAgain = 5 * time.Second

// lookForNewer watches the other members until ctx ends. looked is closed after the first look, and former gets an error
// if this member is left over from a former store.
func (cfg MemberConfig) lookForNewer(ctx context.Context, wg *sync.WaitGroup, member *embed.Etcd) (looked <-chan struct{}, former <-chan error) {
	first, found := make(chan struct{}), make(chan error, 1)
	wg.Go(func() {
		if err := cfg.watchNewer(ctx, member, sync.OnceFunc(func() { close(first) })); err != nil {
			found <- err
		}
	})
	return first, found
}

// watchNewer returns an error as soon as another member's store is of a newer generation than this one's; nil when ctx
// ends. looked is called after the first look.
func (cfg MemberConfig) watchNewer(ctx context.Context, member *embed.Etcd, looked func()) error {
	others := map[topo.SiteID]string{}
	for site, addr := range cfg.Clients {
		if site != cfg.Site {
			others[site] = addr
		}
	}
	if len(others) == 0 {
		looked()
		<-ctx.Done()
		return nil
	}
	secure, err := cfg.siteTLS()
	if err != nil {
		return err
	}
	secure.ClientAuth, secure.ClientCAs = tls.NoClientCert, nil
	c := Config{Deployment: cfg.Deployment, TLS: func(topo.SiteID) *tls.Config { return secure }, Try: askBound / 2}
	for _, site := range slices.Sorted(maps.Keys(others)) {
		c.Endpoints = append(c.Endpoints, Endpoint{site, others[site]})
	}
	client, err := Open(ctx, c)
	if err != nil {
		return err
	}
	defer client.Close()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for first := true; ; first = false {
		if err := client.newer(ctx, cfg.Site, client.own(ctx, member)); err != nil {
			return err
		}
		if first {
			looked()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// newer compares what each of the others says for itself, without a quorum, with what this member holds.
func (c *Client) newer(ctx context.Context, here topo.SiteID, mine peeked) error {
	said := make([]peeked, len(c.members))
	var wg sync.WaitGroup
	for i, m := range c.members {
		wg.Go(func() { said[i] = c.peek(ctx, m) })
	}
	wg.Wait()
	for i, m := range c.members {
		if s := said[i]; s.cluster != 0 && s.cluster != mine.cluster && s.generation > mine.generation {
			return fmt.Errorf("the member of %s is of the store's generation %d, and this one is left over from generation %d; "+
				"move its folder away, run `atoll store add %s`, and start it again on an empty one", m.Site, s.generation, mine.generation, here)
		}
	}
	return nil
}

// own is what the member of this process holds.
func (c *Client) own(ctx context.Context, member *embed.Etcd) peeked {
	p := peeked{cluster: uint64(member.Server.Cluster().ID())}
	resp, err := member.Server.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(c.keys.ownership()), Serializable: true})
	if err == nil && len(resp.Kvs) > 0 {
		p.generation = generationOf(resp.Kvs[0])
	}
	return p
}

func generationOf(kv *mvccpb.KeyValue) uint64 {
	o, _, err := decodeOwnership(kv)
	if err != nil {
		return 0
	}
	return o.Generation
}

// peeked is what one member holds, as it knows it.
type peeked struct {
	cluster    uint64
	generation uint64 // of the ownership document; 0: none, or the member does not answer
}

func (c *Client) peek(ctx context.Context, m *clientMember) peeked {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Try)
	defer cancel()
	resp, err := m.etcd.Get(ctx, c.keys.ownership(), clientv3.WithSerializable())
	if err != nil {
		return peeked{}
	}
	p := peeked{cluster: resp.Header.ClusterId}
	if len(resp.Kvs) > 0 {
		p.generation = generationOf(resp.Kvs[0])
	}
	return p
}

// refuseFormer takes the answer of a member of a former store for none: its ownership is over, whatever it accepts. Which
// store is the newer one, their ownership documents say.
func (c *Client) refuseFormer(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := invoke(ctx, method, req, reply, cc, opts...); err != nil {
		return err
	}
	answer, ok := reply.(interface {
		GetHeader() *etcdserverpb.ResponseHeader
	})
	if !ok || answer.GetHeader() == nil {
		return nil
	}
	found := peeked{cluster: answer.GetHeader().ClusterId}
	if c.reigning(found) {
		return nil
	}
	held := &etcdserverpb.RangeResponse{}
	ask := &etcdserverpb.RangeRequest{Key: []byte(c.keys.ownership()), Serializable: true}
	if err := invoke(ctx, etcdserverpb.KV_Range_FullMethodName, ask, held, cc, opts...); err != nil {
		return err
	}
	if len(held.Kvs) > 0 {
		found.generation = generationOf(held.Kvs[0])
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	reign := c.mu.reign
	if reign.cluster == 0 || found.cluster == reign.cluster || found.generation > reign.generation {
		c.mu.reign = found
		return nil
	}
	return status.Errorf(codes.Unavailable, "it is left over from generation %d of the store, which generation %d has replaced", found.generation, reign.generation)
}

func (c *Client) reigning(p peeked) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.reign.cluster == p.cluster
}
