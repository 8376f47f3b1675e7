package assess

import (
	"fmt"
	"maps"
	"slices"
)

const (
	minute = 60.0
	hour   = 3600.0
	day    = 24 * hour
	year   = 365 * day
)

// usualServers are those of a service at one site.
const usualServers = 2.0

// repairs are what repairs usually take, by kind of component; from operators' reports, wide on purpose.
var repairs = map[string][3]float64{
	"power":   {30 * minute, 2 * hour, 6 * hour},
	"cooling": {hour, 3 * hour, 8 * hour},
	"network": {20 * minute, hour, 4 * hour},
	"carrier": {hour, 4 * hour, 12 * hour},
	"duct":    {4 * hour, 9 * hour, 24 * hour},
	"rack":    {hour, 3 * hour, 6 * hour},
	"":        {30 * minute, 2 * hour, 8 * hour},
}

// steps are the usual times of a recovery's steps, by pattern, in seconds: low, likely, high. A site that is lost under
// pattern single is waited for.
type steps struct {
	detect, decide, fence, promote, scale, shift, warm, verify [3]float64
	coverage                                                   float64
	falseEvery                                                 float64
	lag                                                        [3]float64
	work, care                                                 float64 // person-months for one service: to get there; a year
}

var usual = map[Pattern]steps{
	Single: {coverage: 1, falseEvery: 1000 * year, work: 0, care: .2},
	BackupRestore: {detect: [3]float64{5 * minute, 10 * minute, 20 * minute}, decide: [3]float64{15 * minute, 30 * minute, 90 * minute},
		fence: [3]float64{0, minute, 5 * minute}, scale: [3]float64{20 * minute, 40 * minute, 2 * hour}, shift: [3]float64{5 * minute, 10 * minute, 30 * minute},
		warm: [3]float64{5 * minute, 10 * minute, 30 * minute}, verify: [3]float64{15 * minute, 30 * minute, 90 * minute},
		coverage: .8, falseEvery: 100 * year, work: .3, care: .3},
	PilotLight: {detect: [3]float64{2 * minute, 5 * minute, 10 * minute}, decide: [3]float64{5 * minute, 15 * minute, 45 * minute},
		fence: [3]float64{minute, 2 * minute, 5 * minute}, promote: [3]float64{minute, 3 * minute, 10 * minute}, scale: [3]float64{8 * minute, 15 * minute, 45 * minute},
		shift: [3]float64{minute, 5 * minute, 15 * minute}, warm: [3]float64{2 * minute, 5 * minute, 15 * minute}, verify: [3]float64{5 * minute, 10 * minute, 30 * minute},
		coverage: .85, falseEvery: 20 * year, lag: [3]float64{.2, 2, 30}, work: .8, care: .6},
	WarmStandby: {detect: [3]float64{30, minute, 3 * minute}, decide: [3]float64{minute, 5 * minute, 15 * minute},
		fence: [3]float64{10, minute, 2 * minute}, promote: [3]float64{30, minute, 3 * minute}, scale: [3]float64{2 * minute, 5 * minute, 15 * minute},
		shift: [3]float64{30, 2 * minute, 5 * minute}, warm: [3]float64{minute, 2 * minute, 5 * minute}, verify: [3]float64{minute, 3 * minute, 10 * minute},
		coverage: .9, falseEvery: 10 * year, lag: [3]float64{.2, 1, 10}, work: 1.2, care: .9},
	SameCity: {detect: [3]float64{5, 10, 30}, decide: [3]float64{0, 1, 5}, fence: [3]float64{0, 5, 15}, promote: [3]float64{5, 15, 40},
		shift: [3]float64{1, 5, 30}, warm: [3]float64{0, 10, 60}, coverage: .95, falseEvery: 4 * year, work: 1, care: .6},
	OneWriter: {detect: [3]float64{10, 20, 60}, decide: [3]float64{0, minute, 5 * minute}, fence: [3]float64{5, 10, 30}, promote: [3]float64{10, 20, 60},
		scale: [3]float64{0, 0, 2 * minute}, shift: [3]float64{5, 15, 60}, warm: [3]float64{5, 30, 2 * minute}, verify: [3]float64{0, 30, 3 * minute},
		coverage: .9, falseEvery: 4 * year, lag: [3]float64{.1, 1, 5}, work: 2, care: 1.2},
	Partitioned: {detect: [3]float64{3, 10, 15}, decide: [3]float64{0, 0, 1}, fence: [3]float64{1, 2, 4}, promote: [3]float64{0, .5, 2},
		shift: [3]float64{0, .5, 2}, warm: [3]float64{0, 5, 30}, coverage: .95, falseEvery: 4 * year, lag: [3]float64{.05, .5, 3}, work: 5, care: 2.5},
}

