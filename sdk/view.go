package sdk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// ErrNoView is returned where a view is needed and none has come yet.
var ErrNoView = errors.New("no view of the ownership yet; is a gateway of this site running, with an admin address?")

// ViewConfig says where a view comes from.
type ViewConfig struct {
	Site topo.SiteID // where this process runs; a gateway of another site is refused
	// Gateways are the admin addresses of this site's gateways as base URLs, the first choice first: http://127.0.0.1:8081.
	// They are on loopback: the service runs beside a gateway.
	Gateways []string
	Log      *slog.Logger // nil: none
}

// View is this process's copy of the ownership document, and of the routes and keyspaces of its site's gateways. It never
// goes back to an older document. Keep it in [View.Run]; everything else may be called from any goroutine.
type View struct {
	site    topo.SiteID
	from    []string
	log     *slog.Logger
	client  *http.Client
	mu      sync.Mutex // orders changes
	current atomic.Pointer[snapshot]
}

// snapshot is what is known at one moment. It is immutable; every line of the stream makes a new one.
type snapshot struct {
	site   *route.Site                       // nil before the first view
	table  *route.Table                      // nil before the first line
	spaces map[topo.KeyspaceID]topo.Keyspace // those of the table
	opened uint64                            // the site's fence is known to be open for the views up to this version
	heard  time.Time                         // an agent said something; zero: never
	lease  time.Time                         // until then this site may accept writes, as far as is known
	next   chan struct{}                     // closed when a newer snapshot is current
}

// NewView checks the configuration. Nothing is dialled before [View.Run].
func NewView(conf ViewConfig) (*View, error) {
	if err := topo.CheckName(string(conf.Site)); err != nil {
		return nil, fmt.Errorf("site: %w", err)
	}
	if len(conf.Gateways) == 0 {
		return nil, errors.New("no gateway to take the view from; name admin addresses such as http://127.0.0.1:8081")
	}
	v := &View{site: conf.Site, log: conf.Log, client: newStreamClient()}
	for _, text := range conf.Gateways {
		u, err := baseURL(text)
		if err != nil {
			return nil, err
		}
		v.from = append(v.from, u.String())
	}
	if v.log == nil {
		v.log = slog.New(slog.DiscardHandler)
	}
	v.current.Store(&snapshot{next: make(chan struct{})})
	return v, nil
}

