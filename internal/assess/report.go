package assess

// Report is the whole answer: what there is, what would be better, what is not worth it, and in which order.
type Report struct {
	Title    string `json:"title"`
	File     string `json:"file"`
	Currency string `json:"currency"`
	Seed     int    `json:"seed"`

	Verdict  string          `json:"verdict"` // the first thing to read, in two or three sentences
	Today    Totals          `json:"today"`
	Proposed Totals          `json:"proposed"` // behind the last step of the roadmap that is worth it
	Fixes    []Fix           `json:"fixes"`    // cheaper than any pattern: what to mend first
	Services []ServiceAnswer `json:"services"` // by falling loss today
	Sites    []SiteAnswer    `json:"sites"`
	Roadmap  []Step          `json:"roadmap"`
	Pareto   []ParetoPoint   `json:"pareto"` // plans that no other beats in both cost and downtime
	Doubts   []Doubt         `json:"doubts"` // assumed inputs, the one that flips a verdict soonest first
	Notes    []string        `json:"notes"`  // what was left out, what backups are still needed for
	Entries  []Entry         `json:"inputs"` // all that the file says, and what was filled in
	Book     Book            `json:"book"`
}

// Totals sum an estate up under one plan.
type Totals struct {
	Downtime  float64 `json:"downtime_seconds_year"` // of all services, weighed by revenue where they have any
	Loss      float64 `json:"loss_year"`
	BadYear   float64 `json:"bad_year_loss"`
	CostMonth float64 `json:"cost_month"`
	WorstRTO  float64 `json:"worst_rto_p95_seconds"`
}

// Fix is something to mend that is no pattern: a shared feed, a second duct, a tested backup, a shorter TTL.
type Fix struct {
	Event    string   `json:"event"` // component or shared cause
	Text     string   `json:"text"`
	Services []string `json:"services"`   // that it takes down alone
	Share    float64  `json:"share"`      // of today's downtime, all services
	Saves    float64  `json:"saves_year"` // of loss, if it never failed again
}

// ServiceAnswer is one service: as it is, every way that it could be, and what to do.
type ServiceAnswer struct {
	Service string  `json:"service"`
	Label   string  `json:"label,omitempty"`
	Wanted  Wanted  `json:"wanted"`
	Now     Outcome `json:"now"`
	// Proposed is what it gets behind the last step of the roadmap that is worth it: others may have taken it along, or
	// what it calls has moved. Its values' ids are service.proposed.…
	Proposed Outcome  `json:"proposed"`
	Options  []Option `json:"options"`
	Answer   Verdict  `json:"answer"`
}

// Wanted are a service's objectives; nil: not asked for.
type Wanted struct {
	Availability *float64 `json:"availability,omitempty"`
	RTO          *float64 `json:"rto_seconds,omitempty"`
	RPO          *float64 `json:"rpo_seconds,omitempty"`
}

// Option is a service under one placement, the others as today or moved along where it needs them.
type Option struct {
	Outcome Outcome  `json:"outcome"`
	Along   []string `json:"along,omitempty"` // services that must move with it to gain anything
	// Net is what it saves in a year: less loss, minus more cost, minus getting there spread over three years. Negative:
	// it costs more than it saves.
	Net  Value  `json:"net_year"`
	Text string `json:"text"`
}

// Verdict is what to do with a service.
type Verdict struct {
	Worth     bool      `json:"worth"`     // anything beyond today's way
	Placement Placement `json:"placement"` // that is recommended
	Purpose   string    `json:"purpose"`   // disaster recovery, capacity, both, none
	Text      string    `json:"text"`
	Reasons   []string  `json:"reasons"`
	// Flip is the revenue per minute at which Worth changes: above it some way up is worth it (Worth false), or below it
	// nothing beyond today's way is (Worth true). Nil: no revenue changes it.
	Flip *Value `json:"flip_revenue_minute,omitempty"`
}

// SiteAnswer is what a site is worth: as disaster recovery, and as capacity.
type SiteAnswer struct {
	Site        string        `json:"site"`
	Unavailable Value         `json:"unavailable"`
	PerYear     Value         `json:"failures_year"`
	Singles     []SinglePoint `json:"singles"`
	Load        SiteLoad      `json:"load"`
	Day         Day           `json:"day"`
	CanTakeOver bool          `json:"can_take_over"` // carries the load of the worst other site at the peak
	Text        string        `json:"text"`
}

// Day is the demand on a site over the busiest day of the year, in cores, hour by hour.
type Day struct {
	Cores     float64   `json:"cores"`      // that there are; 0: as many as are asked for
	Usual     []float64 `json:"usual"`      // all sites work
	AfterLoss []float64 `json:"after_loss"` // the worst other site is lost
	Lost      string    `json:"lost"`       // which one that is; "": none changes anything
}

// Step is one step of the roadmap: services that move together, with everything recomputed behind the steps before.
type Step struct {
	Services []string  `json:"services"`
	To       Placement `json:"to"`
	Text     string    `json:"text"`
	Once     float64   `json:"once"`            // money
	Month    float64   `json:"month"`           // more cost in a month
	Saves    float64   `json:"saves_year"`      // of loss, given the steps before
	Ratio    float64   `json:"ratio,omitempty"` // saves / yearly cost with Once over three years; 0: it costs nothing more
	After    Totals    `json:"after"`
	Worth    bool      `json:"worth"` // false: listed so that one sees where it stops
}

// ParetoPoint is a plan that is not beaten.
type ParetoPoint struct {
	Name     string  `json:"name"`
	CostYear float64 `json:"cost_year"`
	Downtime float64 `json:"downtime_seconds_year"`
	Loss     float64 `json:"loss_year"`
	Plan     Plan    `json:"plan"`
	Refused  int     `json:"refused,omitempty"` // services against whose new way something speaks; such a plan is on no front
	OnFront  bool    `json:"on_front"`
}

// Doubt is an assumed input, with how far it can be wrong before a verdict flips.
type Doubt struct {
	Input   Input   `json:"input"`
	Service string  `json:"service,omitempty"` // whose verdict flips first
	Factor  float64 `json:"factor,omitempty"`  // at so many times its value; 0: no factor from 0.1 to 10 flips any
	Text    string  `json:"text"`
}
