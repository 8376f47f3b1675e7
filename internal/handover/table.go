package handover

import (
	"fmt"
)

// This file is the table: one function per phase, one case per event, in the order in which they come. A row without
// statements is an answer that came too late to matter. What is not in the table cannot happen.

func (m *machine) onPrepare(ev Event) {
	switch e := ev.(type) {
	case Tick: // retries are done behind the table
	case Ready:
		m.Record.Move = e.Move
		for k, v := range e.Facts {
			m.note(k, v)
		}
		if m.DryRun { // ends here, nothing saved
			m.Record.Outcome, m.pending = OutcomeReady, nil
			return
		}
		m.claimed = m.now // gateways may hold before the store's answer is back here
		m.do(Action{Do: Claim})
	case Refused:
		m.refuse(texts(e.Problems)...)
	case Claimed:
		m.Record.Claimed = e.Version
		m.enter(Moving, nil)
		m.waiting = append(m.waiting, m.Record.Sites...)
		m.deadline = m.now.Add(m.Record.Bounds.Drain())
		for _, site := range m.Record.Sites {
			m.do(Action{Do: Settle, Site: site, Version: e.Version, Bound: m.Record.Bounds.Drain()})
		}
	case Conflict: // the document changed since the check
		m.do(Action{Do: Reread})
	case Observed: // after a claim without an answer
		switch {
		case e.Exists && !e.Record.Over():
			m.onPrepare(Claimed{Version: e.Record.Claimed})
		case m.tried():
			m.refuse("the claim met a change of ownership each time for " + prepareBound.String() + "; try again")
		default: // a claim that is still on its way will meet our next one, or be taken over as a record without driver
			m.do(Action{Do: Check})
		}
	case Failed:
		switch {
		case e.Do == Claim: // unknown: the store may have it
			m.do(Action{Do: Reread})
		case m.tried() && e.Do == Reread:
			m.refuse("whether the buckets were claimed is unknown: "+e.Text, "if they were, another controller finishes the switch: see atoll status")
		case m.tried():
			m.refuse(e.Text)
		default:
			m.later(Action{Do: e.Do}, retryEvery)
		}
	default:
		m.bug(ev)
	}
}

func (m *machine) onMoving(ev Event) {
	switch e := ev.(type) {
	case Tick:
		switch {
		case !m.passed():
		case m.closing:
			m.abort(fmt.Sprintf("%s did not close its fence within %s", m.Record.Move.From, m.Record.Bounds.Fence()))
		default: // gateways that did not settle: the fence refuses what they let through
			m.note("settle", fmt.Sprintf("no answer within %s from %v", m.Record.Bounds.Drain(), m.waiting))
			m.close()
		}
	case Settled:
		m.note("settled "+string(e.Site), e.Facts)
		if !m.closing && m.arrived(e.Site) {
			m.close()
		}
	case Closed:
		if wrong := m.wrongMarker(e.Marker); wrong != "" {
			m.abort(wrong)
			return
		}
		m.enter(Fenced, nil)
		m.fenced = m.now
		m.deadline = m.now.Add(m.Record.Bounds.Catch()) // the wait for the marker is under way
		if skipMarker() {
			m.caughtUp()
		}
	case WritersRemain: // the fence is open again
		m.abort("writers remain at " + string(m.Record.Move.From) + ": " + e.Text)
	case MarkerArrived: // faster than the answer to Close, or instead of it
		if wrong := m.wrongMarker(e.Marker); wrong != "" {
			m.abort(wrong)
			return
		}
		m.enter(Fenced, map[string]string{"proof": "the marker, at " + string(m.Record.Move.To)})
		m.fenced = m.now
		m.caughtUp()
	case Failed:
		switch e.Do {
		case Settle:
			if !m.closing {
				m.note("settle "+string(e.Site), e.Text)
				m.later(Action{Do: Settle, Site: e.Site, Version: m.Record.Claimed, Bound: m.Record.Bounds.Drain()}, retryEvery)
			}
		case Close:
			m.note("close", e.Text)
			m.later(Action{Do: Close, Site: m.Record.Move.From, Bound: m.Record.Bounds.Fence()}, retryEvery)
		case AwaitMarker:
			m.note("marker", e.Text)
			m.later(m.awaitMarker(), retryEvery)
		case Save: // the next one is a second away
		default:
			m.bug(ev)
		}
	case Saved:
	default:
		m.bug(ev)
	}
}

func (m *machine) onFenced(ev Event) {
	switch e := ev.(type) {
	case Tick:
		if m.passed() {
			m.abort(fmt.Sprintf("%s did not receive the marker of %s within %s", m.Record.Move.To, m.Record.Move.From, m.Record.Bounds.Catch()))
		}
	case MarkerArrived:
		if wrong := m.wrongMarker(e.Marker); wrong != "" {
			m.abort(wrong)
			return
		}
		m.caughtUp()
	case Settled: // a gateway that was too slow for the drain bound
		m.note("settled "+string(e.Site), e.Facts)
	case Failed:
		switch e.Do {
		case AwaitMarker:
			m.note("marker", e.Text)
			m.later(m.awaitMarker(), retryEvery)
		case Settle, Save:
		default:
			m.bug(ev)
		}
	case Saved:
	default:
		m.bug(ev)
	}
}

