package gateway

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/atollhq/atoll/internal/balance"
	"github.com/atollhq/atoll/internal/compare"
	"github.com/atollhq/atoll/internal/limit"
	"github.com/atollhq/atoll/internal/split"
	"github.com/atollhq/atoll/route"
	"github.com/atollhq/atoll/topo"
)

// metrics has its own registry (the embedded store uses the global one), and resolves what requests count ahead.
type metrics struct {
	registry    *prometheus.Registry
	routes      map[string]routeMetrics
	refused     map[route.Reason]prometheus.Counter
	holdEnded   map[holdEnd]prometheus.Counter
	forwards    map[topo.SiteID]forwardMetrics
	misdirected prometheus.Counter
	fenced      prometheus.Counter
	retries     prometheus.Counter
	clientGone  prometheus.Counter
	streams     prometheus.Counter
	badLines    prometheus.Counter
	sessions    map[sessionEnd]prometheus.Counter

	refusedConns map[refusedConn]prometheus.Counter
	stale        prometheus.Counter
}

// forwardMetrics counts requests that were sent to another site's gateways.
// silent are those that were not sent, because no gateway of that site is believed to answer.
type forwardMetrics struct{ answered, misdirected, failed, silent prometheus.Counter }

type routeMetrics struct {
	seconds prometheus.Observer
	answers [6]prometheus.Counter // by class of status
}

func newMetrics(g *Gateway) *metrics {
	m := &metrics{
		registry:  prometheus.NewRegistry(),
		routes:    make(map[string]routeMetrics),
		refused:   make(map[route.Reason]prometheus.Counter),
		holdEnded: make(map[holdEnd]prometheus.Counter),
		forwards:  make(map[topo.SiteID]forwardMetrics),
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "atoll_gateway_" + name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	vec := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "atoll_gateway_" + name, Help: help}, labels)
		m.registry.MustRegister(c)
		return c
	}
	gauge := func(name, help string, read func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "atoll_gateway_" + name, Help: help}, read))
	}
	m.misdirected = counter("misdirected_total", "Forwarded requests answered with 421: this site does not own the bucket.")
	m.fenced = counter("fenced_total", "Answers of applications that say that the fence refused the write.")
	m.retries = counter("retries_total", "Attempts after an error.")
	m.clientGone = counter("client_gone_total", "Requests whose client went away before the answer.")
	m.stale = counter("stale_total", "Reads for which this site's copy was older than their route allows.")
	m.streams = counter("view_streams_total", "View streams begun.")
	m.badLines = counter("view_lines_refused_total", "Lines of a view stream that were refused.")
	forwards := vec("forwards_total", "Requests sent to another site's gateways, by result.", "site", "result")
	for site := range g.upstreams.peers {
		of := func(result string) prometheus.Counter { return forwards.WithLabelValues(string(site), result) }
		m.forwards[site] = forwardMetrics{of("answered"), of("misdirected"), of("failed"), of("silent")}
	}

	refused := vec("refused_total", "Requests that the gateway answered itself, by reason.", "reason")
	for reason := range refusals {
		m.refused[reason] = refused.WithLabelValues(string(reason))
	}
	sessions := vec("sessions_total", "Requests whose session mattered, by what became of it.", "result")
	m.sessions = make(map[sessionEnd]prometheus.Counter)
	for _, end := range sessionEnds {
		m.sessions[end] = sessions.WithLabelValues(string(end))
	}
	m.addServices(g.upstreams.services, vec)
	m.addMoves(g.movers, vec)
	m.addShadows(g.shadows.of, vec)
	ended := vec("hold_ended_total", "Holds of requests, by how they ended.", "reason")
	for _, end := range holdEnds {
		m.holdEnded[end] = ended.WithLabelValues(string(end))
	}
	for r, q := range g.quotas {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "atoll_gateway_quota_keys", Help: "Keys or clients of a route that are remembered for its quota.",
			ConstLabels: prometheus.Labels{"route": r.Name}}, func() float64 { return float64(q.buckets.Len()) }))
	}
	conns := vec("connections_refused_total", "Connections of users that were not kept, by reason.", "reason")
	m.refusedConns = make(map[refusedConn]prometheus.Counter)
	for _, why := range refusedConns {
		m.refusedConns[why] = conns.WithLabelValues(string(why))
	}
	m.addRoutes(g.table.Routes(), vec("requests_total", "Requests by route and class of status.", "route", "class"))

	gauge("connections", "Connections of users that are open now.", func() float64 {
		if g.listeners.users == nil {
			return 0
		}
		return float64(g.listeners.users.open.Load())
	})
	gauge("held", "Requests that are held now.", func() float64 { return float64(g.room.held()) })
	gauge("long_lived", "WebSockets, gRPC calls and event streams that are open now.", func() float64 { return float64(g.streams.count()) })
	gauge("view_version", "Version of the view in use.", func() float64 { return float64(g.views.load().version().version) })
	gauge("view_generation", "Generation of the view in use.", func() float64 { return float64(g.views.load().version().generation) })
	gauge("opened_version", "Version up to which this site's fence is known to be open.", func() float64 { return float64(g.views.load().opened) })
	gauge("lease_remaining_seconds", "Remaining time of this site's lease as the gateway knows it.", func() float64 { return g.lease.remaining().Seconds() })
	return m
}

