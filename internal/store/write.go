package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/atollhq/atoll/topo"
)

// Change is one transaction: all of it is written, or nothing.
type Change struct {
	Ownership *OwnershipChange
	Handover  *HandoverChange
	Lease     *LeaseChange
	Audit     string // written if not empty
}

// LeaseChange replaces a site's lease of revision Expect by Next: how a failover revokes it, so that a renewal in flight
// fails. With Gone it is taken away: the site is no member any more.
type LeaseChange struct {
	Site   topo.SiteID
	Expect Revision
	Next   Lease
	Gone   bool
}

// OwnershipChange replaces the document of revision Expect by Next.
type OwnershipChange struct {
	Expect Revision
	Next   topo.Ownership
}

// HandoverChange replaces the record of revision Expect (0 creates it) by Body.
type HandoverChange struct {
	ID     topo.HandoverID
	Expect Revision
	Body   json.RawMessage
}

// Renewal is the answer to a renewed lease. Ownership is as of the same transaction; OwnershipRevision is 0 before
// Bootstrap.
type Renewal struct {
	Revision          Revision
	Ownership         topo.Ownership
	OwnershipRevision Revision
}

// Bootstrap writes the first ownership document; ErrConflict if there is one.
func (c *Client) Bootstrap(ctx context.Context, o topo.Ownership) error {
	_, err := c.Commit(ctx, Change{
		Ownership: &OwnershipChange{Expect: 0, Next: o},
		Audit:     fmt.Sprintf("bootstrap: ownership %d.%d", o.Generation, o.Version),
	})
	return err
}

// Commit writes a change in one transaction if every revision is as expected, else ErrConflict. The revision that it
// returns is that of every record written.
func (c *Client) Commit(ctx context.Context, ch Change) (Revision, error) {
	w := write{id: newWrite()}
	if o := ch.Ownership; o != nil {
		if err := o.Next.Validate(); err != nil {
			return 0, fmt.Errorf("store: commit: %w", err)
		}
		if err := w.put(c.keys.ownership(), o.Expect, o.Next.Encode()); err != nil {
			return 0, err
		}
	}
	if h := ch.Handover; h != nil {
		if err := checkHandoverID(h.ID); err != nil {
			return 0, fmt.Errorf("store: commit: %w", err)
		}
		if !json.Valid(h.Body) {
			return 0, fmt.Errorf("store: commit: handover %s: body is not JSON", h.ID)
		}
		if err := w.put(c.keys.handover(h.ID), h.Expect, h.Body); err != nil {
			return 0, err
		}
	}
	if l := ch.Lease; l != nil {
		if err := topo.CheckName(string(l.Site)); err != nil {
			return 0, fmt.Errorf("store: commit: site %w", err)
		}
		if l.Gone && (l.Expect == 0 || ch.Audit == "") { // a deletion leaves nothing to find an uncertain outcome by
			return 0, fmt.Errorf("store: commit: lease of %s cannot be taken away without a revision and an audit line", l.Site)
		}
		if l.Gone {
			w.drop(c.keys.site(l.Site), l.Expect)
		} else {
			body, err := l.Next.encode()
			if err != nil {
				return 0, fmt.Errorf("store: commit: lease of %s: %w", l.Site, err)
			}
			if err := w.put(c.keys.site(l.Site), l.Expect, body); err != nil {
				return 0, err
			}
		}
	}
	if ch.Audit != "" {
		body, err := json.Marshal(AuditEntry{At: time.Now().UTC(), What: ch.Audit})
		if err != nil {
			return 0, fmt.Errorf("store: audit: %w", err)
		}
		id, err := uuid.NewV7() // sorts by time
		if err != nil {
			return 0, fmt.Errorf("store: audit: %w", err)
		}
		if err := w.put(c.keys.audit(id.String()), 0, body); err != nil {
			return 0, err
		}
	}
	if len(w.guards) == 0 {
		return 0, errors.New("store: commit of nothing")
	}
	rev, _, err := c.commit(ctx, w)
	return rev, err
}

// RenewLease writes a site's lease if its record is at revision expect (0 creates it), else ErrConflict, and reads the
// ownership in the same transaction. If the document cannot be read (a newer format), the lease is renewed all the
// same: the error says so, and Renewal.Revision is set.
func (c *Client) RenewLease(ctx context.Context, site topo.SiteID, l Lease, expect Revision) (Renewal, error) {
	if err := topo.CheckName(string(site)); err != nil {
		return Renewal{}, fmt.Errorf("store: site %w", err)
	}
	body, err := l.encode()
	if err != nil {
		return Renewal{}, fmt.Errorf("store: renew %s: %w", site, err)
	}
	w := write{id: newWrite(), read: c.keys.ownership()}
	if err := w.put(c.keys.site(site), expect, body); err != nil {
		return Renewal{}, err
	}
	rev, read, err := c.commit(ctx, w)
	if err != nil {
		return Renewal{}, err
	}
	out := Renewal{Revision: rev}
	if len(read.Kvs) > 0 {
		out.Ownership, out.OwnershipRevision, err = decodeOwnership(read.Kvs[0])
	}
	return out, err
}

