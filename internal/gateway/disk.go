package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/reload"
	"github.com/atollhq/atoll/topo"
)

// viewFile is where the last good view is kept: in the form of a line of the view stream.
func (g *Gateway) viewFile() string {
	return filepath.Join(g.conf.StateDir, fmt.Sprintf("view-%s-%s.json", g.conf.Site, g.conf.Name))
}

// restoreView takes the view that an earlier run left. A file that is not one is reported and left alone: the next view
// from an agent replaces it.
func (g *Gateway) restoreView() {
	if g.conf.StateDir == "" {
		return
	}
	view, err := readView(g.viewFile())
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		g.log.Error("refused the saved view; the gateway serves as soon as an agent sends one", "error", err)
	default:
		g.views.restore(view)
		g.log.Info("took the saved view", "version", g.views.load().version().String())
	}
}

// readView reads a saved view; it refuses what a view stream would refuse.
func readView(path string) (*topo.View, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLine+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxLine {
		return nil, fmt.Errorf("view file %s is larger than %d bytes; delete it, the agent sends the view again", path, maxLine)
	}
	view, _, _, err := decodeLine(data)
	if err == nil && view == nil {
		err = errors.New("no ownership document")
	}
	if err != nil {
		return nil, fmt.Errorf("view file %s: %w; delete it, the agent sends the view again", path, err)
	}
	return view, nil
}

// keepView saves each new view, off the path of the views themselves.
func (g *Gateway) keepView(ctx context.Context) error {
	var saved *topo.View
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.save:
		}
		site := g.views.load().site
		if g.conf.StateDir == "" || site == nil || site.View == saved {
			continue
		}
		if err := writeView(g.viewFile(), site.View); err != nil {
			g.log.Error("could not save the view; a restart without an agent would have none", "error", err)
			continue
		}
		saved = site.View
	}
}

// writeView replaces the file in one step: a crash leaves the old one or the new one.
func writeView(path string, view *topo.View) error {
	data, err := json.Marshal(api.ViewUpdate{Format: api.ViewFormat, Ownership: view.Ownership.Encode()})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return reload.Replace(path, 0o600, append(data, '\n'))
}