// fill completes an estate. What is filled in is assumed, and says so wherever it is used.
func (e *Estate) fill() {
	if e.Title == "" {
		e.Title = e.File
	}
	if e.Seed == 0 {
		e.Seed = 1
	}
	for _, name := range slices.Sorted(maps.Keys(e.Components)) {
		c := e.Components[name]
		usual, known := repairs[c.Kind]
		if !known {
			usual = repairs[""]
		}
		orElse(&c.Lasts, Duration, "components."+name+".lasts", usual[0], usual[1], usual[2])
		if !c.Every.Set { // down = lasts / (every + lasts)
			every := c.Lasts.Mean() / c.Down.Mean() * (1 - c.Down.Mean())
			// for whoever reads the estate; with another guess of either, times says what follows
			c.Every = Number{every, every, every, Duration, true, c.Down.Assumed || c.Lasts.Assumed, "from down and lasts", "components." + name + ".down", c.Down.Line, c.Down.Column}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Sites)) {
		s := e.Sites[name]
		s.City = s.city(name)
		if s.Exists == nil {
			yes := true
			s.Exists = &yes
		}
		if s.Needs.Empty() && s.Kind != Witness {
			e.Notes = append(e.Notes, fmt.Sprintf("site %s says nothing of what it needs: it never fails in this assessment, besides by shared causes", name))
		}
		orElse(&s.FixedMonth, Money, "sites."+name+".fixed_month", 0, 0, 0)
		orElse(&s.BuildOnce, Money, "sites."+name+".build_once", 0, 0, 0)
		if !s.Cores.Set {
			s.Cores = assumed(Count, "sites."+name+".cores", 1e6, 1e6, 1e6)
		}
	}
	for i, l := range e.Links {
		path := fmt.Sprintf("links.%d.", i)
		orElse(&l.FixedMonth, Money, path+"fixed_month", 0, 0, 0)
		orElse(&l.Bandwidth, DataRate, path+"bandwidth", 125e6, 125e6, 125e6)
		if l.Name == "" {
			l.Name = l.Between[0] + "-" + l.Between[1]
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Services)) {
		e.Services[name].fill("services." + name + ".")
	}
	for name, c := range e.Curves {
		path := "curves." + name + "."
		orElse(&c.Usual, Ratio, path+"usual", 1, 1, 1)
		orElse(&c.Peaks, Count, path+"peak_days", 365, 365, 365)
	}
	e.fillRecovery()
	p := &e.Prices
	orElse(&p.HourLabour, Money, "prices.recovery_hour", 20, 60, 200)
}

