package load

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

// A register is the address of one customer, written and read in turn by its clients, each with one request at a time. Every
// value is written once, so that a read says which write it saw. A list is the wishes of one customer, appended to and read in
// the same way. Their rows are written by nobody else.
const (
	registerWrite = "register-write"
	registerRead  = "register-read"
	registerPath  = "/me/address"
	listAppend    = "list-append"
	listRead      = "list-read"
	listPath      = "/me/wishes"
)

func (op operation) isRegister() bool { return op.name == registerWrite || op.name == registerRead }

func (op operation) isList() bool {
	return op.name == listAppend || op.name == listRead || op.name == sessionAppend || op.name == sessionRead
}

// register is one client of a register or a list. It stays with a gateway until that fails it, and then goes on to the next
// one, as a name or an address that leads to several sites would lead it: at once where nobody takes the connection.
type register struct {
	client   *client
	customer string
	list     bool
	gateways []Gateway // the order in which it tries them
	at       int
}

// registers starts the clients of all registers and lists, and returns what to wait for.
func (g *generator) registers(ctx context.Context) *sync.WaitGroup {
	var running sync.WaitGroup
	gateways := alternate(g.Gateways)
	keys, perKey := g.Registers+g.Lists, max(1, g.PerKey)
	for n := range keys * perKey {
		key := n % keys
		at := (key + n/keys) % len(gateways) // the clients of one key do not begin at the same gateway
		r := &register{client: newClient(g.Config.Clients+n, gateways[at]), at: at, gateways: gateways, list: key >= g.Registers,
			customer: seed.Customer(g.Shape.Seed, g.Shape.Customers-1-key).String()}
		wait := g.RegisterEvery * time.Duration(n) / time.Duration(keys*perKey) // they do not begin all at once
		running.Go(func() {
			defer r.client.http.CloseIdleConnections()
			g.turns(ctx, r, wait)
		})
	}
	return &running
}

// turns sends until the run is over. Ticks that come while a request is under way are left out.
func (g *generator) turns(ctx context.Context, r *register, wait time.Duration) {
	ctx, cancel := g.untilTheEnd(ctx)
	defer cancel()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	write, refused := true, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		op := r.next(write)
		g.tally.start()
		rec := g.perform(r.client, r.gateways[r.at], op, began)
		if rec.elsewhere() {
			r.at = (r.at + 1) % len(r.gateways)
		}
		write = !write || rec.Outcome == Fail // a write that surely did not happen leaves nothing to read back
		if rec.Status == 0 && rec.Outcome == Fail && refused < len(r.gateways)-1 {
			refused++
			timer.Reset(0)
			continue
		}
		refused = 0
		timer.Reset(max(0, g.RegisterEvery-time.Since(began)))
	}
}

// untilTheEnd ends with the run's duration, if it has one.
func (g *generator) untilTheEnd(ctx context.Context) (context.Context, context.CancelFunc) {
	if g.Duration == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, g.base.Add(g.Duration))
}

func (r *register) next(write bool) operation {
	if r.list {
		return r.nextOfList(write)
	}
	op := operation{id: newID(), name: registerRead, method: http.MethodGet, path: registerPath, keyspace: "users", key: r.customer}
	if write {
		op.name, op.method, op.write, op.value = registerWrite, http.MethodPut, true, op.id
		op.body = mustJSON(map[string]string{"address": op.value})
	}
	return op
}

func (r *register) nextOfList(write bool) operation {
	op := operation{id: newID(), name: listRead, method: http.MethodGet, path: listPath, keyspace: "users", key: r.customer}
	if write {
		op.name, op.method, op.write, op.value = listAppend, http.MethodPost, true, op.id
		op.body = mustJSON(map[string]string{"wish": op.value})
	}
	return op
}

// alternate orders gateways so that neighbours belong to different sites as far as possible: when a whole site is gone,
// the next gateway is another site's.
func alternate(gateways []Gateway) []Gateway {
	var sites []string
	bySite := map[string][]Gateway{}
	for _, g := range gateways {
		site, _, _ := strings.Cut(g.Name, "/")
		if bySite[site] == nil {
			sites = append(sites, site)
		}
		bySite[site] = append(bySite[site], g)
	}
	var out []Gateway
	for n := 0; len(out) < len(gateways); n++ {
		for _, site := range sites {
			if n < len(bySite[site]) {
				out = append(out, bySite[site][n])
			}
		}
	}
	return out
}

// unreachable are the reasons of a gateway that cannot reach what the request is for; another one perhaps can.
var unreachable = []string{"no-peer", "peer-unreachable", "upstream-unreachable", "upstream-lost", "upstream-timeout", "lease", "deadline", "no-view", "stopping"}

// elsewhere tells whether the client had better ask another gateway next time.
func (r *Record) elsewhere() bool { return r.Status == 0 || slices.Contains(unreachable, r.Reason) }

var (
	errNoAddress    = errors.New("the answer holds no address")
	errOtherAddress = errors.New("the answer holds another address than the one that was written")
	errNoList       = errors.New("the answer holds no list")
)

// judgeRegister reads a register's answer, behind judge. Here a 4xx is no answer: nothing was written or read.
func (r *Record) judgeRegister(op operation, body []byte) {
	if r.Status >= 300 {
		r.Error = string(body[:min(len(body), 200)])
		if r.Status < 500 {
			r.Outcome = Fail
		}
		return
	}
	var a struct {
		Address *string `json:"address"`
	}
	switch err := json.Unmarshal(body, &a); {
	case err != nil || a.Address == nil:
		r.broken(errNoAddress, op.write)
	case !op.write:
		r.Value = *a.Address
	case *a.Address != op.value:
		r.broken(errOtherAddress, true)
	}
}

// judgeList reads a list's answer, which has more in it where it is a profile; behind judge. What is in the list is for the reader of the history to judge.
func (r *Record) judgeList(op operation, body []byte) {
	if r.Status >= 300 {
		r.Error = string(body[:min(len(body), 200)])
		if r.Status < 500 {
			r.Outcome = Fail
		}
		return
	}
	var a struct {
		Wishes *[]string `json:"wishes"`
	}
	if err := json.Unmarshal(body, &a); err != nil || a.Wishes == nil {
		r.broken(errNoList, op.write)
		return
	}
	r.List = *a.Wishes
}
