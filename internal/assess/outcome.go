package assess

import "fmt"

// Plan says how every service runs. A plan is complete: it names every service of its estate.
type Plan map[string]Placement

// Today is the plan of the file.
func (e *Estate) Today() Plan {
	out := make(Plan, len(e.Services))
	for name, s := range e.Services {
		out[name] = s.Now
	}
	return out
}

// With returns a copy of the plan in which one service runs differently.
func (p Plan) With(service string, at Placement) Plan {
	out := make(Plan, len(p))
	for name, x := range p {
		out[name] = x
	}
	out[service] = at
	return out
}

// Value is one number of the answer. Its derivation can be asked for by its id.
type Value struct {
	V    float64 `json:"value"`
	Unit Unit    `json:"unit"`
	ID   string  `json:"id,omitempty"` // "checkout.downtime": names its derivation in the book
}

// Derivation is where a value comes from.
type Derivation struct {
	ID     string  `json:"id"`
	What   string  `json:"what"` // "expected downtime of checkout in a year"
	Value  float64 `json:"value"`
	Unit   Unit    `json:"unit"`
	Method string  `json:"method"`           // in one or two sentences, with the formula
	Parts  []Part  `json:"parts,omitempty"`  // what it is made of: other values, by id where they have one
	Inputs []Input `json:"inputs,omitempty"` // numbers of the file that went in
}

// Part is one term of a derivation.
type Part struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Unit  Unit    `json:"unit"`
	ID    string  `json:"id,omitempty"`
}

// Input is a number of the file, as an answer shows it.
type Input struct {
	Path    string `json:"path"`
	Line    int    `json:"line,omitempty"` // 0: filled in
	Text    string `json:"text"`           // "~2h", "1h..3h"
	Assumed bool   `json:"assumed,omitempty"`
	Source  string `json:"source,omitempty"`
}

func inputOf(n Number) Input {
	return Input{Path: n.Path, Line: n.Line, Text: n.String(), Assumed: n.Assumed, Source: n.Source}
}

// Book holds every derivation of an assessment.
type Book map[string]Derivation

// Note writes a derivation down and returns its value.
func (b Book) Note(d Derivation) Value {
	b[d.ID] = d
	return Value{V: d.Value, Unit: d.Unit, ID: d.ID}
}

// Quantiles of a time or an amount.
type Quantiles struct {
	P50  float64 `json:"p50"`
	P95  float64 `json:"p95"`
	Mean float64 `json:"mean"`
	Unit Unit    `json:"unit"`
	ID   string  `json:"id,omitempty"`
}

// Outcome is what one service gets under a plan.
type Outcome struct {
	Service   string    `json:"service"`
	Placement Placement `json:"placement"`

	Availability Availability `json:"availability"`
	Recovery     RecoveryTime `json:"recovery"`
	Latency      Answer       `json:"latency"`
	Capacity     Capacity     `json:"capacity"`
	Money        Bill         `json:"money"`

	// Impossible lists why this placement cannot be what it says; it is never proposed then.
	Impossible []Refusal `json:"impossible,omitempty"`
	// Short lists what is wanted and cannot be had this way, nor is it today.
	Short []Refusal `json:"short,omitempty"`
}

// Availability is how much of the time a service answers.
type Availability struct {
	// Structural is the share of time in which no site of the placement can serve at all: exact, from the fault tree.
	Structural Value `json:"structural"`
	// Losses is how often a year the service loses the site that serves (or one that serves a part).
	Losses Value `json:"losses"`
	// Downtime is the expected seconds in a year without service, weighed by the share of users concerned, recoveries,
	// failed recoveries and needless ones included.
	Downtime Value `json:"downtime"`
	BadYear  Value `json:"bad_year"` // 95 of 100 years are better
	// Share is 1 − Downtime/year.
	Share   Value         `json:"share"`
	Singles []SinglePoint `json:"singles"`  // single points of failure, the worst first
	ByOrder []uint64      `json:"by_order"` // minimal cut sets
	Causes  []Cause       `json:"causes"`   // who contributes how much to Downtime, the largest first
	// Simulated is the second engine's view of Structural, Run that of Downtime without what overload adds, by living
	// through years of failures and recoveries; nil if they were not asked for.
	Simulated *Estimate `json:"simulated,omitempty"`
	Run       *Estimate `json:"run,omitempty"`
}

