package export

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/atollhq/atoll/topo"
)

const (
	followEvery = time.Second      // the proxy is asked which view it has: it may have been started again
	verifyEvery = 30 * time.Second // its whole map is compared
	retryEvery  = 500 * time.Millisecond
)

// Follower keeps a running HAProxy's map, and the file from which it starts, in step with the ownership.
type Follower struct {
	File   string // the map file, as the proxy's configuration names it
	Socket string // path of its stats socket, or host:port
	// Next returns the view as soon as it is another one than after; it ends with ctx.
	Next func(ctx context.Context, after *topo.View) (*topo.View, error)
	Log  *slog.Logger
	// Swapped is called after a map was swapped and verified, or found to be right; nil: nobody.
	Swapped func(Version)
}

// Run follows until ctx ends, and returns its error. What fails is reported and tried again.
func (f *Follower) Run(ctx context.Context) error {
	view, err := f.Next(ctx, nil)
	if err != nil {
		return err
	}
	m, verified, failed := NewMap(view), time.Time{}, ""
	for {
		pause, whole := followEvery, time.Since(verified) > verifyEvery
		switch err := f.step(ctx, m, whole); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			pause, verified = retryEvery, time.Time{}
			if failed != err.Error() { // once, not twice a second
				f.Log.Error("the proxy's map is not in step; trying again", "view", m.Version().String(), "error", err)
			}
			failed = err.Error()
		default:
			failed = ""
			if whole {
				verified = time.Now()
			}
		}
		wait, cancel := context.WithTimeout(ctx, pause)
		if newer, err := f.Next(wait, view); err == nil {
			view, m = newer, NewMap(newer)
			verified = time.Time{}
		}
		cancel()
	}
}

// errBehind: the proxy, or its file, has a newer view than this process.
var errBehind = errors.New("it has a newer view than there is here, and is left as it is; if the deployment began anew, remove the map file and start the proxy again")

// step brings file and proxy to a map; whole: it looks at more than the proxy's word for its view.
func (f *Follower) step(ctx context.Context, m Map, whole bool) error {
	if whole {
		if err := f.file(m); err != nil {
			return err
		}
	}
	r := NewRuntime(f.Socket, f.File)
	has, err := r.Version(ctx)
	switch {
	case err != nil:
		return err
	case m.Version().Before(has):
		return errBehind
	case has == m.Version() && !whole:
		return nil
	case has == m.Version():
		got, err := r.Read(ctx)
		if err != nil {
			return err
		}
		if m.differs(got) == "" {
			f.swapped(m)
			return nil
		}
		f.Log.Warn("somebody changed the proxy's map; swapping it", "where", m.differs(got))
	}
	began := time.Now()
	if err := r.Swap(ctx, m); err != nil {
		return err
	}
	f.Log.Info("map swapped", "view", m.Version().String(), "entries", len(m), "took", time.Since(began))
	f.swapped(m)
	return nil
}

func (f *Follower) swapped(m Map) {
	if f.Swapped != nil {
		f.Swapped(m.Version())
	}
}

// file brings the map file to a map: a proxy that is started again begins with it.
func (f *Follower) file(m Map) error {
	has, err := ReadFile(f.File)
	switch {
	case err == nil && m.Version().Before(has.Version()):
		return errBehind
	case err == nil && m.differs(has) == "":
		return nil
	case err != nil:
		f.Log.Warn("the map file cannot be read; writing it anew", "error", err)
	}
	return m.WriteFile(f.File)
}
