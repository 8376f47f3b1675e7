package handover

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// The conditions of a failover, by name, in the order in which they are looked at.
const (
	RuleBuckets     = "buckets"      // the site owns something that is open
	RuleLease       = "lease"        // its lease has run out
	RuleVetoServing = "veto-serving" // it does not say over a live link that it serves
	RuleVetoWrites  = "veto-writes"  // no application writes of it come in
	RuleKept        = "kept"         // the site does not go on without the store and without promises
	RuleOwnLease    = "own-lease"    // the taker's own lease is in force
	RuleStanding    = "standing"     // the taker has the site's changes, its database, and no unfinished business
	RuleSurvivors   = "survivors"    // the other sites that are not lost stop applying, too; always met: it says which
	RuleQuietTime   = "quiet-time"   // none of the buckets was failed over a short while ago
	RuleMaxLoss     = "max-loss"     // not more of the site's time is missing than allowed
	RulePerHour     = "per-hour"     // not more failovers in an hour than allowed
	RuleMode        = "mode"         // failovers are automatic; an operator's order needs no mode
)

// Overridable lists the rules that an operator may set aside: policies and vetoes. The others are facts without which
// a takeover is not safe or cannot be done.
func Overridable() []string {
	return []string{RuleVetoServing, RuleVetoWrites, RuleKept, RuleQuietTime, RuleMaxLoss, RulePerHour}
}

// Facts are what speaks for and against a takeover besides the lease, as of one look. Times are on the observer's clock.
type Facts struct {
	Began     time.Time // of the look
	Owns      int       // buckets that are open at the watched site
	Moving    int       // buckets of it that a handover has claimed
	OwnLease  bool
	Problem   string          // why this site could not take over; empty: nothing known
	Unsettled topo.HandoverID // a failover from this site itself whose tail is not settled
	Known     bool            // this site has applied the watched site's changes
	Halted    topo.HandoverID // a halt that stands in this site's database
	HaltedFor topo.SiteID     // who asked for it, if this run of the agent knows
	Others    []topo.SiteID   // full sites besides the two that are not lost, as far as this site sees
	Turn      int             // how many of them come first in taking over
	Serving   bool            // says the watched site over a live link …
	Until     time.Time       // … with a lease until then
	Heard     time.Time       // the last word over the link; zero: none
	Wrote     time.Time       // when its last application transaction was applied here; zero: none yet
	Loss      time.Duration   // of the watched site's time that is missing here, as of Began; negative: not known
	// History is false where the handovers could not be read; then the next three are not known.
	History   bool
	LastTaken time.Time // when one of the site's buckets was last failed over; zero: never
	LastID    topo.HandoverID
	Recent    int // failovers in the last hour
}

// Ask says for whom conditions are looked at. The zero value is the automation.
type Ask struct {
	Manual   bool
	Override []string
}

// Condition is one of a failover's.
type Condition struct {
	Rule       string
	Met        bool
	Overridden bool // met because the operator set it aside
	Text       string
	Hint       string
}

// Unmet lists the conditions that do not hold.
func Unmet(all []Condition) []Condition {
	return slices.DeleteFunc(slices.Clone(all), func(c Condition) bool { return c.Met })
}

// Conditions lists every condition in order, met or not, as of the last look.
func (l Lookout) Conditions(ask Ask, now time.Time) []Condition {
	if l.Looked.IsZero() {
		return l.unseen()
	}
	leftover := l.Lease.Exists && l.Lease.Revoked
	out := []Condition{l.buckets(), l.lease(now)}
	if leftover {
		for _, rule := range []string{RuleVetoServing, RuleVetoWrites, RuleKept} {
			out = append(out, Condition{Rule: rule, Met: true, Text: fmt.Sprintf("failover %s has ended %s's lease; nothing that it says or writes can count", l.Lease.RevokedBy, l.Policy.Lost)})
		}
	} else {
		out = append(out, l.vetoServing(now), l.vetoWrites(now), l.kept())
	}
	out = append(out, l.ownLease(), l.standing(), l.survivors())
	if leftover {
		for _, rule := range []string{RuleQuietTime, RuleMaxLoss, RulePerHour, RuleMode} {
			out = append(out, Condition{Rule: rule, Met: true, Text: fmt.Sprintf("does not apply to what failover %s left over", l.Lease.RevokedBy)})
		}
	} else {
		out = append(out, l.quietTime(now), l.maxLoss(now), l.perHour(), l.mode(ask))
	}
	for i, c := range out {
		if !c.Met && ask.Manual && slices.Contains(ask.Override, c.Rule) && slices.Contains(Overridable(), c.Rule) {
			out[i].Met, out[i].Overridden, out[i].Hint = true, true, ""
			out[i].Text += "; set aside by the operator"
		}
	}
	return out
}

