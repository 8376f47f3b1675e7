package assess

// Estate is a whole file: what there is today, what it is for, and what things cost.
type Estate struct {
	Format     int                   `yaml:"estate"` // version of the file's form: 1
	Title      string                `yaml:"title"`
	Currency   string                `yaml:"currency"` // EUR, CNY, …: only shown
	Seed       int                   `yaml:"seed"`     // of the simulation; default 1
	Prices     Prices                `yaml:"prices"`
	Recovery   map[Pattern]*Recovery `yaml:"recovery"` // how long the steps of a recovery take; defaults where left out
	Curves     map[string]*Curve     `yaml:"curves"`   // demand over the day and the year
	Components map[string]*Component `yaml:"components"`
	Sites      map[string]*Site      `yaml:"sites"`
	Links      []*Link               `yaml:"links"`
	Shared     []*Shared             `yaml:"shared"` // causes that strike many at once
	Services   map[string]*Service   `yaml:"services"`

	File  string   `yaml:"-"`
	where places   // of everything that was written
	Notes []string `yaml:"-"` // what the file leaves out, for the report
}

// Component is one thing that fails and is repaired: a power feed, a UPS, a chiller, a rack switch, a carrier, a duct.
// Either Every or Down says how often.
type Component struct {
	Kind  string `yaml:"kind"`                  // for people: power, cooling, network, carrier, duct, rack, …
	Every Number `yaml:"every" unit:"duration"` // mean time from a repair to the next failure
	Down  Number `yaml:"down" unit:"ratio"`     // share of time in which it does not work; instead of every
	Lasts Number `yaml:"lasts" unit:"duration"` // mean time to repair; default by kind
	Label string `yaml:"label"`
}

// SiteKind is what a site is.
type SiteKind string

const (
	Own     SiteKind = "own"     // a data centre or room of one's own
	Cloud   SiteKind = "cloud"   // a zone or region of a public cloud
	Witness SiteKind = "witness" // only votes
)

// Site is a failure domain.
type Site struct {
	Kind       SiteKind   `yaml:"kind"`
	City       string     `yaml:"city"`                     // sites of one city are near: "same city"
	Region     string     `yaml:"region"`                   // shown only
	Needs      Expression `yaml:"needs"`                    // which components must work for the site to work
	Cores      Number     `yaml:"cores" unit:"count"`       // that there are (own) or that may be had at short notice (cloud)
	FixedMonth Number     `yaml:"fixed_month" unit:"money"` // rent, power, staff: whether used or not
	Exists     *bool      `yaml:"exists"`                   // default true; false: would have to be built
	BuildOnce  Number     `yaml:"build_once" unit:"money"`  // if it does not exist
}

// Link joins two sites.
type Link struct {
	Name       string     `yaml:"name"`
	Between    []string   `yaml:"between"` // two sites
	RTT        Number     `yaml:"rtt" unit:"duration"`
	Needs      Expression `yaml:"needs"` // ducts and carriers: "(duct-1 and carrier-a) or (duct-2 and carrier-b)"
	Bandwidth  Number     `yaml:"bandwidth" unit:"rate"`
	FixedMonth Number     `yaml:"fixed_month" unit:"money"`
}

// Shared is a cause that strikes several sites or services at once, whatever redundancy there is: a release, a DNS
// mistake, an expired certificate, a region-wide control plane, a deletion that replicates.
type Shared struct {
	Name  string `yaml:"name"`
	Every Number `yaml:"every" unit:"duration"`
	Lasts Number `yaml:"lasts" unit:"duration"`
	Hits  Hits   `yaml:"hits"`
	Data  bool   `yaml:"data"` // it destroys data, and the destruction replicates: only a backup helps
	Label string `yaml:"label"`
}

// Hits says what a shared cause strikes.
type Hits struct {
	Sites    []string `yaml:"sites"`    // all of them at once; [all] is every site
	Services []string `yaml:"services"` // wherever they run; [all] is every service
}

// Service is one service with its data.
type Service struct {
	Label    string    `yaml:"label"`
	Now      Placement `yaml:"now"` // how it runs today
	Calls    []*Call   `yaml:"calls"`
	Servers  Servers   `yaml:"servers"`
	Latency  Latency   `yaml:"latency"`
	Demand   Demand    `yaml:"demand"`
	Data     *Content  `yaml:"data"` // nil: it has no state
	Revenue  Revenue   `yaml:"revenue"`
	Wants    Wants     `yaml:"wants"`
	Consider []Pattern `yaml:"consider"` // default: every pattern that fits
}

// Pattern is a way of running a service, in order of how much it takes.
type Pattern string

const (
	Single        Pattern = "single"         // one site, backups beside it
	BackupRestore Pattern = "backup-restore" // one site; backups elsewhere, restored there after a loss
	PilotLight    Pattern = "pilot-light"    // data replicated elsewhere, nothing else runs there
	WarmStandby   Pattern = "warm-standby"   // a small copy runs elsewhere and is grown
	SameCity      Pattern = "same-city"      // active at two or more sites of a city, one database with synchronous replicas
	OneWriter     Pattern = "one-writer"     // active in several cities for reads, one of them writes
	Partitioned   Pattern = "partitioned"    // every site writes the users that it owns: multi-active
)

// Patterns lists all patterns in that order.
var Patterns = []Pattern{Single, BackupRestore, PilotLight, WarmStandby, SameCity, OneWriter, Partitioned}

