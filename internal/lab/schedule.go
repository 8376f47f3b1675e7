package lab

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Seed names random schedules: of all the episodes that follow from its number, or of one.
type Seed struct {
	Number  uint64
	Episode int // from 1; 0: all
}

func (s Seed) String() string {
	if s.Episode == 0 {
		return strconv.FormatUint(s.Number, 10)
	}
	return fmt.Sprintf("%d/%d", s.Number, s.Episode)
}

// MarshalText writes the seed as it is written on the command line.
func (s Seed) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// ParseSeeds reads 7, 7/3 (the third episode of 7), or several of them with commas between.
func ParseSeeds(text string) ([]Seed, error) {
	var out []Seed
	for part := range strings.SplitSeq(text, ",") {
		number, episode, one := strings.Cut(strings.TrimSpace(part), "/")
		n, err := strconv.ParseUint(number, 10, 64)
		e := 0
		if err == nil && one {
			if e, err = strconv.Atoi(episode); err == nil && (e < 1 || e > maxEpisode) {
				err = fmt.Errorf("want 1 to %d", maxEpisode)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("lab: seed %q: write a number, or a number and an episode of it as 7/3: %w", part, err)
		}
		out = append(out, Seed{n, e})
	}
	return out, nil
}

const maxEpisode = 1 << 20

// act is what a step of a schedule does.
type act string

const (
	actSwitch  act = "switch"
	actCatalog act = "switch-catalog"

	actLongTransaction act = "long-transaction"
	actPrepared        act = "prepared-transaction"

	actKillAgent    act = "kill-agent"
	actKillGateway  act = "kill-gateway"
	actKillShop     act = "kill-application"
	actKillStore    act = "kill-store"
	actKillDatabase act = "kill-database"
	actStopAgent    act = "stop-agent"
	actStopGateway  act = "stop-gateway"
	actStopDatabase act = "stop-database"
	actStopMaster   act = "stop-postmaster" // alone: no new connections
	actStopBackend  act = "stop-backend"    // one of the application's, wherever it is
	actStopApplier  act = "stop-applier"    // the backend that applies another site's changes, in the middle of a transaction
	actStopLeader   act = "stop-store-leader"
	actCut          act = "cut"
	actCutOneWay    act = "cut-one-way"
	actDelay        act = "delay"
	actLagLink      act = "lag-link" // the changes of one site come late to another, and nothing else does
	actReset        act = "reset"
	actLosePackets  act = "lose-packets" // a share of them; where the paths carry packets
	actFillDisk     act = "fill-disk"    // a database's; where it has one of its own
	actLoseSite     act = "lose-site"
)

type faultWeight struct {
	do     act
	weight int
}

// faultWeights say how often each fault is drawn.
var faultWeights = []faultWeight{
	{actKillAgent, 8}, {actKillGateway, 6}, {actKillShop, 3}, {actKillStore, 6}, {actKillDatabase, 8},
	{actStopAgent, 8}, {actStopGateway, 5}, {actStopDatabase, 7}, {actStopMaster, 4}, {actStopBackend, 5}, {actStopApplier, 6}, {actStopLeader, 5},
	{actCut, 10}, {actCutOneWay, 7}, {actDelay, 7}, {actReset, 5}, {actLoseSite, 8},
}

// namespaceWeights are for what only namespaces allow: paths of packets, and a disk for each database.
var namespaceWeights = []faultWeight{{actLosePackets, 8}, {actFillDisk, 6}}

// planned is one step of a schedule.
type planned struct {
	Do    act
	At    time.Duration // from the beginning of the episode
	Lasts time.Duration // until it is healed; 0 for what is done in a moment
	Site  topo.SiteID   // where; of a switch: the new owner; of a path: one end
	Other topo.SiteID   // of a path: the other end; of an applier: the origin
	Part  string        // of a gateway: its name
	Kinds []Kind        // of a path; none: all
	Extra time.Duration // of a delay; of a long transaction: how long it stays open
	Count int           // of buckets; of lost packets: per cent
	Alone bool          // no other fault is there or was shortly before: what the product promises of such a loss is expected
	Draw  uint64        // decides what can be known only when it is done: which buckets, which customer
}

// schedule is what one episode does. It is a pure function of its seed and the layout.
type schedule struct {
	Seed   Seed
	Double bool // two failure domains may be down at once; nothing is expected but safety
	Steps  []planned
}

// layout is what a schedule has to know of a deployment.
type layout struct {
	sites    []topo.SiteID // full ones
	witness  topo.SiteID   // "": none
	gateways int           // per site
	packets  bool          // its paths carry packets
}

func (o *Options) layout() layout {
	return layout{sites: o.Sites, witness: o.Witness, gateways: o.Gateways, packets: o.Netns}
}

func (l layout) everywhere() []topo.SiteID {
	o := Options{Sites: l.sites, Witness: l.witness}
	return o.everywhere()
}

const (
	playTime    = 30 * time.Second // every step of an episode is healed by then
	firstFault  = time.Second
	lastFault   = 22 * time.Second
	maxOverlap  = 3 // faults at one time
	doubleEvery = 8 // one episode in so many is a double
	lossEvery   = 4 // one of the others in so many loses a site that is well, with nothing else wrong
	lagEvery    = 3 // in one episode in so many a link is late besides, if the other faults allow it
)

// draw makes the schedule of one episode.
func draw(seed Seed, l layout) schedule {
	d := drawer{rand.New(rand.NewPCG(seed.Number, uint64(seed.Episode))), l}
	s := schedule{Seed: seed, Double: d.IntN(doubleEvery) == 0}
	if !s.Double && d.IntN(lossEvery) == 0 {
		s.Steps = append(s.Steps, d.loss())
	}
	for range 4 + d.IntN(4) {
		for range 40 { // tries
			if p := d.fault(); s.admits(p) {
				s.Steps = append(s.Steps, p)
				break
			}
		}
	}
	for range 4 + d.IntN(5) {
		s.Steps = append(s.Steps, d.move(s.Steps))
	}
	for range d.IntN(3) {
		s.Steps = append(s.Steps, d.transaction())
	}
	// Behind all other draws, and not among the weights: what a seed meant before there was this fault it still means.
	if d.IntN(lagEvery) == 0 {
		for range 40 { // tries
			if p := d.lag(); s.admits(p) {
				s.Steps = append(s.Steps, p)
				break
			}
		}
	}
	slices.SortStableFunc(s.Steps, func(a, b planned) int { return int(a.At - b.At) })
	return s
}

type drawer struct {
	*rand.Rand
	layout
}

// between draws a time, in steps of a tenth of a second.
func (d drawer) between(from, to time.Duration) time.Duration {
	const step = 100 * time.Millisecond
	return from + time.Duration(d.Int64N(int64((to-from)/step)+1))*step
}

func (d drawer) site() topo.SiteID { return d.sites[d.IntN(len(d.sites))] }

// pair draws two different sites of those given.
func (d drawer) pair(of []topo.SiteID) (a, b topo.SiteID) {
	i := d.IntN(len(of))
	j := (i + 1 + d.IntN(len(of)-1)) % len(of)
	return of[i], of[j]
}

func (d drawer) gateway() string { return fmt.Sprintf("g%d", 1+d.IntN(d.gateways)) }

// move draws a switch: every other one while some fault is there, or right before it.
func (d drawer) move(steps []planned) planned {
	p := planned{Do: actSwitch, At: d.between(firstFault/2, playTime-3*time.Second), Site: d.site(), Count: 1 + d.IntN(64), Draw: d.Uint64()}
	if f := &steps[d.IntN(len(steps))]; d.IntN(2) == 0 && f.isFault() {
		p.At = d.between(f.At-firstFault/2, f.At+f.Lasts)
	}
	if d.IntN(5) == 0 {
		p.Do, p.Count = actCatalog, 1
	}
	return p
}

// transaction draws one of the application's that is in nobody's plans.
func (d drawer) transaction() planned {
	if d.IntN(2) == 0 {
		return planned{Do: actLongTransaction, At: d.between(firstFault, lastFault), Site: d.site(), Extra: d.between(leaseTime/2, 2*leaseTime), Draw: d.Uint64()}
	}
	return planned{Do: actPrepared, At: d.between(firstFault, lastFault), Lasts: d.between(leaseTime/3, 2*leaseTime), Site: d.site(), Draw: d.Uint64()}
}

// loss draws the loss of a site that has been well for a while, for long enough to be replaced.
func (d drawer) loss() planned {
	return planned{Do: actLoseSite, At: d.between(quietBefore+firstFault, quietBefore+firstFault+5*time.Second), Lasts: d.between(expectTakeover, 5*leaseTime), Site: d.site(), Alone: true, Draw: d.Uint64()}
}

// lag draws a late link: for longer than a session's clients are away from a list, by more than a read waits and by less than
// a switch does.
func (d drawer) lag() planned {
	p := planned{Do: actLagLink, At: d.between(firstFault, lastFault), Lasts: d.between(2*leaseTime, 4*leaseTime), Extra: d.between(1500*time.Millisecond, 4*time.Second)}
	p.Site, p.Other = d.pair(d.sites)
	p.Lasts = min(p.Lasts, playTime-p.At)
	return p
}

// quietBefore is how long there is no fault before one that is alone.
const quietBefore = 2 * leaseTime

func (d drawer) fault() planned {
	weights, total := faultWeights, 0
	if d.packets {
		weights = slices.Concat(weights, namespaceWeights)
	}
	for _, f := range weights {
		total += f.weight
	}
	p, n := planned{At: d.between(firstFault, lastFault), Draw: d.Uint64()}, d.IntN(total)
	for _, f := range weights {
		if n -= f.weight; n < 0 {
			p.Do = f.do
			break
		}
	}
	p.Site = d.site()
	p.Lasts = d.between(leaseTime/2, 3*leaseTime)
	switch p.Do {
	case actKillGateway, actStopGateway:
		p.Part = d.gateway()
	case actKillStore:
		all := d.everywhere()
		p.Site = all[d.IntN(len(all))]
	case actStopApplier:
		p.Site, p.Other = d.pair(d.sites)
		p.Lasts = d.between(leaseTime/2, 2*leaseTime)
	case actLoseSite:
		p.Lasts = d.between(2*leaseTime, 5*leaseTime)
	case actCut, actCutOneWay, actDelay, actReset, actLosePackets:
		d.path(&p)
	}
	p.Lasts = min(p.Lasts, playTime-p.At)
	return p
}

// pathKinds are what a cut or a delay may concern; nil: everything.
var pathKinds = [][]Kind{nil, nil, {StoreClient, StorePeer}, {StorePeer}, {StoreClient}, {Link}, {Link}, {Link}, {AgentAPI}, {GatewayPeer}, {Link, AgentAPI, GatewayPeer}}

func (d drawer) path(p *planned) {
	p.Site, p.Other = d.pair(d.everywhere())
	for p.Kinds = pathKinds[d.IntN(len(pathKinds))]; !d.has(p); {
		p.Kinds = pathKinds[d.IntN(len(pathKinds))]
	}
	switch p.Do {
	case actDelay:
		p.Extra = d.between(100*time.Millisecond, 800*time.Millisecond)
		if slices.Equal(p.Kinds, []Kind{Link}) { // nothing that has to answer in time travels there
			p.Extra *= 4
		}
	case actLosePackets:
		p.Count = 5 + d.IntN(36)
	case actReset:
		p.Lasts, p.Kinds = 0, nil
	}
}

// has tells whether there are paths of the drawn kinds: a witness has a store only.
func (d drawer) has(p *planned) bool {
	return p.Site != d.witness && p.Other != d.witness || p.Kinds == nil || p.Kinds[0] == StoreClient || p.Kinds[0] == StorePeer
}

// isFault: the rest is what happens to a deployment that is well.
func (p *planned) isFault() bool {
	switch p.Do {
	case actSwitch, actCatalog, actLongTransaction, actPrepared:
		return false
	}
	return true
}

func (p *planned) ofPath() bool {
	return p.Do == actCut || p.Do == actCutOneWay || p.Do == actDelay || p.Do == actLagLink || p.Do == actReset || p.Do == actLosePackets
}

// until is when what it did has passed, also what takes a moment after the healing: a store member that catches up, an
// agent that takes its lease again, a site that returns.
func (p *planned) until() time.Duration {
	after := time.Second
	switch p.Do {
	case actKillStore, actKillDatabase, actFillDisk, actStopDatabase, actStopBackend, actStopLeader, actReset:
		after = 2 * time.Second
	case actLoseSite:
		after = 4 * time.Second
	case actLagLink: // what was sent before the healing comes as late as it would have
		after = time.Second + p.Extra
	}
	return p.At + p.Lasts + after
}

func (p *planned) overlaps(o *planned) bool { return p.from() < o.until() && o.from() < p.until() }

// from is when it begins to matter what else is there.
func (p *planned) from() time.Duration {
	if p.Alone {
		return p.At - quietBefore
	}
	return p.At
}

// domains are the failure domains of which one is enough to explain the fault: a path is down because of either end.
// None: which one it is shows only when it is done.
func (p *planned) domains() []topo.SiteID {
	switch {
	case p.ofPath():
		return []topo.SiteID{p.Site, p.Other}
	case p.Do == actStopLeader:
		return nil
	default:
		return []topo.SiteID{p.Site}
	}
}

// sameTarget tells whether two faults would be in each other's way: what one of them heals must not be what the other did.
func (p *planned) sameTarget(o *planned) bool {
	switch {
	case p.ofPath() != o.ofPath():
		return false
	case p.ofPath():
		return p.Site == o.Site && p.Other == o.Other || p.Site == o.Other && p.Other == o.Site
	case p.Site != o.Site:
		return false
	case p.Do == actLoseSite || o.Do == actLoseSite:
		return true
	}
	return p.part() == o.part()
}

// part names the process of the site that a fault concerns.
func (p *planned) part() string {
	switch p.Do {
	case actKillAgent, actStopAgent:
		return "agent"
	case actKillGateway, actStopGateway:
		return p.Part
	case actKillShop:
		return "app"
	case actKillStore:
		return "store"
	case actKillDatabase, actFillDisk, actStopDatabase, actStopMaster, actStopBackend, actStopApplier:
		return "db"
	}
	return ""
}

// admits tells whether a fault may be added. At any time all faults together must be explained by the loss of one failure
// domain, or in a double of two: so the store has its quorum, and a survivor has all that it needs.
func (s *schedule) admits(p planned) bool {
	together := []*planned{&p}
	for i := range s.Steps {
		o := &s.Steps[i]
		if !o.isFault() || !o.overlaps(&p) {
			continue
		}
		if o.sameTarget(&p) {
			return false
		}
		together = append(together, o)
	}
	if len(together) == 1 {
		return true
	}
	if slices.ContainsFunc(together, func(o *planned) bool { return o.Alone }) {
		return false
	}
	lost := 0
	for _, o := range together {
		if o.domains() == nil {
			return false
		}
		if o.Do == actLoseSite {
			lost++
		}
	}
	if len(together) > maxOverlap || lost > 1 && !s.Double {
		return false
	}
	return explained(together, map[bool]int{false: 1, true: 2}[s.Double])
}

// explained tells whether so many failure domains explain all of the faults.
func explained(faults []*planned, domains int) bool {
	if len(faults) == 0 {
		return true
	}
	if domains == 0 {
		return false
	}
	for _, d := range faults[0].domains() {
		rest := slices.DeleteFunc(slices.Clone(faults), func(p *planned) bool { return slices.Contains(p.domains(), d) })
		if explained(rest, domains-1) {
			return true
		}
	}
	return false
}

// String is the step as a line of the schedule.
func (p *planned) String() string {
	return fmt.Sprintf("%5.1f s  %s", p.At.Seconds(), p.what())
}

func (p *planned) what() string {
	of := "everything"
	if len(p.Kinds) > 0 {
		names := make([]string, len(p.Kinds))
		for i, k := range p.Kinds {
			names[i] = string(k)
		}
		of = strings.Join(names, ", ")
	}
	long := fmt.Sprintf("for %.1f s", p.Lasts.Seconds())
	switch p.Do {
	case actSwitch:
		return fmt.Sprintf("switch of up to %d buckets of users to %s", p.Count, p.Site)
	case actCatalog:
		return fmt.Sprintf("switch of the catalogue to %s", p.Site)
	case actLongTransaction:
		return fmt.Sprintf("a transaction of %.1f s for a customer of %s", p.Extra.Seconds(), p.Site)
	case actPrepared:
		return fmt.Sprintf("a prepared transaction at %s, ended after %.1f s", p.Site, p.Lasts.Seconds())
	case actKillAgent, actKillGateway, actKillShop, actKillStore, actKillDatabase:
		return fmt.Sprintf("SIGKILL of %s/%s, started again after %.1f s", p.Site, p.part(), p.Lasts.Seconds())
	case actStopAgent, actStopGateway, actStopDatabase:
		return fmt.Sprintf("SIGSTOP of %s/%s %s", p.Site, p.part(), long)
	case actFillDisk:
		return fmt.Sprintf("no room left on the disk of %s/db %s", p.Site, long)
	case actStopMaster:
		return fmt.Sprintf("SIGSTOP of the postmaster at %s %s", p.Site, long)
	case actStopBackend:
		return fmt.Sprintf("SIGSTOP of one of the shop's backends at %s %s", p.Site, long)
	case actStopApplier:
		return fmt.Sprintf("SIGSTOP of the backend that applies %s's changes at %s %s", p.Other, p.Site, long)
	case actStopLeader:
		return "SIGSTOP of the store's leader " + long
	case actCut:
		return fmt.Sprintf("cut between %s and %s, %s, %s", p.Site, p.Other, of, long)
	case actCutOneWay:
		return fmt.Sprintf("cut from %s to %s, %s, %s", p.Site, p.Other, of, long)
	case actDelay:
		return fmt.Sprintf("%v more between %s and %s, %s, %s", p.Extra, p.Site, p.Other, of, long)
	case actLagLink:
		return fmt.Sprintf("%s's changes come %v later to %s, %s", p.Site, p.Extra, p.Other, long)
	case actLosePackets:
		return fmt.Sprintf("loss of %d %% of the packets between %s and %s, %s, %s", p.Count, p.Site, p.Other, of, long)
	case actReset:
		return fmt.Sprintf("reset of every connection between %s and %s", p.Site, p.Other)
	case actLoseSite:
		return fmt.Sprintf("SIGKILL of everything at %s, started again after %.1f s", p.Site, p.Lasts.Seconds())
	}
	panic("BUG: step without words: " + string(p.Do))
}

// lines are the schedule for people.
func (s *schedule) lines() []string {
	var out []string
	for i := range s.Steps {
		out = append(out, s.Steps[i].String())
	}
	return out
}