// outcomes are the labels of what became of attempts at instances.
var outcomes = map[balance.Outcome]string{balance.Answered: "answered", balance.Errored: "errored", balance.Unreached: "unreached"}

// addServices makes what is counted per service.
func (m *metrics) addServices(services map[string]*service, vec func(name, help string, labels ...string) *prometheus.CounterVec) {
	attempts := vec("attempts_total", "Attempts at this site's applications, by what became of them.", "upstream", "outcome")
	ejected := vec("ejections_total", "Instances that were left alone for a while, by what was met there.", "upstream", "outcome")
	away := vec("overload_total", "Requests that were not let through to an application, by priority and by why.", "upstream", "priority", "cause")
	checks := vec("checks_total", "Active checks of instances, by result.", "upstream", "result")
	for name, s := range services {
		s.metrics = serviceMetrics{
			attempts: make(map[balance.Outcome]prometheus.Counter), ejected: make(map[balance.Outcome]prometheus.Counter),
			checksGood: checks.WithLabelValues(name, "good"), checksBad: checks.WithLabelValues(name, "bad"),
		}
		for o, label := range outcomes {
			s.metrics.attempts[o] = attempts.WithLabelValues(name, label)
			s.metrics.ejected[o] = ejected.WithLabelValues(name, label)
		}
		gauge := func(metric, help string, read func(balance.Summary) int) {
			m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "atoll_gateway_" + metric, Help: help, ConstLabels: prometheus.Labels{"upstream": name}},
				func() float64 { return float64(read(s.pool.Summary(time.Now()))) }))
		}
		gauge("instances", "Instances of an application.", func(s balance.Summary) int { return s.All })
		gauge("instances_fit", "Instances that are neither ejected nor found unhealthy.", func(s balance.Summary) int { return s.Fit })
		gauge("instances_ejected", "Instances that are ejected.", func(s balance.Summary) int { return s.Ejected })
		if s.gate != nil {
			m.addGate(name, s.gate, away)
		}
		gauge("instances_panic", "1 while too few instances are fit, so that all are used.", func(s balance.Summary) int { return boolRank(s.Panic) })
	}
}

