package store

import (
	"context"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/atollhq/atoll/topo"
)

const (
	watchBeat    = 500 * time.Millisecond  // how often a watch asks its member for a sign of life
	watchSilence = 1500 * time.Millisecond // after this the watch moves to another member
)

// Watch returns a channel on which a value means: ownership or a handover may have changed, read it. Hints are merged,
// may come without a change (always once at the start and after a change of member) and may be late; readers poll as
// well. The channel is never closed; hints end with ctx or with Close.
func (c *Client) Watch(ctx context.Context) <-chan struct{} {
	hints := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(c.ctx, cancel)
	c.wg.Go(func() {
		defer cancel()
		defer stop()
		for ctx.Err() == nil {
			member := c.order()[0]
			if !c.watchMember(ctx, member, hints) && ctx.Err() == nil {
				c.note(member, false)
			}
			hint(hints) // whatever happened between two watches is unknown
			pause := time.NewTimer(100 * time.Millisecond)
			select {
			case <-pause.C:
			case <-ctx.Done():
				pause.Stop()
			}
		}
	})
	return hints
}

func hint(hints chan<- struct{}) {
	select {
	case hints <- struct{}{}:
	default:
	}
}

// watchMember passes hints on until the watch ends; true if that was not for want of an answer.
func (c *Client) watchMember(ctx context.Context, member int, hints chan<- struct{}) bool {
	etcd := c.members[member].etcd
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	events := etcd.Watch(ctx, c.keys.prefix, clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	beat := time.NewTicker(watchBeat)
	defer beat.Stop()
	heard := time.Now()
	for {
		select {
		case <-ctx.Done():
			return true
		case resp, ok := <-events:
			if !ok || resp.Err() != nil {
				return false
			}
			heard = time.Now()
			if resp.Created {
				hint(hints)
			}
			hinted := false
			for _, e := range resp.Events {
				key := string(e.Kv.Key)
				hinted = hinted || c.keys.hints(key)
				if site, ok := strings.CutPrefix(key, c.keys.sites()); ok && e.Type == mvccpb.PUT {
					c.hear(topo.SiteID(site), told{e.Kv.ModRevision, string(e.Kv.Value), heard})
				}
			}
			if hinted {
				hint(hints)
			}
		case <-beat.C:
			if time.Since(heard) > watchSilence {
				return false
			}
			ask, done := context.WithTimeout(ctx, c.cfg.Try)
			err := etcd.RequestProgress(ask) // answered with an event-less response; a failure shows as silence
			done()
			if err != nil {
				c.log.Debug("store watch: no progress", "member", c.members[member].Site, "error", err)
			}
		}
	}
}

// told is a record at a revision, and when a watch told of it, or the read that returned it began.
type told struct {
	rev   int64
	value string
	at    time.Time
}

func (c *Client) hear(site topo.SiteID, t told) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.heard[site].rev < t.rev {
		c.mu.heard[site] = t
	}
}

func (c *Client) wasRead(site topo.SiteID, t told) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.read[site] = t
	if heard := c.mu.heard[site]; heard.rev > t.rev && heard.at.Before(t.at) { // of another store, left over from a former generation
		delete(c.mu.heard, site)
	}
}

// Heard is when a watch told of the lease that [Client.Lease] read last of a site, if one did. The renewal that wrote it
// began before: a lease may be timed from then, whenever it was read. Watches are hints all the same; that it is the lease
// in force only a read can say.
func (c *Client) Heard(site topo.SiteID, rev Revision) (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard, read := c.mu.heard[site], c.mu.read[site]
	if heard.rev == 0 || read.rev != int64(rev) || heard.rev != read.rev || heard.value != read.value {
		return time.Time{}, false
	}
	return heard.at, true
}
