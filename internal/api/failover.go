package api

import (
	"time"

	"github.com/atollhq/atoll/topo"
)

// FailoverRequest asks the agent that gets it to take over from a site whose lease has run out.
type FailoverRequest struct {
	Site     topo.SiteID `json:"site"` // that is lost
	To       topo.SiteID `json:"to"`   // must be the site of the agent that is asked
	Why      string      `json:"why,omitempty"`
	DryRun   bool        `json:"dry_run,omitempty"`
	Override []string    `json:"override,omitempty"` // names of safety rules
}

// FailoverAnswer says that a failover is under way, or with DryRun that it would be tried. A refusal is an Error with
// CodeRefused whose Problems name the rules.
type FailoverAnswer struct {
	ID       topo.HandoverID `json:"id,omitempty"`
	DryRun   bool            `json:"dry_run,omitempty"`
	Handover Handover        `json:"handover"`
	Standing Standing        `json:"standing"`
}

// Failover is what a handover of kind "failover" has besides.
type Failover struct {
	Taken    []topo.Taken `json:"taken"`    // with the epochs before
	Position uint64       `json:"position"` // the cut: how far the taker had applied the lost site's stream
	// Survivors are how far the other sites that stopped with the taker had come; Silent were left out, and may have more.
	Survivors map[topo.SiteID]uint64 `json:"survivors,omitempty"`
	Silent    []topo.SiteID          `json:"silent,omitempty"`
	Automatic bool                   `json:"automatic"` // else an operator asked for it
	Override  []string               `json:"override,omitempty"`
	ExpiredMS float64                `json:"expired_ms"`        // from the last sight of a renewal to the end of the lease and its rate error
	WaitedMS  float64                `json:"waited_ms"`         // from the last sight of a renewal to the takeover in the store
	OpenMS    float64                `json:"open_ms"`           // from the last sight of a renewal to the open fence
	LossMS    int64                  `json:"estimated_loss_ms"` // -1: not known
	Return    *Return                `json:"return,omitempty"`  // once the lost site's tail is settled
}

// Return is how the tail of a lost site was settled.
type Return struct {
	At      time.Time `json:"at"`
	Applied int       `json:"applied"` // stale row changes that stand
	Kept    int       `json:"kept"`    // stale row changes that do not; all are in the conflict log
}

// Standing is what a site knows of another one that may be lost, and of its own fitness to take over from it.
type Standing struct {
	Site topo.SiteID `json:"site"` // who says so
	Of   topo.SiteID `json:"of"`
	// Applied is how far this site has applied the other's changes, durably; Known is false if it never had any.
	Known   bool   `json:"known"`
	Applied uint64 `json:"applied"`
	// Halted names a failover for which this site has stopped applying the other's changes.
	Halted topo.HandoverID `json:"halted,omitempty"`
	// HaltedFor is the site that asked for it, if this run of the agent knows.
	HaltedFor topo.SiteID `json:"halted_for,omitempty"`
	// Linked: the link lives, and was heard HeardMS ago; the other's own statement came with it.
	Linked      bool            `json:"linked"`
	HeardMS     int64           `json:"heard_ms"` // -1: never
	Serving     bool            `json:"serving"`
	RemainingMS int64           `json:"remaining_ms"` // of its lease, as it says, less the time since
	Closed      topo.HandoverID `json:"closed,omitempty"`
	// WroteMS is how long ago the last application transaction of the other was applied here; -1: none since the start.
	WroteMS int64 `json:"wrote_ms"`
	// LossMS estimates how much of the other's time is missing here: its silence, and what was under way before.
	LossMS int64 `json:"loss_ms"` // -1: not known
	// Lease: this site's own lease is in force. Problem is why this site could not take over.
	Lease   bool   `json:"lease"`
	Problem string `json:"problem,omitempty"`
}

// Explanation says, per other site, what the asked agent makes of it.
type Explanation struct {
	Site  topo.SiteID       `json:"site"` // whose agent answers
	At    time.Time         `json:"at"`
	Mode  string            `json:"mode"` // automatic, observe, manual
	Sites []SiteExplanation `json:"sites"`
}

// SiteExplanation is why the asked agent took over from a site, would, or does not.
type SiteExplanation struct {
	Of       topo.SiteID `json:"of"`
	Verdict  string      `json:"verdict"` // one sentence
	Reasons  []Reason    `json:"reasons"` // every condition, in the order in which they are looked at
	Standing Standing    `json:"standing"`
	History  []Happening `json:"history"` // newest first
	Last     *Handover   `json:"last,omitempty"`
}

// Reason is one condition of a failover.
type Reason struct {
	Rule string `json:"rule"` // stable name: lease, veto-serving, veto-writes, own-lease, quiet-time, max-loss, per-hour, mode, …
	Met  bool   `json:"met"`
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// Happening is a change of mind.
type Happening struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}
