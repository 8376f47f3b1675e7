package assess

import (
	"math"
	"slices"
)

const month = year / 12

// corePrice and storePrice are those of a site.
func (e *Estate) corePrice(site string) *Number {
	if e.Sites[site].Kind == Cloud {
		return &e.Prices.CloudCore
	}
	return &e.Prices.OwnCore
}

func (e *Estate) storePrice(site string) *Number {
	if e.Sites[site].Kind == Cloud {
		return &e.Prices.CloudGB
	}
	return &e.Prices.OwnGB
}

// trafficPrice is that of a GB between two sites; nil within one.
func (e *Estate) trafficPrice(a, b string) *Number {
	switch {
	case a == b:
		return nil
	case e.Sites[a].City == e.Sites[b].City:
		return &e.Prices.NearGB
	}
	return &e.Prices.FarGB
}

// cores is how many cores of a service its i-th site has to hold: its share of the peak with the worst other site lost,
// where every site serves; what stands by, where one does.
func (p Placement) cores(i int, peak float64) float64 {
	switch {
	case active(p.Pattern):
		return peak / float64(max(1, len(p.Sites)-1))
	case i == 0:
		return peak
	}
	return peak * standby(p.Pattern)
}

// items collects what a bill is made of.
type items struct {
	parts  []Part
	inputs []Input
}

// add notes an item; on nil it does nothing, for whoever asks for the sum alone.
func (l *items) add(name, at string, v float64, from ...*Number) {
	if l == nil {
		return
	}
	if v > 0 {
		l.parts = append(l.parts, Part{Name: name + at, Value: v, Unit: Money})
	}
	for _, n := range from {
		if in := inputOf(*n); !slices.Contains(l.inputs, in) {
			l.inputs = append(l.inputs, in)
		}
	}
}

// month is what a service costs in a month, without what sites cost that would have to be built.
func (v *evaluator) month(a *arrangement, service int, list *items) (total float64) {
	p, s := v.spot(a, service), v.Services[v.services[service]]
	usual := v.meanShare(service)
	for i, site := range p.Sites {
		price := v.corePrice(site)
		cores := p.cores(i, s.Demand.Cores.Mean())
		if v.Sites[site].Kind == Cloud { // paid while it runs: the mean demand and a fifth more, never more than the peak
			cores *= min(1, 1.2*usual)
		}
		total += cores * price.Mean()
		list.add("cores at ", site, cores*price.Mean(), price, &s.Demand.Cores)
		if s.Data == nil {
			continue
		}
		store := v.storePrice(site)
		copied := s.Data.Size.Mean() / 1e9 * store.Mean()
		total += copied
		list.add("storage at ", site, copied, store, &s.Data.Size)
		if price := v.trafficPrice(p.Sites[0], site); i > 0 && price != nil {
			changes := s.Data.Changes.Mean() * usual * year / 12 / 1e9 * price.Mean()
			total += changes
			list.add("changes to ", site, changes, price, &s.Data.Changes)
		}
	}
	total += v.callCost(a, service, list)
	care := v.Prices.PerYear[p.Pattern]
	people := care.Mean() / 12 * v.Prices.Person.Mean()
	list.add("care", "", people, &care, &v.Prices.Person)
	return total + people
}

// callCost is what the bytes of calls between sites cost in a month.
func (v *evaluator) callCost(a *arrangement, service int, list *items) (total float64) {
	p, s := v.spot(a, service), v.Services[v.services[service]]
	answers := s.Demand.Peak.Mean() * v.meanShare(service) * month
	for _, from := range p.serving() {
		for _, c := range s.Calls {
			for _, to := range v.callWays(c, from.site, v.spot(a, v.service[c.To]).Placement) {
				price := v.trafficPrice(from.site, to.site)
				if price == nil || to.share == 0 {
					continue
				}
				bytes := answers * from.share * to.share * c.Times.Mean() * 2 * c.Bytes.Mean()
				total += bytes / 1e9 * price.Mean()
				list.add("calls to "+c.To+" at ", to.site, bytes/1e9*price.Mean(), price, &s.Demand.Peak, &c.Times, &c.Bytes)
			}
		}
	}
	return total
}