// Placement is a pattern at sites; the first is where writes go, or where everything runs.
type Placement struct {
	Pattern Pattern  `yaml:"pattern" json:"pattern"`
	Sites   []string `yaml:"sites" json:"sites"`
	// Automatic: recovery begins without people. Default: what the pattern is usually run with.
	Automatic *bool  `yaml:"automatic" json:"automatic,omitempty"`
	Quorum    string `yaml:"quorum" json:"quorum,omitempty"` // the witness site that breaks ties; needed for two sites with automatic recovery
}

// Call is what a service asks of another one to answer one request of its own.
type Call struct {
	To       string `yaml:"to"`
	Times    Number `yaml:"times" unit:"count"`  // default 1
	Parallel bool   `yaml:"parallel"`            // at the same time as each other; default: one after the other
	Optional bool   `yaml:"optional"`            // the answer can do without it
	Bytes    Number `yaml:"bytes" unit:"data"`   // there and back, each; default 2KB
	Writes   Number `yaml:"writes" unit:"ratio"` // share of them that change something; default about 20 %
}

// Servers are the processes of a service at one site.
type Servers struct {
	Count Number `yaml:"count" unit:"count"`    // default 2
	Need  Number `yaml:"need" unit:"count"`     // how many must work at peak; default count-1
	Every Number `yaml:"every" unit:"duration"` // mean time between failures of each
	Lasts Number `yaml:"lasts" unit:"duration"`
	Crews Number `yaml:"crews" unit:"count"` // how many are repaired at once; default one each
	// Coverage is the share of failures of one server that the others survive as planned, where enough of them are left;
	// after any other one the whole group stands still for a repair. Default all.
	Coverage Number `yaml:"coverage" unit:"ratio"`
}

// Latency is what the service itself takes, without its calls.
type Latency struct {
	P50    Number `yaml:"p50" unit:"duration"`
	P99    Number `yaml:"p99" unit:"duration"`
	Budget Number `yaml:"budget_p99" unit:"duration"` // for the whole answer, calls included
}

// Demand is how much is asked of a service.
type Demand struct {
	Peak  Number `yaml:"peak" unit:"count"`  // requests per second in the busiest hour of the year
	Cores Number `yaml:"cores" unit:"count"` // that the peak takes
	Curve string `yaml:"curve"`              // default: flat
}

// Content is a service's data.
type Content struct {
	Size    Number `yaml:"size" unit:"data"`
	Changes Number `yaml:"changes" unit:"rate"`  // at the peak
	ByUser  Number `yaml:"by_user" unit:"ratio"` // share of writes that touch one user's data only
	Backup  Number `yaml:"backup_every" unit:"duration"`
	Restore Number `yaml:"restore" unit:"duration"` // time to restore it all; default by size
}

// Revenue is what a minute without the service costs at the average hour.
type Revenue struct {
	Minute   Number `yaml:"minute" unit:"money"`
	Deferred Number `yaml:"deferred" unit:"ratio"`         // comes back later
	LostData Number `yaml:"lost_data_second" unit:"money"` // a second of acknowledged writes that are gone
	Penalty  Number `yaml:"penalty" unit:"money"`          // once, for an outage longer than after
	After    Number `yaml:"penalty_after" unit:"duration"`
}

// Wants are a service's objectives; what is not set is not asked for.
type Wants struct {
	Availability Number `yaml:"availability" unit:"ratio"`
	RTO          Number `yaml:"rto" unit:"duration"`
	RPO          Number `yaml:"rpo" unit:"duration"`
}

// Curve is demand as a share of the peak: by hour of a usual day, and special days of the year.
type Curve struct {
	Hours []float64 `yaml:"hours"`                  // 24 shares of the usual day's peak
	Usual Number    `yaml:"usual" unit:"ratio"`     // the usual day's peak as a share of the year's
	Peaks Number    `yaml:"peak_days" unit:"count"` // days in the year that reach the year's peak
}

// Recovery is how long each step takes when a site is lost, under one pattern.
type Recovery struct {
	Detect   Number `yaml:"detect" unit:"duration"`
	Decide   Number `yaml:"decide" unit:"duration"`
	Fence    Number `yaml:"fence" unit:"duration"`
	Promote  Number `yaml:"promote" unit:"duration"`
	Scale    Number `yaml:"scale" unit:"duration"`
	Shift    Number `yaml:"shift" unit:"duration"`
	Warm     Number `yaml:"warm" unit:"duration"`
	Verify   Number `yaml:"verify" unit:"duration"`
	Coverage Number `yaml:"coverage" unit:"ratio"`       // share of losses in which the recovery works as planned
	False    Number `yaml:"false_every" unit:"duration"` // mean time between recoveries that nothing called for
	Lag      Number `yaml:"lag" unit:"duration"`         // of replication under peak load
}

// Prices are what things cost in a month, or once.
type Prices struct {
	OwnCore    Number `yaml:"own_core_month" unit:"money"`   // a core of one's own: amortised, power, people
	CloudCore  Number `yaml:"cloud_core_month" unit:"money"` // running
	OwnGB      Number `yaml:"own_gb_month" unit:"money"`
	CloudGB    Number `yaml:"cloud_gb_month" unit:"money"`
	NearGB     Number `yaml:"same_city_gb" unit:"money"`  // a GB between sites of one city
	FarGB      Number `yaml:"cross_city_gb" unit:"money"` // and between cities
	Person     Number `yaml:"person_month" unit:"money"`
	HourLabour Number `yaml:"recovery_hour" unit:"money"` // people, for each service and hour that it is out
	// Work is how many person-months it takes to bring one service to a pattern, and PerYear how many a year to keep it
	// there.
	Work    map[Pattern]Number `yaml:"work_months" unit:"count"`
	PerYear map[Pattern]Number `yaml:"care_months_year" unit:"count"`
}