func (m *machine) onCaughtUp(ev Event) {
	switch e := ev.(type) {
	case Tick: // no bound: only the store can say how this ends
	case CommitStands:
		m.decided(Committed, e.Version)
	case Conflict: // another handover changed the document, or another controller decided
		m.do(Action{Do: Reread})
	case Observed:
		if e.Exists {
			m.observed(e.Record, Action{Do: Commit})
			return
		}
		m.later(Action{Do: Reread}, retryEvery)
	case Failed:
		switch e.Do {
		case Commit: // unknown: the store may have it
			m.note("commit", e.Text)
			m.later(Action{Do: Reread}, retryEvery)
		case Reread:
			m.note("commit", e.Text)
			m.later(Action{Do: Reread}, retryEvery)
		case Settle, Close, AwaitMarker, Save: // late
		default:
			m.bug(ev)
		}
	case Settled, Closed, MarkerArrived, Saved: // late; a wait for the marker that a planted bug skipped
	case WritersRemain: // a second try at closing; the marker proves the first
		m.note("close", "late answer: writers remain: "+e.Text)
	default:
		m.bug(ev)
	}
}

func (m *machine) onCommitted(ev Event) {
	switch e := ev.(type) {
	case Tick: // no bound: no way back
	case Reached:
		pause := m.pause()
		m.enter(Opened, nil)
		m.Record.Pause = pause
		m.awaitReleases()
	case Failed:
		switch e.Do {
		case Open:
			m.note("open", e.Text)
			m.later(Action{Do: Open, Site: m.Record.Move.To, Version: m.Record.Decided, Bound: openBound}, retryEvery)
		case Settle, Close, AwaitMarker, Save: // late
		default:
			m.bug(ev)
		}
	case Settled, Closed, WritersRemain, MarkerArrived, Saved: // late
	default:
		m.bug(ev)
	}
}

// onTaken is what COMMITTED is to a switch; only the taker's fence is left to open.
func (m *machine) onTaken(ev Event) {
	switch e := ev.(type) {
	case Tick: // no bound: no way back
	case Reached:
		m.enter(Opened, nil)
		m.Record.Failover = m.opened()
		m.awaitReleases()
	case Failed:
		switch e.Do {
		case Open:
			m.note("open", e.Text)
			m.later(Action{Do: Open, Site: m.Record.Move.To, Version: m.Record.Decided, Bound: openBound}, retryEvery)
		case Save:
		default:
			m.bug(ev)
		}
	case Saved:
	default:
		m.bug(ev)
	}
}

func (m *machine) onOpened(ev Event) {
	switch e := ev.(type) {
	case Tick:
		if m.passed() {
			m.note("release", fmt.Sprintf("no answer within %s from %v", releaseBound, m.waiting))
			m.finish(Done, OutcomeDone)
		}
	case Released:
		m.note("released "+string(e.Site), e.Facts)
		if m.arrived(e.Site) {
			m.finish(Done, OutcomeDone)
		}
	case Failed:
		switch e.Do {
		case AwaitRelease:
			m.note("release "+string(e.Site), e.Text)
			m.later(Action{Do: AwaitRelease, Site: e.Site, Version: m.Record.Decided, Bound: releaseBound}, retryEvery)
		case Settle, Close, AwaitMarker, Save: // late
		default:
			m.bug(ev)
		}
	case Settled, Closed, WritersRemain, MarkerArrived, Saved: // late
	default:
		m.bug(ev)
	}
}

// onAborting is MOVING or FENCED with an abort that is with the store.
func (m *machine) onAborting(ev Event) {
	switch e := ev.(type) {
	case Tick: // no bound: only the store can say how this ends
	case AbortStands:
		m.decided(Aborted, e.Version)
	case Conflict: // another handover changed the document, or another controller decided
		m.do(Action{Do: Reread})
	case Observed:
		if e.Exists {
			m.observed(e.Record, Action{Do: Abort})
			return
		}
		m.later(Action{Do: Reread}, retryEvery)
	case Failed:
		switch e.Do {
		case Abort, Reread:
			m.note("abort", e.Text)
			m.later(Action{Do: Reread}, retryEvery)
		case Settle, Close, AwaitMarker, Save: // late
		default:
			m.bug(ev)
		}
	case Settled, Closed, WritersRemain, MarkerArrived, Saved: // late; the abort is wanted all the same
	default:
		m.bug(ev)
	}
}

// onEnd is DONE or ABORTED.
func (m *machine) onEnd(ev Event) {
	switch e := ev.(type) {
	case Tick:
		if !m.Record.Over() && m.passed() { // its keeper opens when it is back
			m.note("reopen", fmt.Sprintf("%s has not opened within %s", m.Record.Move.From, reopenBound))
			m.finish(Aborted, OutcomeAborted)
		}
	case Reached:
		if m.Record.Over() { // later than the reopen bound
			return
		}
		m.finish(Aborted, OutcomeAborted)
	case Saved:
		m.saved = m.saved || m.Record.Over() && e.Outcome == m.Record.Outcome
	case Failed:
		switch e.Do {
		case Reopen:
			if !m.Record.Over() {
				m.note("reopen", e.Text)
				m.later(Action{Do: Reopen, Site: m.Record.Move.From, Version: m.Record.Decided, Bound: reopenBound}, retryEvery)
			}
		case Save:
			if m.Record.Over() {
				m.later(Action{Do: Save}, retryEvery)
			}
		case Settle, Close, AwaitMarker, AwaitRelease: // late
		default:
			m.bug(ev)
		}
	case Settled, Closed, WritersRemain, MarkerArrived, Released: // late
	default:
		m.bug(ev)
	}
}

func (m *machine) bug(ev Event) {
	panic(fmt.Sprintf("BUG: handover %s in phase %s (aborting %v) cannot see %T%+v", m.Record.ID, m.Record.Phase, m.aborting, ev, ev))
}

func texts(problems []Problem) []string {
	out := make([]string, len(problems))
	for i, p := range problems {
		out[i] = p.String()
	}
	return out
}