func (s *Service) fill(path string) {
	orElse(&s.Servers.Count, Count, path+"servers.count", usualServers, usualServers, usualServers)
	need := max(1, s.Servers.Count.Low-1)
	orElse(&s.Servers.Need, Count, path+"servers.need", need, need, need)
	orElse(&s.Servers.Every, Duration, path+"servers.every", 30*day, 60*day, 180*day)
	orElse(&s.Servers.Lasts, Duration, path+"servers.lasts", 2*minute, 10*minute, hour)
	orElse(&s.Servers.Crews, Count, path+"servers.crews", s.Servers.Count.Low, s.Servers.Count.Mode, s.Servers.Count.High)
	orElse(&s.Servers.Coverage, Ratio, path+"servers.coverage", 1, 1, 1)
	orElse(&s.Latency.P50, Duration, path+"latency.p50", .005, .01, .03)
	orElse(&s.Latency.P99, Duration, path+"latency.p99", 4*s.Latency.P50.Low, 5*s.Latency.P50.Mode, 6*s.Latency.P50.High)
	orElse(&s.Demand.Peak, Count, path+"demand.peak", 10, 10, 10)
	orElse(&s.Demand.Cores, Count, path+"demand.cores", s.Servers.Count.Low, 2*s.Servers.Count.Mode, 4*s.Servers.Count.High)
	orElse(&s.Revenue.Minute, Money, path+"revenue.minute", 0, 0, 0)
	orElse(&s.Revenue.Deferred, Ratio, path+"revenue.deferred", 0, .3, .6)
	orElse(&s.Revenue.LostData, Money, path+"revenue.lost_data_second", 0, 0, 0)
	orElse(&s.Revenue.Penalty, Money, path+"revenue.penalty", 0, 0, 0)
	orElse(&s.Revenue.After, Duration, path+"revenue.penalty_after", 0, 0, 0)
	for i, c := range s.Calls {
		at := fmt.Sprintf("%scalls.%d.", path, i)
		orElse(&c.Times, Count, at+"times", 1, 1, 1)
		orElse(&c.Bytes, Data, at+"bytes", 1e3, 2e3, 5e3)
		orElse(&c.Writes, Ratio, at+"writes", 0, .2, .5)
	}
	if d := s.Data; d != nil {
		orElse(&d.Size, Data, path+"data.size", 1e9, 1e10, 1e11)
		orElse(&d.Changes, DataRate, path+"data.changes", 1e3, 1e5, 1e6)
		orElse(&d.ByUser, Ratio, path+"data.by_user", 0, .5, 1)
		orElse(&d.Backup, Duration, path+"data.backup_every", day, day, day)
		restore := d.Size.Mean() / 100e6 // at 100 MB/s
		orElse(&d.Restore, Duration, path+"data.restore", restore, 2*restore, 4*restore)
	}
	if s.Now.Automatic == nil {
		auto := len(s.Now.Sites) > 2 || s.Now.Quorum != ""
		s.Now.Automatic = &auto
	}
}

func (e *Estate) fillRecovery() {
	if e.Recovery == nil {
		e.Recovery = map[Pattern]*Recovery{}
	}
	fillIn := func(m *map[Pattern]Number, key string, value func(steps) float64) {
		if *m == nil {
			*m = map[Pattern]Number{}
		}
		for p, u := range usual {
			n := (*m)[p]
			orElse(&n, Count, "prices."+key+"."+string(p), value(u)/2, value(u), 2*value(u))
			(*m)[p] = n
		}
	}
	fillIn(&e.Prices.Work, "work_months", func(s steps) float64 { return s.work })
	fillIn(&e.Prices.PerYear, "care_months_year", func(s steps) float64 { return s.care })
	for p, u := range usual {
		r := e.Recovery[p]
		if r == nil {
			r = &Recovery{}
			e.Recovery[p] = r
		}
		path := "recovery." + string(p) + "."
		for _, x := range []struct {
			key  string
			into *Number
			v    [3]float64
		}{
			{"detect", &r.Detect, u.detect}, {"decide", &r.Decide, u.decide}, {"fence", &r.Fence, u.fence}, {"promote", &r.Promote, u.promote},
			{"scale", &r.Scale, u.scale}, {"shift", &r.Shift, u.shift}, {"warm", &r.Warm, u.warm}, {"verify", &r.Verify, u.verify}, {"lag", &r.Lag, u.lag},
		} {
			orElse(x.into, Duration, path+x.key, x.v[0], x.v[1], x.v[2])
		}
		orElse(&r.Coverage, Ratio, path+"coverage", max(0, 2*u.coverage-1), u.coverage, 1)
		orElse(&r.False, Duration, path+"false_every", u.falseEvery/3, u.falseEvery, u.falseEvery*3)
	}
}

func orElse(n *Number, unit Unit, path string, low, mode, high float64) {
	if !n.Set {
		*n = assumed(unit, path, low, mode, high)
	}
}