func baseURL(text string) (*url.URL, error) {
	u, err := url.Parse(strings.TrimSuffix(text, "/"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return nil, fmt.Errorf("%q is not a base URL such as http://127.0.0.1:8081", text)
	}
	return u, nil
}

// Site is where this process runs.
func (v *View) Site() topo.SiteID { return v.site }

// Wait returns as soon as there is a view, or with the error of ctx.
func (v *View) Wait(ctx context.Context) error {
	if _, err := v.Next(ctx, nil); err != nil {
		return fmt.Errorf("%w: %w", ErrNoView, err)
	}
	return nil
}

// Next returns the document in use as soon as it is another one than after; nil is none. At the end of ctx it returns the
// cause of that.
func (v *View) Next(ctx context.Context, after *topo.View) (*topo.View, error) {
	for {
		snap := v.current.Load()
		if snap.site != nil && snap.site.View != after {
			return snap.site.View, nil
		}
		select {
		case <-snap.next:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// Place is what the view says about a key.
type Place struct {
	Keyspace topo.KeyspaceID
	Bucket   topo.BucketID
	Owner    topo.SiteID
	Epoch    topo.Epoch
	Moving   bool // a handover moves the bucket; the owner's fence may be closed at any time
}

// Place looks a key up. key may be in any form that the keyspace takes: "+007" and "7" are one integer. Errors: [ErrNoView],
// a keyspace that the gateways do not declare or the view does not place, a key without canonical form.
func (v *View) Place(ks topo.KeyspaceID, key string) (Place, error) {
	snap := v.current.Load()
	b, err := snap.bucket(ks, key)
	if err != nil {
		return Place{}, err
	}
	slot, _ := snap.site.View.Slot(ks, b)
	return Place{ks, b, slot.Owner, slot.Epoch, slot.Moving}, nil
}

func (s *snapshot) bucket(ks topo.KeyspaceID, key string) (topo.BucketID, error) {
	if s.site == nil || s.table == nil {
		return 0, ErrNoView
	}
	space, ok := s.spaces[ks]
	if !ok || s.site.View.Buckets(ks) != space.Buckets {
		return 0, fmt.Errorf("keyspace %q is not declared at this site, or not placed with as many buckets", ks)
	}
	if space.Buckets == 1 {
		return 0, nil // everything has one home, whatever the key
	}
	canonical, err := route.Canonical(space.Key, key)
	if err != nil {
		return 0, fmt.Errorf("key of keyspace %s: %w", ks, err)
	}
	return route.Bucket(space.Hash, canonical, space.Buckets)
}

// document is the view in use, nil without one.
func (v *View) document() *topo.View {
	if site := v.current.Load().site; site != nil {
		return site.View
	}
	return nil
}

// Decide says where a request goes: to a gateway of a site, this one or another. A request whose bucket moves, or whose fence
// may not be open yet, or that this view cannot judge goes to this site's gateways: those hold, and refuse in their own words.
func (v *View) Decide(req *route.Request) topo.SiteID {
	snap := v.current.Load()
	if snap.site == nil || snap.table == nil {
		return v.site
	}
	target, reason := snap.table.Match(req)
	if reason != route.None {
		return v.site
	}
	if d := snap.site.Decide(target, snap.opened); d.Verdict == route.Forward {
		return d.Site
	}
	return v.site
}

// errOlderView: the gateway is behind; it says nothing about the view in use.
var errOlderView = errors.New("the view is older than the one in use")

// apply takes one line of the stream at a moment. confirms says that the stream's document is the one in use.
func (v *View) apply(u *api.ViewUpdate, now time.Time, confirms bool) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	old := v.current.Load()
	next := *old
	next.next = make(chan struct{})
	if err := next.take(v.site, u); err != nil {
		return err
	}
	if w := u.Gateway; confirms || len(u.Ownership) > 0 {
		next.opened = max(next.opened, u.OpenedVersion)
		if w.AgeMS >= 0 {
			next.heard = now.Add(-time.Duration(min(w.AgeMS, maxAge.Milliseconds())) * time.Millisecond)
		}
		next.lease = now.Add(time.Duration(min(max(w.LeaseMS, 0), maxLease.Milliseconds())) * time.Millisecond)
	}
	v.current.Store(&next)
	close(old.next)
	return nil
}

// What a line may claim.
const (
	maxLease = time.Hour
	maxAge   = 1000 * time.Hour // beyond, it is all the same
)

// take reads the table and the document of a line.
func (s *snapshot) take(here topo.SiteID, u *api.ViewUpdate) error {
	if t := u.Gateway.Table; t != nil {
		table, err := route.Compile(t.Routes, t.Keyspaces)
		if err != nil {
			return fmt.Errorf("routes: %w", err)
		}
		s.table, s.spaces = table, t.Keyspaces
	}
	if len(u.Ownership) > 0 {
		o, err := topo.DecodeOwnership(u.Ownership)
		if err != nil {
			return err
		}
		view, err := topo.NewView(o)
		if err != nil {
			return err
		}
		switch {
		case s.site == nil:
			s.site = route.First(here, view, true)
		case o.Newer(s.site.View.Ownership):
			if o.Generation != s.site.View.Ownership.Generation {
				s.opened = 0
			}
			s.site = s.site.Next(view)
		case s.site.View.Ownership.Newer(o):
			return fmt.Errorf("%w: %d.%d", errOlderView, o.Generation, o.Version)
		case o.Checksum != s.site.View.Ownership.Checksum:
			return fmt.Errorf("view %d.%d came twice with different content", o.Generation, o.Version)
		}
	}
	return nil
}
