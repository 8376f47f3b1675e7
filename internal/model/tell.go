package model

import (
	"fmt"
	"strings"

	"github.com/atollhq/atoll/internal/handover"
)

// tell says what an event did, for people: who acted, and what is different by now.
func (m *Model) tell(before *world, e event, after *world) string {
	text := m.did(before, e)
	if d := m.differences(before, after); d != "" {
		text += " — " + d
	}
	return text
}

func (m *Model) did(w *world, e event) string {
	at, site := int(e.at), siteID(int(e.at))
	lost := ""
	if e.lost {
		lost = "; the request is not answered and may arrive late"
	}
	switch e.what {
	case timePasses:
		return "time passes"
	case keeperActs:
		return fmt.Sprintf("keeper of %s: %s%s", site, m.keeperText(w, at), lost)
	case keeperHears:
		return fmt.Sprintf("keeper of %s hears of ownership %d", site, m.document(w.doc).Version)
	case lookoutLooks:
		return fmt.Sprintf("lookout of %s looks at %s", site, siteID(other(at)))
	case lookoutTicks:
		return fmt.Sprintf("lookout of %s: a wait is over", site)
	case lookoutActs:
		_, ho := m.recordOf(w.ag[at].l.id)
		part := ""
		if verbs[w.ag[at].l.act] == handover.Take {
			part = [...]string{" (reads the ownership)", " (the transaction)"}[w.ag[at].l.sub]
		}
		return fmt.Sprintf("lookout of %s: %s %s%s%s", site, verbs[w.ag[at].l.act], m.name(ho), part, lost)
	case driverTicks:
		return fmt.Sprintf("driver at %s: a wait is over", site)
	case driverActs:
		j := w.ag[at].d.job[e.i]
		e := m.errand(j.act, w.ag[at].d.id)
		part := ""
		if e.verb == handover.Close {
			part = [...]string{" (bits off)", " (marker)"}[j.stage]
		}
		return fmt.Sprintf("driver at %s: %s %s%s%s", site, e.verb, m.name(e.ho), part, lost)
	case requestArrives:
		q := w.late[e.i]
		return fmt.Sprintf("a late request of %s arrives: %s, %s", siteID(int(q.by)), q.kind, map[bool]string{true: "at the store", false: "at the database of " + string(siteID(int(q.at)))}[q.kind.toStore()])
	case switchBegins:
		sw := m.cfg.Switches[e.i]
		return fmt.Sprintf("a switch of bucket %d to %s begins at the agent of %s", sw.Bucket, siteID(sw.To), siteID(sw.Driver))
	case agentCrashes:
		if e.i == 1 {
			return fmt.Sprintf("the agent of %s dies; what it was about to send (%s) may still arrive", site, m.underWay(w, at).kind)
		}
		return fmt.Sprintf("the agent of %s dies", site)
	}
	if text, ok := map[what]string{driverGivesUp: "the closing at %s's driver gives up waiting for writers", driverAdopts: "the controller of %s takes the switch over",
		agentFreezes: "the agent of %s freezes", agentThaws: "the agent of %s goes on", agentStarts: "the agent of %s starts",
		storeCut: "%s is cut from the store", storeHeals: "%s reaches the store again", databaseCrashes: "the database of %s crashes", databaseStarts: "the database of %s starts",
		clockStops: "the machine of %s's database stands still, and its clock with it", clockGoes: "the machine of %s's database goes on; its clock does not know that it stood still",
		changeComes: "%s applies a change", applyBegins: "%s begins to apply a change", applyEnds: "%s commits the change that it applies", applyBreaks: "%s gives the change up that it was applying",
		siteReturns: "%s closes what was taken over from it for good", siteSettles: "%s has the whole tail, and settles it"}[e.what]; ok {
		return fmt.Sprintf(text, site)
	}
	return fmt.Sprintf(map[what]string{appWrites: "an application at %s writes to bucket %d: the fence lets it pass; the transaction stays open",
		appLooks: "an application at %s commits a write to bucket %d: its last look at the lease has passed",

		appWorks: "an application at %s writes to bucket %d and commits", appCommits: "the application's write at %s to bucket %d is committed"}[e.what], site, e.i)
}