// unseen is every condition before the first look.
func (l Lookout) unseen() []Condition {
	rules := []string{RuleBuckets, RuleLease, RuleVetoServing, RuleVetoWrites, RuleKept, RuleOwnLease, RuleStanding, RuleSurvivors,
		RuleQuietTime, RuleMaxLoss, RulePerHour, RuleMode}
	out := make([]Condition, len(rules))
	for i, rule := range rules {
		out[i] = Condition{Rule: rule, Text: "the store has not answered yet"}
	}
	return out
}

func (l Lookout) buckets() Condition {
	c := Condition{Rule: RuleBuckets, Met: l.Facts.Owns > 0, Text: fmt.Sprintf("%s owns %d buckets that are open", l.Policy.Lost, l.Facts.Owns)}
	switch {
	case c.Met && l.Facts.Moving > 0:
		c.Text += fmt.Sprintf("; %d more are moving and are left to their handovers", l.Facts.Moving)
	case c.Met:
	case l.Facts.Moving > 0:
		c.Text = fmt.Sprintf("all %d buckets of %s are moving; their handovers come first", l.Facts.Moving, l.Policy.Lost)
	default:
		c.Text = fmt.Sprintf("%s owns no bucket: there is nothing to take over", l.Policy.Lost)
	}
	return c
}

func (l Lookout) lease(now time.Time) Condition {
	c := Condition{Rule: RuleLease, Met: l.RunOut(now), Text: l.leaseText(now)}
	switch {
	case c.Met:
	case !l.Lease.Exists:
		c.Hint = "a site that has never started cannot be lost; start its agent"
	default:
		c.Hint = "a site that is well gives its buckets up by a switch: atoll switch"
	}
	return c
}

// leaseText says how the lease stands. How long ago is counted from this observer's reads, never from a wall clock.
func (l Lookout) leaseText(now time.Time) string {
	ago, lost := now.Sub(l.Seen), l.Policy.Lost
	switch {
	case !l.Lease.Exists:
		return fmt.Sprintf("%s has never had a lease", lost)
	case l.Lease.Revoked:
		return fmt.Sprintf("the lease of %s was ended by failover %s", lost, l.Lease.RevokedBy)
	case l.RunOut(now):
		return fmt.Sprintf("%s's lease of %s was last seen renewed %s ago and has run out", lost, brief(l.Lease.Duration), brief(ago))
	case now.Sub(l.Seen) > l.Lease.Duration+l.Lease.Duration/rateError:
		return fmt.Sprintf("%s's lease was last seen renewed %s ago, and %s has promised not to take over for another %s", lost, brief(ago), l.Policy.Taker, brief(l.Expiry().Sub(now)))
	default:
		return fmt.Sprintf("%s's lease was last seen renewed %s ago and may be in force for another %s", lost, brief(ago), brief(l.Expiry().Sub(now)))
	}
}

// VetoOver tells whether vetoes, and survivors that do not answer, have put the failover off for as long as they may.
func (l Lookout) VetoOver(now time.Time) bool {
	return l.Lease.Exists && !now.Before(l.Expiry().Add(l.Policy.VetoBound))
}

const vetoHint = "heal the site's way to the store, or wait until the veto's bound; an operator may set it aside"

