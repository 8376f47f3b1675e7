package assess

import (
	"math"
	"slices"
)

const month = year / 12

// corePrice and storePrice are those of a site.
func (e *Estate) corePrice(site string) Number {
	if e.Sites[site].Kind == Cloud {
		return e.Prices.CloudCore
	}
	return e.Prices.OwnCore
}

func (e *Estate) storePrice(site string) Number {
	if e.Sites[site].Kind == Cloud {
		return e.Prices.CloudGB
	}
	return e.Prices.OwnGB
}

// trafficPrice is that of a GB between two sites.
func (e *Estate) trafficPrice(a, b string) float64 {
	switch {
	case a == b:
		return 0
	case e.Sites[a].City == e.Sites[b].City:
		return e.Prices.NearGB.Mean()
	}
	return e.Prices.FarGB.Mean()
}

// cores is how many cores of a service a site has to hold: its share of the peak with the worst other site lost, where
// every site serves; what stands by, where one does.
func (p Placement) cores(i int, peak float64) float64 {
	switch {
	case active(p.Pattern):
		return peak / float64(max(1, len(p.Sites)-1))
	case i == 0:
		return peak
	}
	return peak * standby(p.Pattern)
}

// month is what a placement costs in a month, item by item.
func (e *Estate) month(plan Plan, service string) (total float64, items []Part, inputs []Input) {
	p, s := plan[service], e.Services[service]
	add := func(name string, v float64, from ...Number) {
		if v > 0 {
			items = append(items, Part{Name: name, Value: v, Unit: Money})
			total += v
		}
		for _, n := range from {
			if in := inputOf(n); !slices.Contains(inputs, in) {
				inputs = append(inputs, in)
			}
		}
	}
	for i, site := range p.Sites {
		cores, price := p.cores(i, s.Demand.Cores.Mean()), e.corePrice(site)
		if e.Sites[site].Kind == Cloud { // paid while it runs: the mean demand and a fifth more, never more than the peak
			cores *= min(1, 1.2*e.meanShare(s))
		}
		add("cores at "+site, cores*price.Mean(), price, s.Demand.Cores)
		if s.Data != nil && (i == 0 || p.Pattern != Single) {
			add("storage at "+site, s.Data.Size.Mean()/1e9*e.storePrice(site).Mean(), e.storePrice(site), s.Data.Size)
		}
		if s.Data != nil && i > 0 {
			bytes := s.Data.Changes.Mean() * e.meanShare(s) * month
			add("changes to "+site, bytes/1e9*e.trafficPrice(p.Sites[0], site), s.Data.Changes)
		}
		if !*e.Sites[site].Exists && !e.usedByOthers(plan, service, site) {
			add("site "+site, e.Sites[site].FixedMonth.Mean(), e.Sites[site].FixedMonth)
		}
	}
	for _, w := range p.serving() {
		for _, c := range s.Calls {
			for _, to := range e.ways(c, w.site, plan[c.To]) {
				bytes := s.Demand.Peak.Mean() * e.meanShare(s) * month * w.share * to.share * c.Times.Mean() * 2 * c.Bytes.Mean()
				add("calls to "+c.To+" at "+to.site, bytes/1e9*e.trafficPrice(w.site, to.site), c.Times, c.Bytes)
			}
		}
	}
	care := e.Prices.PerYear[p.Pattern]
	add("care", care.Mean()/12*e.Prices.Person.Mean(), care, e.Prices.Person)
	return total, items, inputs
}

func (e *Estate) usedByOthers(plan Plan, service, site string) bool {
	for name, p := range plan {
		if name != service && slices.Contains(p.Sites, site) {
			return true
		}
	}
	return false
}

// once is what it costs to get from today's way to this one.
func (e *Estate) once(plan Plan, service string) (float64, []Input) {
	p, now := plan[service], e.Services[service].Now
	if p.Pattern == now.Pattern && slices.Equal(p.Sites, now.Sites) {
		return 0, nil
	}
	work := e.Prices.Work[p.Pattern]
	sum := work.Mean() * e.Prices.Person.Mean()
	inputs := []Input{inputOf(work), inputOf(e.Prices.Person)}
	for _, site := range p.Sites {
		if s := e.Sites[site]; !*s.Exists && !e.usedByOthers(plan, service, site) {
			sum += s.BuildOnce.Mean()
			inputs = append(inputs, inputOf(s.BuildOnce))
		}
	}
	return sum, inputs
}

