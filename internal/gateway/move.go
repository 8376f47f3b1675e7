package gateway

import (
	"fmt"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atollhq/atoll/internal/split"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// mover sends a part of a route's requests to another of the site's applications, and stops doing so when that fails more often
// than the one that they went to before.
type mover struct {
	declared topo.Move
	route    string
	to       *service
	guard    *guard
	counted  map[split.Way]map[bool]prometheus.Counter // by whether it failed
}

// ways are the labels of the two ways.
var ways = map[split.Way]string{split.Old: "old", split.New: "new"}

func newMovers(routes []*route.Route, services map[string]*service, stops *stops) (map[*route.Route]*mover, error) {
	out := make(map[*route.Route]*mover)
	for _, r := range routes {
		if r.Move == nil {
			continue
		}
		m := &mover{declared: *r.Move, route: r.Name, to: services[r.Move.To]}
		if m.to == nil {
			return nil, fmt.Errorf("route %s moves to %q, which is no upstream of this site", r.Name, r.Move.To)
		}
		m.guard = stops.newGuard("move", r.Name, r.Move, split.Budget{Errors: r.Move.Errors, Window: r.Move.Window}, stopErrors)
		out[r] = m
	}
	return out, nil
}

// choose decides which application the request is for, whatever instance of it: once for all attempts, as what one of them may
// have done, the other does not know of.
func (x *exchange) choose() {
	rt := x.target.Route
	x.app = x.g.upstreams.services[rt.Upstream]
	if rt.Move == nil {
		return
	}
	x.move = x.g.movers[rt]
	if x.move.guard.on() && split.Within(x.move.declared.Share, x.move.route, x.divided()) {
		x.app, x.way = x.move.to, split.New
	}
}

// divided names whom a request belongs to where requests are divided: its key, else its client. The two are never the same.
func (x *exchange) divided() string {
	if x.target.Key != "" {
		return "k" + x.target.Key
	}
	return "c" + customer(x.client())
}

// meets notes what became of an attempt; the last one counts when the request ends.
type meets uint8

const (
	// metNothing: nobody was asked, or what happened says nothing of the application.
	metNothing meets = iota
	// metAnswer: it answered.
	metAnswer
	// metFailure: it did not answer, or with a failure of its own, or was full.
	metFailure
)

// answeredBy is what an answer's head says. That the fence refused a write says nothing against the application; whether this
// route sends such writes again does not matter here.
func answeredBy(resp *http.Response) meets {
	status, failed := resp.Header.Get("Grpc-Status"), resp.StatusCode >= http.StatusInternalServerError
	if status != "" {
		code, err := strconv.Atoi(status)
		failed = failed || err != nil || grpcFailures[code]
	}
	if !failed {
		return metAnswer
	}
	if _, _, _, fenced := parseFenced(resp.Header); fenced {
		return metNothing
	}
	return metFailure
}

// grpcFailures are status codes that are a service's own failures: what would be a 5xx in HTTP.
var grpcFailures = map[int]bool{grpcUnknown: true, grpcDeadlineExceeded: true, grpcUnimplemented: true, grpcInternal: true, grpcUnavailable: true, grpcDataLoss: true}

// count takes in what the request came to.
func (m *mover) count(way split.Way, met meets) {
	if met == metNothing {
		return
	}
	failed := met == metFailure
	m.counted[way][failed].Inc()
	why := stopReason("")
	if failed {
		why = stopErrors
	}
	m.guard.count(way, why)
}

// debugMove is what /debug/moves shows of a route.
type debugMove struct {
	From    string      `json:"from"`
	To      string      `json:"to"`
	Share   float64     `json:"share"`
	Stopped *stop       `json:"stopped,omitempty"` // everything goes to From
	Window  split.Tally `json:"window"`            // what was counted lately
}

// serveDebugMoves shows how far each move of this gateway is.
func (g *Gateway) serveDebugMoves(w http.ResponseWriter, _ *http.Request) {
	out := make(map[string]debugMove)
	for r, m := range g.movers {
		out[r.Name] = debugMove{From: r.Upstream, To: m.declared.To, Share: m.declared.Share, Stopped: m.guard.stopped.Load(), Window: m.guard.tally(stopErrors)}
	}
	writeJSON(w, http.StatusOK, out)
}
