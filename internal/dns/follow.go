package dns

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/reload"
)

const (
	// AskEvery is how often the site's agent is asked who is well, and askBound how long it may take: it asks others.
	AskEvery = 2 * time.Second
	askBound = 5 * time.Second

	fileFormat = 1
	maxFile    = 1 << 20
)

// Follow keeps a choice in step with what an agent knows of the sites.
type Follow struct {
	Sites []Site
	Ask   func(ctx context.Context) (api.Health, error)
	Set   func(Choice) // called with each choice that differs from the one before it
	File  string       // where the last good choice is kept; "": nowhere
	Log   *slog.Logger

	now  Choice
	good Choice // the last with the basis Healthy
	away bool   // the agent did not answer last time
}

// First is the choice before anything is known: the last good one, of an earlier run, else everyone. A file that does not
// hold one is reported and left alone: the next good choice replaces it.
func (f *Follow) First() Choice {
	if f.File != "" {
		good, err := readChoice(f.File)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			f.Log.Error("refused the saved choice", "error", err)
		default:
			f.good = good
		}
	}
	f.now = Decide(f.Sites, api.Health{}, f.good)
	return f.now
}

// Run asks until ctx ends. While the agent is away, what was chosen last stands.
func (f *Follow) Run(ctx context.Context) error {
	tick := time.NewTicker(AskEvery)
	defer tick.Stop()
	for {
		f.look(ctx)
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// look asks once.
func (f *Follow) look(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, askBound)
	defer cancel()
	health, err := f.Ask(bounded)
	switch {
	case ctx.Err() != nil:
		return
	case err != nil:
		if !f.away {
			f.Log.Warn("the agent does not say who is well; what was answered last stands", "error", err)
		}
		f.away = true
		return
	case f.away:
		f.Log.Info("the agent answers again")
		f.away = false
	}
	choice := Decide(f.Sites, health, f.good)
	if choice.Basis == Healthy && !choice.Equal(f.good) {
		f.good = choice
		if f.File != "" {
			if err := writeChoice(f.File, choice); err != nil {
				f.Log.Error("could not save the choice; a restart without an agent would not have it", "error", err)
			}
		}
	}
	if choice.Equal(f.now) {
		return
	}
	f.Log.Info("users are sent elsewhere", "basis", choice.Basis, "sites", choice.Shares, "before", f.now.Shares)
	f.now = choice
	f.Set(choice)
}

// saved is the form of the file.
type saved struct {
	Format int    `json:"format"`
	Choice Choice `json:"choice"`
}

// readChoice reads a saved choice. What it holds is not believed further than the spec goes: see within.
func readChoice(path string) (Choice, error) {
	f, err := os.Open(path)
	if err != nil {
		return Choice{}, err
	}
	defer f.Close()
	var s saved
	dec := json.NewDecoder(io.LimitReader(f, maxFile))
	if err := dec.Decode(&s); err != nil {
		return Choice{}, fmt.Errorf("%s: %w; delete it, it is written again", path, err)
	}
	if s.Format != fileFormat {
		return Choice{}, fmt.Errorf("%s has format %d, this atoll reads %d; delete it, it is written again", path, s.Format, fileFormat)
	}
	for _, share := range s.Choice.Shares {
		if share.Weight < 1 || share.Weight > maxShare {
			return Choice{}, fmt.Errorf("%s: weight %d of site %s; delete it, it is written again", path, share.Weight, share.Site)
		}
	}
	return s.Choice, nil
}

// maxShare bounds a weight, so that sums of them stay numbers.
const maxShare = 1_000_000

// writeChoice replaces the file in one step: a crash leaves the old one or the new one.
func writeChoice(path string, c Choice) error {
	data, err := json.Marshal(saved{fileFormat, c})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return reload.Replace(path, 0o600, append(data, '\n'))
}
