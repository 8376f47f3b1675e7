package load

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

// A session is one client that sends the newest token it got with every request, one request at a time, each to a gateway
// drawn among all of them. Its requests come in rounds, each on the next one of its lists. To some lists it appends an entry
// (through POST /me/wishes) and reads the customer's profile behind it, at once, while a copy at another site cannot have the
// entry yet; of the others it only reads. Several sessions use each list, so that they see one another's entries.
const (
	sessionAppend = "session-append"
	sessionRead   = "session-read"
	profilePath   = "/me/profile"

	requestsPerRound = 4
	listsPerSession  = 4 // or as many as there are
	writesTo         = 2 // of them
)

type session struct {
	client *client
	name   string
	token  string
	lists  []string // customers
	random *rand.Rand
}

// sessions starts all session clients, and returns what to wait for.
func (g *generator) sessions(ctx context.Context) *sync.WaitGroup {
	var running sync.WaitGroup
	first := g.Config.Clients + (g.Registers+g.Lists)*max(1, g.PerKey)
	for n := range g.Sessions {
		s := &session{client: newClient(first+n, Gateway{}), name: fmt.Sprintf("s%d", n+1), random: rand.New(rand.NewPCG(g.Seed, uint64(first+n)))}
		for i := range min(listsPerSession, g.Sessions) {
			list := (n + i) % g.Sessions
			s.lists = append(s.lists, seed.Customer(g.Shape.Seed, g.Shape.Customers-1-g.Registers-g.Lists-list).String())
		}
		wait := g.SessionEvery * time.Duration(n) / time.Duration(g.Sessions) // they do not begin all at once
		running.Go(func() {
			defer s.client.http.CloseIdleConnections()
			g.rounds(ctx, s, wait)
		})
	}
	return &running
}

// rounds sends until the run is over. Ticks that come while a round is under way are left out.
func (g *generator) rounds(ctx context.Context, s *session, wait time.Duration) {
	ctx, cancel := g.untilTheEnd(ctx)
	defer cancel()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for round := 0; ; round++ {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		n := round % len(s.lists) // in turn, so that none is left alone for long
		for i := range requestsPerRound {
			if ctx.Err() != nil {
				return
			}
			g.tally.start()
			rec := g.perform(s.client, g.Gateways[s.random.IntN(len(g.Gateways))], s.next(s.lists[n], i == 0 && n < writesTo), time.Now())
			if rec.token != "" {
				s.token = rec.token
			}
		}
		timer.Reset(max(0, g.SessionEvery-time.Since(began)))
	}
}

func (s *session) next(list string, write bool) operation {
	op := operation{id: newID(), name: sessionRead, method: http.MethodGet, path: profilePath, keyspace: "users", key: list, session: s.name, token: s.token}
	if write {
		op.name, op.method, op.path, op.write, op.value = sessionAppend, http.MethodPost, listPath, true, op.id
		op.body = mustJSON(map[string]string{"wish": op.value})
	}
	return op
}
