package gateway

import (
	"github.com/prometheus/client_golang/prometheus"

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
	ended := vec("hold_ended_total", "Holds of requests, by how they ended.", "reason")
	for _, end := range holdEnds {
		m.holdEnded[end] = ended.WithLabelValues(string(end))
	}
	m.addRoutes(g.table.Routes(), vec("requests_total", "Requests by route and class of status.", "route", "class"))

	gauge("held", "Requests that are held now.", func() float64 { return float64(g.room.held()) })
	gauge("view_version", "Version of the view in use.", func() float64 { return float64(g.views.load().version().version) })
	gauge("view_generation", "Generation of the view in use.", func() float64 { return float64(g.views.load().version().generation) })
	gauge("opened_version", "Version up to which this site's fence is known to be open.", func() float64 { return float64(g.views.load().opened) })
	gauge("lease_remaining_seconds", "Remaining time of this site's lease as the gateway knows it.", func() float64 { return g.lease.remaining().Seconds() })
	return m
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
