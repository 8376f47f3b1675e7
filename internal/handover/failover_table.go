package handover

import (
	"fmt"
)

// This file is the table of a lookout: one function per stage, one case per event. Looks come in every stage, and one
// that fails never decides anything. What is not in the table cannot happen.

func (w *watch) on(ev Event) {
	switch e := ev.(type) {
	case Unseen: // without the store nothing begins and nothing ends
		w.Blind = e.Text
		return
	case Tick:
		if w.retry != nil {
			if !w.now.Before(w.retry.at) {
				w.do(w.retry.do)
			}
			return
		}
	}
	switch w.Stage {
	case Watching, Expired:
		w.onIdle(ev)
	case Halting:
		w.onHalting(ev)
	case Waiting:
		w.onWaiting(ev)
	case Taking:
		w.onTaking(ev)
	case Unsure:
		w.onUnsure(ev)
	case GivingUp:
		w.onGivingUp(ev)
	case Unhalting:
		w.onUnhalting(ev)
	case TakenOver:
		w.onTakenOver(ev)
	default:
		panic(fmt.Sprintf("BUG: lookout for %s in unknown stage %q", w.Policy.Lost, w.Stage))
	}
}

// onIdle is WATCHING and EXPIRED.
func (w *watch) onIdle(ev Event) {
	switch e := ev.(type) {
	case Tick: // the lease has run out, or half of W or all of it is over
		w.consider()
	case Sight:
		if w.sighted(e) && !w.resolves(e.Facts.Began) {
			w.consider()
		}
	case Order:
		if len(Unmet(w.Conditions(Ask{Manual: true, Override: e.Override}, w.now))) == 0 {
			w.begin(e, false)
		}
	default:
		w.bug(ev)
	}
}

func (w *watch) onHalting(ev Event) {
	switch e := ev.(type) {
	case Tick, Order: // an order is what is being done
	case Sight: // the answer to Halt comes first: what is under way cannot be called back
		w.sighted(e)
		w.weigh()
		if w.stop != "" && w.retry != nil {
			w.end()
		}
	case Halted:
		f := w.Record.Failover
		f.Position, f.Survivors, f.Silent = e.Position, e.Survivors, e.Silent
		w.weigh()
		if w.stop != "" {
			w.end()
			return
		}
		w.enter(Waiting)
		w.ripe()
	case Failed: // perhaps carried out all the same; the same again changes nothing
		if e.Do != Halt {
			w.bug(ev)
		}
		w.weigh()
		if w.stop != "" {
			w.end()
			return
		}
		w.tell("halt", false, "failover %s: applying %s's changes is not halted yet: %s", w.Record.ID, w.Policy.Lost, e.Text)
		w.again(Action{Do: Halt, Bound: haltBound})
	default:
		w.bug(ev)
	}
}

func (w *watch) onWaiting(ev Event) {
	switch e := ev.(type) {
	case Tick:
		w.ripe()
	case Order:
	case Sight:
		if !w.sighted(e) {
			return
		}
		w.weigh()
		if w.stop != "" {
			w.end()
			return
		}
		if !e.Facts.Began.Before(w.since) {
			w.needLook = false
		}
		w.ripe()
	default:
		w.bug(ev)
	}
}

func (w *watch) onTaking(ev Event) {
	switch e := ev.(type) {
	case Tick, Order:
	case Sight: // may show what the takeover has done already: it says nothing against it
		w.sighted(e)
	case TakeStands:
		w.landed(e)
	case Conflict: // this one wrote nothing; an earlier one without an answer may have
		w.unsure()
	case Refused: // the ownership gives nothing to take
		w.stop = texts(e.Problems)[0]
		w.unsure()
	case Failed:
		if e.Do != Take {
			w.bug(ev)
		}
		w.say("failover %s: whether the store has it is not known: %s", w.Record.ID, e.Text)
		w.unsure()
	default:
		w.bug(ev)
	}
}

func (w *watch) onUnsure(ev Event) {
	switch e := ev.(type) {
	case Tick, Order:
	case Sight:
		w.sighted(e)
	case Observed:
		switch {
		case e.Exists && e.Record.Outcome == OutcomeRefused:
			w.Record = e.Record
			w.unhalt()
		case e.Exists && e.Record.Over() && w.found: // its cuts are recorded: the halt came after them
			w.Record = e.Record
			w.unhalt()
		case e.Exists:
			w.Record = e.Record
			w.stands()
		default:
			w.weigh()
			if w.found || w.stop != "" {
				w.end()
				return
			}
			w.enter(Waiting)
			w.needLook = true
			w.do(Action{Do: Look})
		}
	case Failed:
		if e.Do != Reread {
			w.bug(ev)
		}
		w.again(Action{Do: Reread})
	default:
		w.bug(ev)
	}
}

func (w *watch) onGivingUp(ev Event) {
	switch e := ev.(type) {
	case Tick, Order:
	case Sight:
		w.sighted(e)
	case GivenUp:
		w.say("failover %s: given up: %s", w.Record.ID, w.stop)
		w.unhalt()
	case Conflict: // there is a record: a Take that landed, or an earlier try at this
		w.unsure()
	case Failed:
		if e.Do != GiveUp {
			w.bug(ev)
		}
		w.again(Action{Do: GiveUp})
	default:
		w.bug(ev)
	}
}

func (w *watch) onUnhalting(ev Event) {
	switch e := ev.(type) {
	case Tick, Order:
	case Sight:
		w.sighted(e)
	case Unhalted:
		w.say("failover %s is over; %s's changes are applied again", w.Record.ID, w.Policy.Lost)
		w.enter(Watching)
		w.told = ""
		w.do(Action{Do: Look})
	case Failed:
		if e.Do != Unhalt {
			w.bug(ev)
		}
		w.tell("unhalt", false, "failover %s: applying %s's changes cannot be taken up again: %s", w.Record.ID, w.Policy.Lost, e.Text)
		w.again(Action{Do: Unhalt})
	default:
		w.bug(ev)
	}
}

func (w *watch) onTakenOver(ev Event) {
	switch e := ev.(type) {
	case Tick, Order:
	case Sight: // until one shows what the takeover wrote, looks are older than it
		if e.Lease.Revision > w.timed && w.sighted(e) {
			w.enter(Watching)
			w.told = ""
			w.consider()
		}
	default:
		w.bug(ev)
	}
}

func (w *watch) bug(ev Event) {
	panic(fmt.Sprintf("BUG: lookout for %s in stage %s (failover %s) cannot see %T%+v", w.Policy.Lost, w.Stage, w.Record.ID, ev, ev))
}