// write is one compare-and-set transaction, the same for every try.
type write struct {
	id     string
	guards []guard
	cmps   []clientv3.Cmp
	puts   []clientv3.Op
	read   string // a key to read in the same transaction
}

type guard struct {
	key    string
	expect Revision
}

func (w *write) put(key string, expect Revision, body []byte) error {
	value, err := seal(w.id, body)
	if err != nil {
		return fmt.Errorf("store: write %s: %w", key, err)
	}
	w.guards = append(w.guards, guard{key, expect})
	w.cmps = append(w.cmps, clientv3.Compare(clientv3.ModRevision(key), "=", int64(expect)))
	w.puts = append(w.puts, clientv3.OpPut(key, value))
	return nil
}

// drop takes a record away. It is no guard: the record has no history from which its outcome could be told; another of the
// same transaction has.
func (w *write) drop(key string, expect Revision) {
	w.cmps = append(w.cmps, clientv3.Compare(clientv3.ModRevision(key), "=", int64(expect)))
	w.puts = append(w.puts, clientv3.OpDelete(key))
}

// commit carries a write out. Sending it again after a lost answer is safe: the compare lets at most one try through.
// A try that finds the guard moved after an earlier one may have been carried out looks for its write id in the
// guard's history, so neither "done" nor "conflict" is ever a guess.
func (c *Client) commit(ctx context.Context, w write) (Revision, *clientv3.GetResponse, error) {
	var rev Revision
	var read *clientv3.GetResponse
	sent := false
	err := c.do(ctx, func(ctx context.Context, etcd *clientv3.Client) error {
		again := sent
		sent = true
		ops := w.puts
		if w.read != "" {
			ops = append(ops[:len(ops):len(ops)], clientv3.OpGet(w.read))
		}
		resp, err := etcd.Txn(ctx).If(w.cmps...).Then(ops...).Commit()
		if err != nil {
			return err
		}
		if resp.Succeeded {
			rev, read = Revision(resp.Header.Revision), readOf(resp)
			return nil
		}
		if !again {
			return ErrConflict
		}
		if rev, err = carriedOut(ctx, etcd, w); err != nil || w.read == "" {
			return err
		}
		read, err = etcd.Get(ctx, w.read)
		return err
	})
	switch key := w.guards[0].key; {
	case err == nil:
		return rev, read, nil
	case errors.Is(err, ErrConflict):
		return 0, nil, fmt.Errorf("store: write %s: %w", key, err)
	case errors.Is(err, ErrUnavailable):
		return 0, nil, fmt.Errorf("store: write %s: %w: %w", key, ErrOutcomeUnknown, err)
	case errors.Is(err, rpctypes.ErrNoSpace):
		return 0, nil, fmt.Errorf("store: write %s: the store has reached its quota; it refuses writes until its members are compacted, defragmented and disarmed: %w", key, err)
	default:
		return 0, nil, fmt.Errorf("store: write %s: %w", key, err)
	}
}

func readOf(resp *clientv3.TxnResponse) *clientv3.GetResponse {
	last := resp.Responses[len(resp.Responses)-1]
	if r, ok := last.Response.(*etcdserverpb.ResponseOp_ResponseRange); ok {
		return (*clientv3.GetResponse)(r.ResponseRange)
	}
	return nil
}

// carriedOut walks a guard's history back to what was expected. It returns ErrConflict if the write is not in it: the
// expected revision is gone, so the write can never be carried out any more.
func carriedOut(ctx context.Context, etcd *clientv3.Client, w write) (Revision, error) {
	for _, g := range w.guards {
		var at int64 // 0 reads the newest, linearizably
		for {
			resp, err := etcd.Get(ctx, g.key, clientv3.WithRev(at))
			if errors.Is(err, rpctypes.ErrCompacted) {
				return 0, fmt.Errorf("%w: its history is compacted", ErrOutcomeUnknown)
			}
			if err != nil {
				return 0, err
			}
			if len(resp.Kvs) == 0 || Revision(resp.Kvs[0].ModRevision) <= g.expect {
				break
			}
			if writeOf(resp.Kvs[0].Value) == w.id {
				return Revision(resp.Kvs[0].ModRevision), nil
			}
			at = resp.Kvs[0].ModRevision - 1
		}
	}
	return 0, ErrConflict
}