// newSites lists the sites that would have to be built for a plan, from another one on; nil is from nothing.
func (v *evaluator) newSites(from, to *arrangement) []int {
	var out []int
	for i, name := range v.sites {
		if !*v.Sites[name].Exists && v.usedBy(to, i) > 0 && (from == nil || v.usedBy(from, i) == 0) {
			out = append(out, i)
		}
	}
	return out
}

// usedBy counts the services at a site.
func (v *evaluator) usedBy(a *arrangement, site int) (n int) {
	for i := range a.at {
		if slices.Contains(v.spot(a, i).at, site) {
			n++
		}
	}
	return n
}

// siteMonth is what a site that does not exist would cost in a month: its own fixed cost and its lines'.
func (v *evaluator) siteMonth(site int) float64 {
	sum := v.Sites[v.sites[site]].FixedMonth.Mean()
	for _, l := range v.Links {
		if slices.Contains(l.Between, v.sites[site]) {
			sum += l.FixedMonth.Mean()
		}
	}
	return sum
}

// sitesMonth is what a plan's sites cost in a month that do not exist yet.
func (v *evaluator) sitesMonth(a *arrangement) (sum float64) {
	for _, site := range v.newSites(nil, a) {
		sum += v.siteMonth(site)
	}
	return sum
}

// fixedMonth is what sites and lines that exist cost in a month, whether they are used or not.
func (v *evaluator) fixedMonth() (sum float64) {
	for _, name := range v.sites {
		if s := v.Sites[name]; *s.Exists {
			sum += s.FixedMonth.Mean()
		}
	}
	for _, l := range v.Links {
		if *v.Sites[l.Between[0]].Exists && *v.Sites[l.Between[1]].Exists {
			sum += l.FixedMonth.Mean()
		}
	}
	return sum
}

