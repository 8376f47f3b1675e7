package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/topo"
)

const (
	linkLag   = 2500 * time.Millisecond // below what a switch waits for (policies.switch.max_lag), above what a read does
	perMove   = 6                       // buckets
	leastFelt = 10                      // reads
)

// The changes of one site come late to the other: for a while, then while users move along that link and back against it,
// and then the site is lost together with all that is under way. Sessions read at both meanwhile: K5. That there was something
// to pass shows in the reads for which the late copy would not do.
func TestSessionsOverALaggingLink(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	w := ownWorld(ctx, t, Options{})
	w.opts.sessions = 2 * sessionsPerSite * len(w.opts.Sites)
	late := Way{w.a(), w.b()}
	var plain, lagging span
	w.play(ctx, func(ctx context.Context, w *faultWorld) {
		plain.from = time.Now()
		w.must(rest(ctx, 4*sessionEvery))
		plain.to = time.Now()

		lag := w.d.LagLink(late, linkLag)
		w.must(lag.Inject(ctx))
		lagging.from = time.Now()
		w.must(rest(ctx, 2*linkLag))
		w.isLate(ctx, late)
		owned := w.ownedBy(ctx, late.From).Buckets()
		w.moveRound(ctx, topo.SpansOf(owned[:perMove]...), late.To, late.From)
		w.moveRound(ctx, topo.SpansOf(owned[perMove:2*perMove]...), late.To)
		w.must(rest(ctx, 4*sessionEvery))

		faults := []Fault{w.d.CutKinds(late.From, late.To, Link), w.d.LoseSite(late.From)} // what was on its way is lost, too
		lagging.to = time.Now()
		for _, f := range faults {
			w.must(f.Inject(ctx))
		}
		w.eventually(ctx, "it is taken over", func() bool { return w.lostBy(ctx, late.From) != "" })
		t.Logf("taken over within %.1f s", time.Since(lagging.to).Seconds())
		w.must(rest(ctx, time.Until(lagging.to.Add(downTime))))
		for _, f := range append(faults, lag) {
			w.must(f.Heal(ctx))
		}
		w.eventually(ctx, "what it had alone is settled", func() bool { return w.lostBy(ctx, late.From) == "" })
		w.settledAndShared(ctx)
	})
	before, felt := feltOf(w.ops, late, linkLag, plain), feltOf(w.ops, late, linkLag, lagging)
	t.Logf("before the lag: %s", before)
	t.Logf("with %v of it: %s", linkLag, felt)
	if felt.pressing < leastFelt || felt.pressingHere*10 > felt.pressing {
		t.Errorf("the lag was not felt: of %d reads that came sooner behind an append at %s than that could be at %s, %s answered %d",
			felt.pressing, late.From, late.To, late.To, felt.pressingHere)
	}
}

// span is a piece of the test's time.
type span struct{ from, to time.Time }

// moveRound moves buckets from site to site, each time for good: one that is refused or aborted under the lag is tried again.
func (w *faultWorld) moveRound(ctx context.Context, buckets topo.Spans, to ...topo.SiteID) {
	w.t.Helper()
	for _, site := range to {
		began, tries := time.Now(), 0
		w.eventually(ctx, fmt.Sprintf("%s of users are at %s", buckets, site), func() bool {
			tries++
			_, err := w.d.Atoll(ctx, "switch", "--keyspace", string(users), "--buckets", buckets.String(), "--to", string(site))
			if err != nil {
				w.t.Logf("switch of %s to %s: %v", buckets, site, err)
			}
			return err == nil
		})
		w.t.Logf("users %s to %s: %.1f s, tries %d", buckets, site, time.Since(began).Seconds(), tries)
	}
}

// isLate wants the databases to show the lag, and prints what the late site's own agent knows of it: heartbeats come by the
// same link, so that it counts from what was sent to what is applied, and not how long that was under way.
func (w *faultWorld) isLate(ctx context.Context, late Way) {
	w.t.Helper()
	lags, err := w.d.lags(ctx)
	w.must(err)
	st, err := w.d.status(ctx, late.To)
	w.must(err)
	says := int64(-1)
	for _, s := range st.Sites {
		for _, l := range s.Links {
			if s.Site == late.To && l.Origin == late.From && l.Target == late.To {
				says = l.LagMS
			}
		}
	}
	age := lags[late.To].age
	w.t.Logf("by the databases %s is %.1f s behind; its agent says %d ms", late.To, age.Seconds(), says)
	if age < linkLag/2 {
		w.t.Error("that is too little for the lag of the link")
	}
}