func (l Lookout) vetoServing(now time.Time) Condition {
	left := l.Facts.Until.Sub(now)
	switch {
	case !l.Facts.Serving || left <= 0:
		return Condition{Rule: RuleVetoServing, Met: true, Text: fmt.Sprintf("%s does not say over a live link that it serves", l.Policy.Lost)}
	case l.VetoOver(now):
		return Condition{Rule: RuleVetoServing, Met: true, Text: fmt.Sprintf("%s says over its link that it serves, but its lease has been out for longer than veto_bound %s", l.Policy.Lost, brief(l.Policy.VetoBound))}
	default:
		return Condition{Rule: RuleVetoServing, Text: fmt.Sprintf("%s says over its link that it serves, for another %s", l.Policy.Lost, brief(left)), Hint: vetoHint}
	}
}

// vetoWrites counts writes of applications that came after the lease was out, for as long as a keeper takes to renew.
func (l Lookout) vetoWrites(now time.Time) Condition {
	wrote := l.Facts.Wrote
	ago := now.Sub(wrote)
	switch {
	case wrote.IsZero() || !l.RunOut(now) || !wrote.After(l.Expiry()) || ago > l.Lease.Duration/3:
		return Condition{Rule: RuleVetoWrites, Met: true, Text: fmt.Sprintf("no writes of applications at %s have come in since its lease ran out", l.Policy.Lost)}
	case l.VetoOver(now):
		return Condition{Rule: RuleVetoWrites, Met: true, Text: fmt.Sprintf("writes of %s still come in, but its lease has been out for longer than veto_bound %s", l.Policy.Lost, brief(l.Policy.VetoBound))}
	default:
		return Condition{Rule: RuleVetoWrites, Text: fmt.Sprintf("writes of applications at %s came in %s ago, after its lease had run out", l.Policy.Lost, brief(ago)), Hint: vetoHint}
	}
}

// kept: a site whose policy is to keep accepting writes without the store cannot be known to have ended.
func (l Lookout) kept() Condition {
	if !l.Lease.Keeps {
		return Condition{Rule: RuleKept, Met: true, Text: fmt.Sprintf("%s accepts no writes once its lease has run out", l.Policy.Lost)}
	}
	return Condition{Rule: RuleKept, Text: fmt.Sprintf("%s keeps accepting writes while it does not reach the store (on_quorum_loss: keep): that its lease has run out says nothing", l.Policy.Lost),
		Hint: "make sure that its database is off, then set this aside"}
}

func (l Lookout) ownLease() Condition {
	if l.Facts.OwnLease {
		return Condition{Rule: RuleOwnLease, Met: true, Text: fmt.Sprintf("the lease of %s itself is in force", l.Policy.Taker)}
	}
	return Condition{Rule: RuleOwnLease, Text: fmt.Sprintf("the lease of %s itself is not in force at this agent", l.Policy.Taker), Hint: "see atoll status: the store and the database must both answer; where two agents run, ask the active one"}
}

func (l Lookout) standing() Condition {
	c := Condition{Rule: RuleStanding}
	switch f := l.Facts; {
	case f.Problem != "":
		c.Text, c.Hint = f.Problem, "see atoll status"
	case f.Unsettled != "":
		c.Text = fmt.Sprintf("%s itself is returning from failover %s: its tail is not settled", l.Policy.Taker, f.Unsettled)
		c.Hint = "it settles by itself once the other site is reached"
	case !f.Known:
		c.Text = fmt.Sprintf("the database of %s has never had changes of %s", l.Policy.Taker, l.Policy.Lost)
		c.Hint = "nothing of the lost site's data is here: bring the site back, or restore it"
	case l.Lease.Asks != "" && !slices.Contains(strings.Split(l.Lease.Asks, ","), string(l.Policy.Taker)):
		c.Text = fmt.Sprintf("%s does not ask %s for promises while the store is away: its agent does not know %[2]s as a full site yet", l.Policy.Lost, l.Policy.Taker)
		c.Hint = "give every site the same atoll.yaml"
	case f.Halted != "" && !(l.UnderWay() && f.Halted == l.Record.ID):
		c.Text = fmt.Sprintf("applying changes of %s is still halted by failover %s", l.Policy.Lost, f.Halted)
		c.Hint = "it is being resolved"
	default:
		c.Met, c.Text = true, fmt.Sprintf("%s has its database, and the changes of %s up to where they ended", l.Policy.Taker, l.Policy.Lost)
	}
	return c
}