// work is what it costs to bring one service to a placement.
func (v *evaluator) work(s *spot) float64 {
	return v.Prices.Work[s.Pattern].Mean() * v.Prices.Person.Mean()
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

// worthOf is the mean of worth over an interruption's length, and how much of it one unit of revenue a minute makes.
func (v *evaluator) worthOf(s *Service, i *interruption, r *recoveryTimes) (total, perMinute float64) {
	mean := i.expected(r)
	perMinute = mean / 60 * i.share * (1 - s.Revenue.Deferred.Mean())
	total = perMinute*s.Revenue.Minute.Mean() + mean/hour*v.Prices.HourLabour.Mean()
	if penalty := s.Revenue.Penalty.Mean(); penalty > 0 {
		total += penalty * i.longerThan(s.Revenue.After.Mean(), r)
	}
	return total, perMinute
}

// longerThan is the probability that an interruption takes longer.
func (i *interruption) longerThan(after float64, r *recoveryTimes) float64 {
	outage := 0.0
	switch left := after - i.restore; {
	case left <= 0:
		outage = 1
	case i.outage > 0:
		outage = math.Exp(-left / i.outage)
	}
	if i.waits {
		return outage
	}
	slow := 0.0 // recoveries that take longer
	for _, t := range r.few {
		if t > after {
			slow += 1 / float64(len(r.few))
		}
	}
	if i.whole {
		return slow
	}
	return outage * (1 - r.coverage + r.coverage*slow)
}

// writesLost is what one interruption costs in writes that were acknowledged and are gone: behind a destruction, those
// since the last backup; behind a recovery that ends before the outage does, what replication was behind.
func (v *evaluator) writesLost(a *arrangement, service int, i *interruption) float64 {
	p, s := v.spot(a, service), v.Services[v.services[service]]
	price := s.Revenue.LostData.Mean()
	switch {
	case price == 0 || s.Data == nil || i.whole || i.own == 0 && !i.backup:
		return 0
	case i.backup:
		return price * s.Data.Backup.Mean() / 2
	case i.waits || i.outage == 0:
		return 0
	}
	r := v.recoveryFrom(a, service, i)
	taken := 0.0
	for _, t := range r.few {
		taken += math.Exp(-t/i.outage) / float64(len(r.few))
	}
	return price * v.meanLost(p, s) * i.own * taken * r.coverage
}

// losses are what a service's outages cost in a year.
type losses struct {
	total, perMinute float64
	parts            []Part
}

// loss sums them up; parts are listed only if wanted.
func (v *evaluator) loss(a *arrangement, service int, ways []interruption, over overload, listed bool) losses {
	s := v.Services[v.services[service]]
	var out losses
	add := func(name string, i *interruption, money float64) {
		out.total += money
		if listed {
			if i != nil {
				name += i.name()
			}
			out.parts = append(out.parts, Part{Name: name, Value: money, Unit: Money})
		}
	}
	for i := range ways {
		way := &ways[i]
		cost, perMinute := v.worthOf(s, way, v.recoveryFrom(a, service, way))
		out.perMinute += way.perYear * perMinute
		add("", way, way.perYear*cost)
		if lost := v.writesLost(a, service, way); lost > 0 {
			add("writes lost with ", way, way.perYear*lost)
		}
	}
	if over.weighed > 0 {
		perMinute := over.weighed / 60 * (1 - s.Revenue.Deferred.Mean())
		out.perMinute += perMinute
		add("demand beyond what its sites carry", nil, perMinute*s.Revenue.Minute.Mean())
	}
	return out
}

// bill is what a placement costs and what its outages do. Its derivations are named id.something.
func (v *evaluator) bill(a *arrangement, service int, worst float64, id string, book Book) (Bill, error) {
	p, s, name := v.spot(a, service), v.Services[v.services[service]], v.services[service]
	var list items
	total := v.month(a, service, &list)
	once := Derivation{ID: id + ".once", What: "cost of bringing " + name + " there", Unit: Money, Method: "it is there already"}
	if p.id != v.today.at[service] {
		once.Method = "person-months of work + its share of sites that have to be built"
		once.Value = v.work(p)
		once.Parts = []Part{{Name: "work", Value: once.Value, Unit: Money}}
		once.Inputs = []Input{inputOf(v.Prices.Work[p.Pattern]), inputOf(v.Prices.Person)}
	}
	for _, site := range v.newSites(nil, a) {
		if !slices.Contains(p.at, site) {
			continue
		}
		n, share := v.Sites[v.sites[site]], 1/float64(v.usedBy(a, site))
		total += v.siteMonth(site) * share
		list.add("share of the new site ", v.sites[site], v.siteMonth(site)*share, &n.FixedMonth)
		once.Value += n.BuildOnce.Mean() * share
		once.Parts = append(once.Parts, Part{Name: "share of building " + v.sites[site], Value: n.BuildOnce.Mean() * share, Unit: Money})
		once.Inputs = append(once.Inputs, inputOf(n.BuildOnce))
	}
	b := Bill{Items: list.parts, Once: book.Note(once)}
	b.Month = book.Note(Derivation{ID: id + ".month", What: "cost of " + name + " in a month", Value: total, Unit: Money, Parts: list.parts, Inputs: list.inputs,
		Method: "cores for the peak with the worst site lost (in the cloud: for 1.2 times the mean demand) + a copy of the data at each site + changes and calls between sites + care + its share of new sites"})
	ways, err := v.interruptions(a, service)
	if err != nil {
		return b, err
	}
	loss := v.loss(a, service, ways, v.overload(a, service), true)
	money := []Input{inputOf(s.Revenue.Minute), inputOf(s.Revenue.Deferred), inputOf(v.Prices.HourLabour)}
	if s.Revenue.Penalty.Mean() > 0 {
		money = append(money, inputOf(s.Revenue.Penalty), inputOf(s.Revenue.After))
	}
	if s.Data != nil && s.Revenue.LostData.Mean() > 0 {
		money = append(money, inputOf(s.Revenue.LostData), inputOf(s.Data.Backup))
	}
	because := Part{"downtime", book[id+".downtime"].Value, Duration, id + ".downtime"}
	b.Loss = book.Note(Derivation{ID: id + ".loss", What: "expected cost of outages of " + name + " in a year", Value: loss.total, Unit: Money, Parts: append(loss.parts, because), Inputs: money,
		Method: "Σ frequency × (length × share of users × revenue per minute × (1 − what comes back later) + length × people + penalty beyond its moment) + lost writes"})
	b.BadYear = book.Note(Derivation{ID: id + ".loss-bad-year", What: "cost of outages of " + name + " in the worst of twenty years", Unit: Money, Value: worst, Inputs: money,
		Parts: []Part{{"in the mean", loss.total, Money, b.Loss.ID}}, Method: "95th percentile of the same over drawn years"})
	return b, nil
}