// SinglePoint is one event that alone takes the service down.
type SinglePoint struct {
	Event       string   `json:"event"` // component, server group or shared cause
	Kind        string   `json:"kind"`
	Unavailable float64  `json:"unavailable"` // share of time
	PerYear     float64  `json:"per_year"`
	Path        []string `json:"path"` // why: "checkout", "calls inventory", "runs at dc1 only", "dc1 needs feed-a"
}

// Cause is what contributes to a service's downtime.
type Cause struct {
	Name    string  `json:"name"`
	Seconds float64 `json:"seconds_year"`
}

// Estimate is a simulated value with its uncertainty.
type Estimate struct {
	Mean    float64 `json:"mean"`
	Low     float64 `json:"low"` // 99 % confidence interval
	High    float64 `json:"high"`
	Hits    int     `json:"hits"`    // drawn states in which the service failed, or interruptions lived through
	Samples int     `json:"samples"` // drawn states, or years
	Seed    int     `json:"seed"`
	Method  string  `json:"method"`
	// Refused says why nothing is claimed; the values are 0 then.
	Refused string `json:"refused,omitempty"`
}

// fewHits is how many are needed for a claim: with fewer, the interval itself is a matter of chance.
const fewHits = 30

// orRefused withdraws an estimate that rests on too few hits.
func (e Estimate) orRefused() Estimate {
	if e.Hits < fewHits {
		e.Mean, e.Low, e.High = 0, 0, 0
		e.Refused = fmt.Sprintf("%d hits in %d: fewer than %d tell nothing", e.Hits, e.Samples, fewHits)
	}
	return e
}

// Holds tells whether an estimate was claimed and its interval holds a value.
func (e Estimate) Holds(v float64) bool { return e.Refused == "" && e.Low <= v && v <= e.High }

// RecoveryTime is how long and how much a lost site costs a service.
type RecoveryTime struct {
	RTO   Quantiles `json:"rto"`
	RPO   Quantiles `json:"rpo"`
	Steps []Part    `json:"steps"`         // mean seconds of each step of the RTO
	Met   *bool     `json:"met,omitempty"` // RTO and RPO at P95 against what is wanted; nil: nothing is wanted
}

// Answer is how long an answer takes, calls included.
type Answer struct {
	P50        Value   `json:"p50"`
	P99        Value   `json:"p99"`
	UpperP99   Value   `json:"p99_upper"`   // if all calls are slow together
	CrossCalls float64 `json:"cross_calls"` // calls to another city, per answer
	Budget     *bool   `json:"within_budget,omitempty"`
}

// Capacity is whether the sites that are left can carry the load.
type Capacity struct {
	Sites    []SiteLoad `json:"sites"`
	Overload Value      `json:"overload"` // expected seconds a year in which demand is beyond what works
	Enough   bool       `json:"enough"`   // at the peak, with any one site lost
}

// SiteLoad is one site at the peak of the year, as a share of its cores.
type SiteLoad struct {
	Site      string  `json:"site"`
	Usual     float64 `json:"usual"`      // share of its cores in use when all sites work
	AfterLoss float64 `json:"after_loss"` // when the worst other one is lost; above 1 it cannot carry it
}

// Bill is what a placement costs and what its outages cost.
type Bill struct {
	Month   Value  `json:"month"` // running it: cores, storage, traffic, links, care
	Once    Value  `json:"once"`  // getting there
	Items   []Part `json:"items"` // of Month
	Loss    Value  `json:"loss"`  // expected cost of outages in a year
	BadYear Value  `json:"bad_year"`
}

// Refusal says what cannot be and why.
type Refusal struct {
	Rule string `json:"rule"` // two-site-quorum, rto-below-detection, rpo-zero-async, latency-budget, capacity, …
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}