// survivors names who else has to stop applying the lost site's changes before the cut is settled.
func (l Lookout) survivors() Condition {
	c := Condition{Rule: RuleSurvivors, Met: true, Text: "no other site has to agree where its changes end"}
	if others := l.Facts.Others; len(others) > 0 {
		names := make([]string, len(others))
		for i, s := range others {
			names[i] = string(s)
		}
		c.Text = fmt.Sprintf("%s stops applying changes of %s too, and says how far it has come", strings.Join(names, ", "), l.Policy.Lost)
		if l.Facts.Turn > 0 {
			c.Text += fmt.Sprintf("; %s comes first, and %s if it does not", strings.Join(names[:min(l.Facts.Turn, len(names))], ", "), l.Policy.Taker)
		}
	}
	return c
}

func unknownHistory(rule string) Condition {
	return Condition{Rule: rule, Text: "the list of handovers has not been read", Hint: "the store must answer; see atoll status"}
}

func (l Lookout) quietTime(now time.Time) Condition {
	f, quiet := l.Facts, l.Policy.QuietTime
	switch ago := now.Sub(f.LastTaken); {
	case quiet == 0:
		return Condition{Rule: RuleQuietTime, Met: true, Text: "the rule is off"}
	case !f.History:
		return unknownHistory(RuleQuietTime)
	case f.LastTaken.IsZero() || ago >= quiet:
		return Condition{Rule: RuleQuietTime, Met: true, Text: fmt.Sprintf("none of its buckets was failed over in the last %s", brief(quiet))}
	default:
		return Condition{Rule: RuleQuietTime, Text: fmt.Sprintf("buckets of %s were failed over %s ago, by %s; quiet_time is %s", l.Policy.Lost, brief(ago), f.LastID, brief(quiet)),
			Hint: "find out why it fails again so soon; an operator may set this aside"}
	}
}

// loss is how much of the lost site's time is missing here; negative: not known. What a site was silent for after its
// lease had run out cannot hold any accepted write.
func (l Lookout) loss(now time.Time) time.Duration {
	f := l.Facts
	if f.Loss < 0 {
		return -1
	}
	end := l.TakeAt()
	if l.Lease.Revoked || !f.Began.After(end) {
		return f.Loss
	}
	idle := f.Began.Sub(end)
	if !f.Heard.IsZero() {
		idle = min(idle, f.Began.Sub(f.Heard))
	}
	return max(0, f.Loss-max(0, idle))
}

// Loss is the estimated loss of a takeover at this moment; negative: not known.
func (l Lookout) Loss(now time.Time) time.Duration { return l.loss(now) }

func lossText(d time.Duration) string {
	if d < 0 {
		return "unknown"
	}
	return "at most " + brief(d)
}

func (l Lookout) maxLoss(now time.Time) Condition {
	switch loss := l.loss(now); {
	case loss < 0:
		return Condition{Rule: RuleMaxLoss, Text: fmt.Sprintf("how much of %s is missing here is not known", l.Policy.Lost), Hint: "an operator may accept an unknown loss by setting this aside"}
	case loss <= l.Policy.MaxLoss:
		return Condition{Rule: RuleMaxLoss, Met: true, Text: fmt.Sprintf("the writes of at most %s are missing here, as estimated; max_loss is %s", brief(loss), brief(l.Policy.MaxLoss))}
	default:
		return Condition{Rule: RuleMaxLoss, Text: fmt.Sprintf("the writes of %s may be missing here, as estimated; max_loss is %s", brief(loss), brief(l.Policy.MaxLoss)),
			Hint: "bring the site back if that is faster; an operator may accept the loss by setting this aside"}
	}
}