// worth is what one interruption costs: revenue that does not come back, people, and the penalty beyond its moment.
func (e *Estate) worth(s *Service, seconds, share float64) float64 {
	sum := seconds / 60 * share * s.Revenue.Minute.Mean() * (1 - s.Revenue.Deferred.Mean())
	sum += seconds / hour * e.Prices.HourLabour.Mean()
	if s.Revenue.Penalty.Mean() > 0 && seconds > s.Revenue.After.Mean() {
		sum += s.Revenue.Penalty.Mean()
	}
	return sum
}

// expectedWorth is the mean of worth over an interruption's length.
func (e *Estate) expectedWorth(s *Service, i *interruption, recovery, coverage float64) float64 {
	mean := i.expected(recovery, coverage)
	sum := mean/60*i.share*s.Revenue.Minute.Mean()*(1-s.Revenue.Deferred.Mean()) + mean/hour*e.Prices.HourLabour.Mean()
	if penalty := s.Revenue.Penalty.Mean(); penalty > 0 {
		after := s.Revenue.After.Mean()
		long := 0.0 // P(an outage that is waited for is longer than that)
		if left := after - i.restore; left <= 0 {
			long = 1
		} else if i.outage > 0 {
			long = math.Exp(-left / i.outage)
		}
		switch {
		case i.whole && recovery <= after:
			long = 0
		case i.whole:
			long = 1
		case !i.waits && recovery <= after:
			long *= 1 - coverage
		}
		sum += penalty * long
	}
	return sum
}

// loss is what a service's outages cost in a year.
func (e *Estate) loss(plan Plan, service string, ways []interruption, lost float64) (float64, []Part) {
	p, s := plan[service], e.Services[service]
	recovery, coverage := 0.0, 1.0
	if p.Pattern != Single {
		r := e.Recovery[p.Pattern]
		recovery, coverage = r.meanTime(s.restoreOf(p.Pattern).Mean()), r.Coverage.Mean()
	}
	sum := 0.0
	var parts []Part
	for i := range ways {
		v := ways[i].perYear * e.expectedWorth(s, &ways[i], recovery, coverage)
		sum += v
		parts = append(parts, Part{Name: ways[i].cause, Value: v, Unit: Money})
		if s.Revenue.LostData.Mean() > 0 && !ways[i].whole && !ways[i].waits {
			v := ways[i].perYear * ways[i].share * lost * s.Revenue.LostData.Mean()
			sum += v
			parts = append(parts, Part{Name: "writes lost with " + ways[i].cause, Value: v, Unit: Money})
		}
	}
	return sum, parts
}

// bill is what a placement costs and what its outages do.
func (e *Estate) bill(plan Plan, service string, ways []interruption, r RecoveryTime, book Book) Bill {
	p, s := plan[service], e.Services[service]
	var b Bill
	total, items, inputs := e.month(plan, service)
	b.Items = items
	b.Month = book.Note(Derivation{ID: service + ".month", What: "cost of " + service + " in a month", Value: total, Unit: Money, Parts: items, Inputs: inputs,
		Method: "cores for the peak with the worst site lost (in the cloud: for 1.2 times the mean demand) + a copy of the data at each site + changes and calls between sites + care"})
	once, inputs := e.once(plan, service)
	b.Once = book.Note(Derivation{ID: service + ".once", What: "cost of bringing " + service + " there", Value: once, Unit: Money, Inputs: inputs, Method: "person-months of work + sites that have to be built"})
	loss, parts := e.loss(plan, service, ways, r.RPO.Mean)
	money := []Input{inputOf(s.Revenue.Minute), inputOf(s.Revenue.Deferred), inputOf(e.Prices.HourLabour)}
	b.Loss = book.Note(Derivation{ID: service + ".loss", What: "expected cost of outages of " + service + " in a year", Value: loss, Unit: Money, Parts: parts, Inputs: money,
		Method: "Σ frequency × (length × share of users × revenue per minute × (1 − what comes back later) + length × people + penalty beyond its moment) + lost writes"})
	b.BadYear = book.Note(Derivation{ID: service + ".loss-bad-year", What: "cost of outages of " + service + " in the worst of twenty years", Unit: Money, Inputs: money,
		Value:  e.badYear(service, p, ways, func(seconds, share float64) float64 { return e.worth(s, seconds, share) }),
		Method: "95th percentile of the same over drawn years"})
	return b
}
