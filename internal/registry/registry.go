// Package registry is an agent's memory of the instances that have registered themselves.
//
// The main type is [Registry]: Register takes an instance in for a while or renews it, Leave lets it go, List tells a gateway
// of another version of a service's instances. What the silence of an instance means is decided by a state machine (see
// phase), one per service, which has neither clock nor lock.
//
// It guarantees that an instance is listed for as long as it has said, that one that has left is not, and that silence alone
// never empties a list: where nobody is heard, or fewer than half are, the way here is rather broken than they are. Memory
// is bounded: it knows the services of the spec, and at most [api.MaxInstances] of each.
//
// It refuses services that do not register themselves, addresses that gateways could not use, and times beyond what the spec
// allows. Nothing is written down: after a restart the instances come back by renewing, and until they had the time to do so
// the list says that it is not complete.
package registry

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
)

// MinTTL is the shortest time for which an instance may register.
const MinTTL = 2 * time.Second

// Registry knows the instances of a site's services. It is safe for concurrent use.
type Registry struct {
	site        string
	incarnation string
	services    map[string]*watched // never changed
}

// watched is one service, and who waits for it to change.
type watched struct {
	mu struct {
		sync.Mutex
		*service
		changed chan struct{} // closed and replaced with each version
	}
}

// New makes a registry of the services that register themselves: by name, the longest time for which an instance may do so.
// Versions of lists bear the incarnation, which no other run of an agent may have.
func New(site, incarnation string, services map[string]time.Duration) *Registry {
	r := &Registry{site: site, incarnation: incarnation, services: make(map[string]*watched, len(services))}
	for name, ttl := range services {
		w := &watched{}
		w.mu.service, w.mu.changed = newService(ttl), make(chan struct{})
		r.services[name] = w
	}
	return r
}

// Register takes an instance in, or renews it.
func (r *Registry) Register(req api.RegisterRequest) (api.RegisterAnswer, error) {
	w, err := r.find(req.Service)
	if err != nil {
		return api.RegisterAnswer{}, err
	}
	if err := req.Check(); err != nil {
		return api.RegisterAnswer{}, refused(http.StatusBadRequest, api.CodeBadRequest, "", "service %s: %v", req.Service, err)
	}
	longest := w.mu.ttl // never changed
	ttl := cmp.Or(req.TTLMS, longest.Milliseconds())
	if ttl < MinTTL.Milliseconds() || ttl > longest.Milliseconds() {
		return api.RegisterAnswer{}, refused(http.StatusBadRequest, api.CodeBadRequest,
			fmt.Sprintf("leave it out for the longest, or raise discover: {register: %s} of the upstream", longest),
			"service %s: ttl_ms %d: want %d to %d", req.Service, req.TTLMS, MinTTL.Milliseconds(), longest.Milliseconds())
	}
	taken := false
	w.do(func(s *service, now time.Time) {
		taken = s.register(req.Instance, time.Duration(ttl)*time.Millisecond, now)
	})
	if !taken {
		return api.RegisterAnswer{}, refused(http.StatusConflict, api.CodeRefused, "let instances leave that have ended, or have them register for a shorter time",
			"service %s has %d instances already", req.Service, api.MaxInstances)
	}
	return api.RegisterAnswer{TTLMS: ttl}, nil
}

// Leave lets an instance go.
func (r *Registry) Leave(req api.LeaveRequest) (api.LeaveAnswer, error) {
	w, err := r.find(req.Service)
	if err != nil {
		return api.LeaveAnswer{}, err
	}
	if err := api.CheckAddress(req.Address); err != nil {
		return api.LeaveAnswer{}, refused(http.StatusBadRequest, api.CodeBadRequest, "", "service %s: %v", req.Service, err)
	}
	var answer api.LeaveAnswer
	w.do(func(s *service, now time.Time) { answer.Known = s.leave(req.Address, now) })
	return answer, nil
}

// List tells of a service's instances as soon as there is another version than after, and at the end of the wait in any case.
func (r *Registry) List(ctx context.Context, name, after string, wait time.Duration) (api.InstanceList, error) {
	w, err := r.find(name)
	if err != nil {
		return api.InstanceList{}, err
	}
	over := time.NewTimer(wait)
	defer over.Stop()
	for waiting := true; ; {
		list, next, changed := r.look(name, w)
		if list.Version != after || !waiting {
			return list, nil
		}
		turn := time.NewTimer(next)
		select {
		case <-changed:
		case <-turn.C:
		case <-over.C:
			waiting = false
		case <-ctx.Done():
		}
		turn.Stop()
		if ctx.Err() != nil {
			return api.InstanceList{}, context.Cause(ctx)
		}
	}
}

// All tells of every service, in order of name.
func (r *Registry) All() []api.InstanceList {
	out := make([]api.InstanceList, 0, len(r.services))
	for _, name := range slices.Sorted(maps.Keys(r.services)) {
		list, _, _ := r.look(name, r.services[name])
		out = append(out, list)
	}
	return out
}

// look is what is known of a service now, when time alone may change that, and what is closed when something else does.
func (r *Registry) look(name string, w *watched) (list api.InstanceList, next time.Duration, changed <-chan struct{}) {
	changed = w.do(func(s *service, now time.Time) {
		s.pass(now)
		list = api.InstanceList{Service: name, Version: r.incarnation + "." + strconv.FormatUint(s.version, 10), Complete: s.complete(), Instances: s.list(now), Left: s.gone()}
		next = s.next(now).Sub(now)
	})
	return list, next, changed
}

// do has the machine take an event, and wakes who waits for another version. What it returns is closed at the next one.
func (w *watched) do(event func(*service, time.Time)) (changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := w.mu.version
	event(w.mu.service, time.Now())
	if w.mu.version != before {
		close(w.mu.changed)
		w.mu.changed = make(chan struct{})
	}
	return w.mu.changed
}

func (r *Registry) find(name string) (*watched, error) {
	if w := r.services[name]; w != nil {
		return w, nil
	}
	which := "none does"
	if len(r.services) > 0 {
		which = "those that do: " + strings.Join(slices.Sorted(maps.Keys(r.services)), ", ")
	}
	return nil, refused(http.StatusNotFound, api.CodeNotFound, "write discover: {register: 30s} under the upstream in atoll.yaml, and restart the site's agent and gateways",
		"instances of service %.80q do not register themselves at site %s; %s", name, r.site, which)
}

func refused(status int, code, hint, format string, args ...any) error {
	return &api.Error{Status: status, Code: code, Message: fmt.Sprintf(format, args...), Hint: hint}
}