func (l Lookout) perHour() Condition {
	f := l.Facts
	switch {
	case !f.History:
		return unknownHistory(RulePerHour)
	case f.Recent < l.Policy.PerHour:
		return Condition{Rule: RulePerHour, Met: true, Text: fmt.Sprintf("%d failovers in the last hour; per_hour is %d", f.Recent, l.Policy.PerHour)}
	default:
		return Condition{Rule: RulePerHour, Text: fmt.Sprintf("%d failovers in the last hour; per_hour is %d", f.Recent, l.Policy.PerHour), Hint: "something is wrong that failovers do not heal; an operator may set this aside"}
	}
}

func (l Lookout) mode(ask Ask) Condition {
	order := fmt.Sprintf("atoll failover --site %s --to %s", l.Policy.Lost, l.Policy.Taker)
	switch {
	case ask.Manual:
		return Condition{Rule: RuleMode, Met: true, Text: "an operator asks for it"}
	case l.Policy.Mode == ModeAutomatic:
		return Condition{Rule: RuleMode, Met: true, Text: "the mode is automatic"}
	default:
		return Condition{Rule: RuleMode, Text: fmt.Sprintf("the mode is %s: nothing is taken over by itself", l.Policy.Mode), Hint: "to do it: " + order + "; to have it done: policies.failover.mode: automatic"}
	}
}

// Verdict is what the lookout makes of all this, in one sentence.
func (l Lookout) Verdict(now time.Time) string {
	lost, taker, id := l.Policy.Lost, l.Policy.Taker, l.Record.ID
	left := brief(max(0, l.TakeAt().Sub(now)))
	switch l.Stage {
	case Halting:
		return fmt.Sprintf("%s is taking over from %s (failover %s): it stops applying %[2]s's changes%[4]s.", taker, lost, id, l.blindness())
	case Waiting:
		return fmt.Sprintf("%s is taking over from %s (failover %s): it waits for another %s until nothing that %[2]s checked in time can still commit%[5]s.", taker, lost, id, left, l.blindness())
	case Taking:
		return fmt.Sprintf("%s is taking over from %s (failover %s): the takeover is with the store.", taker, lost, id)
	case Unsure:
		return fmt.Sprintf("%s has to find out in the store whether failover %s from %s stands.", taker, id, lost)
	case GivingUp, Unhalting:
		return fmt.Sprintf("%s gives failover %s from %s up: %s.", taker, id, lost, l.stop)
	case TakenOver:
		return fmt.Sprintf("%s has taken over from %s by failover %s.", taker, lost, l.Last)
	}
	unmet := Unmet(l.Conditions(Ask{}, now))
	switch {
	case l.Looked.IsZero():
		return fmt.Sprintf("%s has not been able to look at %s yet%s.", taker, lost, l.blindness())
	case l.Blind != "" && l.RunOut(now): // whatever was seen before
		return fmt.Sprintf("%s cannot take over from %s: the store does not answer%s.", taker, lost, l.blindness())
	case l.Facts.Owns == 0 && l.Lease.Revoked:
		return fmt.Sprintf("failover %s took over from %s, which owns nothing and is not back.", l.Lease.RevokedBy, lost)
	case l.Facts.Owns == 0:
		return fmt.Sprintf("nothing is to be done: %s.", unmet[0].Text)
	case !l.RunOut(now):
		return fmt.Sprintf("%s is not lost: %s%s.", lost, l.leaseText(now), l.blindness())
	case len(unmet) == 0:
		return fmt.Sprintf("%s is about to take over from %s: %s.", taker, lost, l.leaseText(now))
	case len(unmet) == 1 && unmet[0].Rule == RuleMode:
		return fmt.Sprintf("%s could take over from %s, and does not: %s.", taker, lost, unmet[0].Text)
	}
	names := make([]string, len(unmet))
	for i, c := range unmet {
		names[i] = c.Rule
	}
	return fmt.Sprintf("%s does not take over from %s because of %s: %s.", taker, lost, strings.Join(names, ", "), unmet[0].Text)
}

func (l Lookout) blindness() string {
	if l.Blind == "" {
		return ""
	}
	return " (" + l.Blind + ")"
}

// brief prints a duration for people.
func brief(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	default:
		return d.Round(time.Second).String()
	}
}