// addGate makes what is counted where a service's requests are bounded.
func (m *metrics) addGate(name string, g *gate, away *prometheus.CounterVec) {
	g.away = make(map[limit.Priority]map[turnedAway]prometheus.Counter)
	for p, label := range priorities {
		g.away[p] = make(map[turnedAway]prometheus.Counter)
		for _, why := range []turnedAway{awayFull, awayDisplaced, awayWaited} {
			g.away[p][why] = away.WithLabelValues(name, string(label), string(why))
		}
	}
	gauge := func(metric, help string, read func(gateState) float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "atoll_gateway_" + metric, Help: help, ConstLabels: prometheus.Labels{"upstream": name}},
			func() float64 { return read(g.state()) }))
	}
	gauge("concurrency_limit", "Requests that may be at an application now.", func(s gateState) float64 { return float64(s.Limit) })
	gauge("concurrency", "Requests that are at an application now.", func(s gateState) float64 { return float64(s.Inside) })
	gauge("pending", "Requests that wait for their turn at an application.", func(s gateState) float64 { return float64(s.Pending) })
	gauge("base_seconds", "How long an application's answer takes without waiting, as far as that is known.", func(s gateState) float64 { return s.BaseMS / 1000 })
}

// addMoves makes what is counted where a part of a route's requests goes another way.
func (m *metrics) addMoves(movers map[*route.Route]*mover, vec func(name, help string, labels ...string) *prometheus.CounterVec) {
	if len(movers) == 0 {
		return
	}
	moved := vec("moves_total", "Requests of routes with a move, by way and by what became of them.", "route", "way", "result")
	for r, mv := range movers {
		mv.counted = make(map[split.Way]map[bool]prometheus.Counter)
		for way, label := range ways {
			mv.counted[way] = map[bool]prometheus.Counter{false: moved.WithLabelValues(r.Name, label, "answered"), true: moved.WithLabelValues(r.Name, label, "failed")}
		}
		m.addStopped("move", r.Name, mv.guard, stopErrors)
	}
}

// addShadows makes what is counted where copies go to a candidate.
func (m *metrics) addShadows(shadows map[*route.Route]*shadow, vec func(name, help string, labels ...string) *prometheus.CounterVec) {
	if len(shadows) == 0 {
		return
	}
	copies := vec("shadow_copies_total", "Copies of requests at a candidate, by what became of them.", "route", "result")
	skipped := vec("shadow_skipped_total", "Requests that were drawn and not copied, by reason.", "route", "reason")
	compared := vec("shadow_compared_total", "Answers of a candidate that were compared, by result.", "route", "result")
	for r, s := range shadows {
		s.skipped, s.ended, s.results = make(map[shadowSkip]prometheus.Counter), make(map[shadowEnd]prometheus.Counter), make(map[compare.Result]prometheus.Counter)
		for _, why := range shadowSkips {
			s.skipped[why] = skipped.WithLabelValues(r.Name, string(why))
		}
		for _, end := range shadowEnds {
			s.ended[end] = copies.WithLabelValues(r.Name, string(end))
		}
		for _, result := range compare.Results {
			s.results[result] = compared.WithLabelValues(r.Name, string(result))
		}
		m.addStopped("shadow", r.Name, s.guard, stopErrors, stopLate)
	}
}

func (m *metrics) addStopped(what, route string, g *guard, reasons ...stopReason) {
	for _, why := range reasons {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "atoll_gateway_stopped", Help: "1 where a move or a shadow has stopped by itself, by reason.",
			ConstLabels: prometheus.Labels{"what": what, "route": route, "reason": string(why)}},
			func() float64 { s := g.stopped.Load(); return float64(boolRank(s != nil && s.Reason == why)) }))
	}
}

func (m *metrics) addRoutes(routes []*route.Route, requests *prometheus.CounterVec) {
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "atoll_gateway_request_seconds", Help: "Time from a request's head to the end of its answer, by route.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
	}, []string{"route"})
	m.registry.MustRegister(seconds)
	for _, r := range routes {
		rm := routeMetrics{seconds: seconds.WithLabelValues(r.Name)}
		for class := 2; class <= 5; class++ {
			rm.answers[class] = requests.WithLabelValues(r.Name, string(rune('0'+class))+"xx")
		}
		m.routes[r.Name] = rm
	}
}
