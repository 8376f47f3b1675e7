package discover

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/balance"
	"github.com/atollhq/atoll/internal/reload"
)

const (
	listWait    = 20 * time.Second // an answer comes at once when something changes, and at the latest then
	listTimeout = listWait + 5*time.Second
	listPace    = 100 * time.Millisecond // between one answer and the next question: an instance that comes and goes is no storm
	listRetry   = 200 * time.Millisecond // doubled up to listRetryTo, jittered
	listRetryTo = 5 * time.Second
)

// Ask reads a service's instances at the site's agent: as soon as there is another version than after, or when the wait is over.
type Ask func(ctx context.Context, service, after string, wait time.Duration) (api.InstanceList, error)

// Registered finds the instances that have registered themselves at the site's agents.
type Registered struct {
	Service string
	Ask     Ask
	KeepIn  string // file for who was found last, for a gateway that starts while no agent knows; "": nowhere
	Log     *slog.Logger
}

// Find follows the agent's list. While no agent answers, or the one that does has not been there for long enough to know
// everybody, who was found stays; except for those who have said that they go.
func (r Registered) Find(ctx context.Context, found func([]balance.Instance)) error {
	known := r.restore()
	if len(known) > 0 {
		found(known)
	}
	after, failing, pause := "", "", listRetry
	for {
		list, err := r.ask(ctx, after)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rest := listPace
		if err == nil {
			after, failing, pause = list.Version, "", listRetry
			if next := merge(known, list); !slices.Equal(next, known) {
				known = next
				found(known)
				r.keep(list.Version, known)
			}
		} else {
			if err.Error() != failing {
				r.Log.Warn("registered instances are those that were known last", "instances", len(known), "error", err)
			}
			failing, rest = err.Error(), pause/2+rand.N(pause)
			pause = min(2*pause, listRetryTo)
		}
		timer := time.NewTimer(rest)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
	}
}

func (r Registered) ask(ctx context.Context, after string) (api.InstanceList, error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	list, err := r.Ask(ctx, r.Service, after, listWait)
	if err != nil {
		return api.InstanceList{}, err
	}
	if err := list.Check(); err != nil {
		return api.InstanceList{}, fmt.Errorf("refused the agent's list of instances: %w", err)
	}
	return list, nil
}

// merge is who is there after a list has come, in order of address. A list that is not complete takes nobody away but those
// who have left.
func merge(known []balance.Instance, list api.InstanceList) []balance.Instance {
	var next []balance.Instance
	for _, i := range list.Instances {
		next = append(next, balance.Instance(i.Instance))
	}
	if !list.Complete {
		listed := len(next)
		for _, k := range known {
			there := slices.ContainsFunc(next[:listed], func(i balance.Instance) bool { return i.Address == k.Address })
			if !there && !slices.Contains(list.Left, k.Address) && len(next) < api.MaxInstances {
				next = append(next, k)
			}
		}
	}
	slices.SortFunc(next, func(a, b balance.Instance) int { return cmp.Compare(a.Address, b.Address) })
	return slices.CompactFunc(next, func(a, b balance.Instance) bool { return a.Address == b.Address })
}

// restore is who was found in an earlier run.
func (r Registered) restore() []balance.Instance {
	if r.KeepIn == "" {
		return nil
	}
	data, err := os.ReadFile(r.KeepIn)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var list api.InstanceList
	if err == nil {
		list, err = decodeList(data)
	}
	if err != nil {
		r.Log.Warn("refused the saved instances", "file", r.KeepIn, "error", err)
		return nil
	}
	return merge(nil, list)
}

func decodeList(data []byte) (api.InstanceList, error) {
	var list api.InstanceList
	if err := json.Unmarshal(data, &list); err != nil {
		return list, err
	}
	return list, list.Check()
}

func (r Registered) keep(version string, known []balance.Instance) {
	if r.KeepIn == "" {
		return
	}
	list := api.InstanceList{Service: r.Service, Version: version}
	for _, k := range known {
		list.Instances = append(list.Instances, api.Registered{Instance: api.Instance(k)})
	}
	data, err := json.Marshal(list)
	if err == nil {
		err = reload.Replace(r.KeepIn, 0o600, append(data, '\n'))
	}
	if err != nil {
		r.Log.Error("could not save the instances; a restart without an agent would have none", "file", r.KeepIn, "error", err)
	}
}
