package store

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/atollhq/atoll/topo"
)

// Ownership reads the ownership document; ErrNotFound before Bootstrap.
func (c *Client) Ownership(ctx context.Context) (topo.Ownership, Revision, error) {
	kv, err := c.get(ctx, c.keys.ownership())
	if err != nil {
		return topo.Ownership{}, 0, err
	}
	return decodeOwnership(kv)
}

// Lease reads a site's lease; ErrNotFound if the site never had one.
func (c *Client) Lease(ctx context.Context, site topo.SiteID) (Lease, Revision, error) {
	began := time.Now()
	kv, err := c.get(ctx, c.keys.site(site))
	if err != nil {
		return Lease{}, 0, err
	}
	env, err := unseal(string(kv.Key), kv.Value)
	if err != nil {
		return Lease{}, 0, err
	}
	l, err := decodeLease(env.Body)
	if err != nil {
		return Lease{}, 0, fmt.Errorf("store: record %s: %w", kv.Key, err)
	}
	c.wasRead(site, told{kv.ModRevision, string(kv.Value), began})
	return l, Revision(kv.ModRevision), nil
}

// Leases reads the lease of every site that ever had one.
func (c *Client) Leases(ctx context.Context) (map[topo.SiteID]Lease, error) {
	kvs, err := c.list(ctx, c.keys.sites())
	if err != nil {
		return nil, err
	}
	out := make(map[topo.SiteID]Lease, len(kvs))
	for _, kv := range kvs {
		env, err := unseal(string(kv.Key), kv.Value)
		if err != nil {
			return nil, err
		}
		l, err := decodeLease(env.Body)
		if err != nil {
			return nil, fmt.Errorf("store: record %s: %w", kv.Key, err)
		}
		out[topo.SiteID(kv.Key[len(c.keys.sites()):])] = l
	}
	return out, nil
}

// Handover reads the record of one handover.
func (c *Client) Handover(ctx context.Context, id topo.HandoverID) (json.RawMessage, Revision, error) {
	if err := checkHandoverID(id); err != nil {
		return nil, 0, fmt.Errorf("store: %w", err)
	}
	kv, err := c.get(ctx, c.keys.handover(id))
	if err != nil {
		return nil, 0, err
	}
	env, err := unseal(string(kv.Key), kv.Value)
	return env.Body, Revision(kv.ModRevision), err
}

// Handovers reads every handover, newest first (ids sort by start time).
func (c *Client) Handovers(ctx context.Context) ([]Handover, error) {
	kvs, err := c.list(ctx, c.keys.handovers())
	if err != nil {
		return nil, err
	}
	out := make([]Handover, len(kvs))
	for i, kv := range kvs {
		env, err := unseal(string(kv.Key), kv.Value)
		if err != nil {
			return nil, err
		}
		out[i] = Handover{topo.HandoverID(kv.Key[len(c.keys.handovers()):]), Revision(kv.ModRevision), env.Body}
	}
	return out, nil
}

// Audit reads the newest entries of the audit, newest first; limit 0 reads all.
func (c *Client) Audit(ctx context.Context, limit int) ([]AuditEntry, error) {
	kvs, err := c.list(ctx, c.keys.audits(), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return nil, err
	}
	out := make([]AuditEntry, len(kvs))
	for i, kv := range kvs {
		env, err := unseal(string(kv.Key), kv.Value)
		if err != nil {
			return nil, err
		}
		if err := decodeStrict(env.Body, &out[i]); err != nil {
			return nil, fmt.Errorf("store: record %s: %w", kv.Key, err)
		}
	}
	return out, nil
}

func (c *Client) get(ctx context.Context, key string) (*mvccpb.KeyValue, error) {
	var kv *mvccpb.KeyValue
	err := c.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		resp, err := etcd.Get(ctx, key)
		if err == nil && len(resp.Kvs) > 0 {
			kv = resp.Kvs[0]
		}
		return err
	})
	switch {
	case err != nil:
		return nil, fmt.Errorf("store: read %s: %w", key, err)
	case kv == nil:
		return nil, fmt.Errorf("store: %s: %w", key, ErrNotFound)
	}
	return kv, nil
}

// list reads the records below a prefix, the highest key first.
func (c *Client) list(ctx context.Context, prefix string, opts ...clientv3.OpOption) ([]*mvccpb.KeyValue, error) {
	opts = append(opts, clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend))
	var kvs []*mvccpb.KeyValue
	err := c.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		resp, err := etcd.Get(ctx, prefix, opts...)
		if err == nil {
			kvs = resp.Kvs
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("store: list %s: %w", prefix, err)
	}
	return kvs, nil
}

func decodeOwnership(kv *mvccpb.KeyValue) (topo.Ownership, Revision, error) {
	env, err := unseal(string(kv.Key), kv.Value)
	if err != nil {
		return topo.Ownership{}, 0, err
	}
	o, err := topo.DecodeOwnership(env.Body)
	if err != nil {
		return topo.Ownership{}, 0, fmt.Errorf("store: record %s: %w", kv.Key, err)
	}
	return o, Revision(kv.ModRevision), nil
}