// felt is what sessions that asked at the end of a late link met there, of lists that were appended to at its beginning.
type felt struct {
	reads, here int           // answered; of them from the copy
	old         int           // of those from the copy, that lacked what others had been told is appended
	oldest      time.Duration // how long ago

	// Reads that came sooner behind an append of their own session than it can have been in the copy, as late as that is.
	pressing, pressingHere int
	took                   []time.Duration // of the pressing ones
}

func (f felt) String() string {
	took := quantiles(f.took)
	return fmt.Sprintf("%d reads, %d by the copy and %d by the owner; %d from the copy lacked what somebody else had appended, up to %.1f s before; "+
		"%d reads came soon behind their own session's append, %d by the copy and %d by the owner, in %.0f ms (p50), %.0f (max)",
		f.reads, f.here, f.reads-f.here, f.old, f.oldest.Seconds(), f.pressing, f.pressingHere, f.pressing-f.pressingHere, took.P50, took.Max)
}

// feltOf looks at the sessions' reads within a span of time.
func feltOf(ops []Operation, late Way, lag time.Duration, during span) (f felt) {
	appends := map[string][]*Operation{} // acknowledged, by list
	for i := range ops {
		if o := &ops[i]; o.Op == sessionAppend && o.Outcome == OK {
			appends[o.Key] = append(appends[o.Key], o)
		}
	}
	for _, of := range appends {
		slices.SortFunc(of, func(a, b *Operation) int { return a.Returned().Compare(b.Returned()) })
	}
	for i := range ops {
		o := &ops[i]
		if o.Op != sessionRead || o.Outcome != OK || !strings.HasPrefix(o.Target, string(late.To)+"/") || o.Invoked().Before(during.from) || o.Returned().After(during.to) {
			continue
		}
		var newest, own *Operation // before it
		for _, a := range appends[o.Key] {
			if a.Returned().After(o.Invoked()) {
				break
			}
			if newest = a; a.Session == o.Session {
				own = a
			}
		}
		if newest != nil && newest.Site == late.From {
			f.add(o, newest, own, late, lag)
		}
	}
	return f
}

func (f *felt) add(o, newest, own *Operation, late Way, lag time.Duration) {
	f.reads++
	here := o.Site == late.To
	if here {
		f.here++
		if !slices.Contains(o.List, newest.Value) {
			f.old++
			f.oldest = max(f.oldest, o.Invoked().Sub(newest.Returned()))
		}
	}
	if own == nil || own.Site != late.From || !o.Returned().Before(own.Invoked().Add(lag)) {
		return
	}
	f.pressing++
	f.took = append(f.took, o.Returned().Sub(o.Invoked()))
	if here {
		f.pressingHere++
	}
}

// A copy may lack what another session appended, and is passed by for what the reader's own did; neither counts where
// another site owns the list, or another one was asked.
func TestFeltOf(t *testing.T) {
	t.Parallel()
	s := newSitting().add("s1", 1, "a", "one").
		read("s1", 1.5, "a", "one").via("b/g1").                                               // pressing, by the owner
		read("s2", 2, "b", "").                                                                // of another session's, and old
		read("s1", 2.2, "b", "one").                                                           // pressing, though it was there
		read("s1", 4, "b", "one").                                                             // late enough
		read("s1", 4.2, "a", "one").                                                           // asked at a
		add("s1", 5, "b", "one two").read("s1", 5.1, "b", "one two").                          // b owns it
		add("s1", 20, "a", "one two three").read("s1", 20.2, "a", "one two three").via("b/g1") // of another time
	f := feltOf(s.ops, Way{"a", "b"}, 2*time.Second, span{second(0), second(10)})
	if f.reads != 4 || f.here != 3 || f.old != 1 || f.oldest.Round(100*time.Millisecond) != 900*time.Millisecond || f.pressing != 2 || f.pressingHere != 1 {
		t.Errorf("%+v", f)
	}
}