func (m *Model) keeperText(w *world, at int) string {
	k := &w.ag[at].k
	switch {
	case k.open != notOpening:
		return [...]string{cutsStep: "records the cuts", rowsStep: "opens: epoch rows", bitsStep: "opens: bits"}[k.open]
	case k.step == momentStep:
		return "writes the lease moment"
	case k.step == renewedStep:
		return "has the answer to its renewal; restricts, and computes the moment"
	case k.cycle == 0:
		return "takes the site's record over"
	}
	if do := m.task(w, at).do; do != "proving" {
		return do
	}
	return "proves its database, and renews"
}

// differences lists what people look at: the ownership, leases, fences, streams, what is applied, and stages.
func (m *Model) differences(a, b *world) string {
	var out []string
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	if a.doc != b.doc {
		add("ownership %s", m.ownershipText(b.doc))
	}
	for s := range b.db {
		site, x, y := siteID(s), &a.db[s], &b.db[s]
		if p := b.seat[s]; a.seat[s] != p {
			by := ""
			if p.by != 0 {
				by = ", revoked by " + string(m.name(p.by))
			}
			add("lease of %s at revision %d%s", site, p.rev, by)
		}
		if x.bits != y.bits {
			add("bits of %s %s", site, bitsText(y.bits))
		}
		if x.lease != y.lease {
			add("lease moment of %s %s, its clock says %s", site, seconds(int(y.lease)-m.cfg.Grid), seconds(m.dbClock(b, s)-m.cfg.Grid))
		}
		for _, it := range y.log[x.n:y.n] {
			add("stream of %s: %s", site, m.itemText(it))
		}
		if x.done != y.done {
			add("%s has applied %d of %s", site, y.done, siteID(other(s)))
		}
		if x.halt != y.halt {
			if y.halt == 0 {
				add("applying goes on at %s", site)
			} else {
				add("applying is halted at %s for %s", site, m.name(y.halt))
			}
		}
		if p, q := a.ag[s].l.stage, b.ag[s].l.stage; p != q && b.ag[s].l.id != 0 {
			add("lookout of %s is %s", site, stages[q])
		}
		if p, q := a.ag[s].d.id, b.ag[s].d.id; p != q && q != 0 {
			if was := m.phase(p); was != m.phase(q) {
				add("switch in %s", m.phase(q))
			}
		}
	}
	return strings.Join(out, "; ")
}

func (m *Model) phase(id uint32) handover.Phase {
	if id == 0 {
		return ""
	}
	return m.states.get(id).Record.Phase
}

func (m *Model) ownershipText(doc uint16) string {
	d := m.document(doc)
	out := fmt.Sprintf("%d:", d.Version)
	for b, p := range d.at {
		out += fmt.Sprintf(" %d at %s@%d", b, siteID(p.owner), p.epoch)
		if p.moving != 0 {
			out += fmt.Sprintf(" moving to %s", siteID(p.target))
		}
		if p.cut.epoch != 0 {
			out += fmt.Sprintf(" (cut of %s at %d)", siteID(p.cutFrom), p.cut.pos)
		}
	}
	return out
}

func (m *Model) itemText(i item) string {
	return fmt.Sprintf("%s %d@%d", map[item]string{write: "write to", opened: "opened", closed: "marker, closed"}[i.kind()], i.bucket(), i.epoch())
}

func bitsText(bits uint8) string {
	if bits == 0 {
		return "all off"
	}
	var on []string
	for b := range buckets {
		if bits>>b&1 == 1 {
			on = append(on, fmt.Sprint(b))
		}
	}
	return strings.Join(on, ",") + " on"
}

func seconds(ms int) string { return fmt.Sprintf("%d.%03d s", ms/1000, ms%1000) }
