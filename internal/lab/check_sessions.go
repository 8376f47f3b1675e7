package lab

import (
	"cmp"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/atollhq/atoll/topo"
)

// CheckK5: sessions read what they wrote, and never less than they saw, at whichever site they ask.
//
// It follows each session through its requests, one after the other. Lists are appended to and nothing else, so all four
// guarantees are about beginnings: each answer that the session gets of a list begins with the one before it. In a read that
// is read-your-writes (the answers to its appends count) and monotonic reads; in the answer to an append, that writes follow
// what was read and written before. Nothing else is asked of a read: it may be as old as the session knows.
//
// Where an answer says that a failover took something from the session, it expects nothing of that bucket's lists from before:
// what this answer has is its new beginning. That must be explained: the bucket was lost, and the session had an
// answer of it that can have had what the lost site had alone. So without a failover no session may be told so. Entries that
// the lost site had alone may come back when its tail is settled, behind what stands: prefixes hold again from then on.
//
// Once the lost site's tail is settled, what it had alone has been decided and logged, and nobody is told of it any more: a
// session that was answered nothing of the bucket meanwhile begins anew without a word. It is counted.
//
// n is the number of buckets of the lists' keyspace.
func CheckK5(e Evidence, ops []Operation, n int) (Check, SessionCounts) {
	c := Check{Name: "K5", Claim: "a session reads what it wrote, and never less than it saw, at every site; a failover says what it took from one"}
	k := &sessions{n: n, losses: e.Losses, epochs: bySlot(e.Epochs, epochSlot), lists: map[string]*list{}, newest: map[string][]*Operation{}}
	for _, l := range listsOf(ops, nil, nil) {
		k.lists[l.key] = l
		k.newest[l.key] = slices.DeleteFunc(slices.Clone(l.seen), func(o *Operation) bool { return !o.appends() })
	}
	bySession := map[string][]*Operation{}
	used := map[string]bool{}
	for i := range ops {
		if o := &ops[i]; o.ofSession() {
			bySession[o.Session] = append(bySession[o.Session], o)
			used[o.Key] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(bySession)) {
		k.follow(&c, name, bySession[name])
	}
	k.Sessions, k.Lists = len(bySession), len(used)
	c.Looked = k.String()
	if c.Error == "" && k.Reads == 0 {
		c.Error = "no session was answered a read"
	}
	return c, k.SessionCounts
}

// SessionCounts is what there was to look at.
type SessionCounts struct {
	Sessions   int `json:"sessions"`
	Lists      int `json:"lists"`
	Appends    int `json:"appends"` // acknowledged
	Reads      int `json:"reads"`   // answered
	Local      int `json:"local"`   // of them, by the site that was asked
	Copies     int `json:"copies"`  // of them, by another site than the one where the list was appended to last
	Refused    int `json:"refused"` // reads that no site could answer
	Told       int `json:"told"`    // that a failover took something
	Late       int `json:"late"`    // sessions that lost something and came back when nobody was told any more
	TokenBytes int `json:"token_bytes"`
}

func (s SessionCounts) String() string {
	return fmt.Sprintf("%d sessions on %d lists: %d acknowledged appends, %d reads, %d of them by the site that was asked, %d from a copy; %d reads refused; "+
		"%d times told what was lost, %d times too late for that; tokens of at most %d bytes",
		s.Sessions, s.Lists, s.Appends, s.Reads, s.Local, s.Copies, s.Refused, s.Told, s.Late, s.TokenBytes)
}

func (s *SessionCounts) sum(o SessionCounts) {
	s.Sessions, s.Lists, s.TokenBytes = max(s.Sessions, o.Sessions), max(s.Lists, o.Lists), max(s.TokenBytes, o.TokenBytes)
	s.Appends, s.Reads, s.Local, s.Copies, s.Refused = s.Appends+o.Appends, s.Reads+o.Reads, s.Local+o.Local, s.Copies+o.Copies, s.Refused+o.Refused
	s.Told, s.Late = s.Told+o.Told, s.Late+o.Late
}

// sessions is what the check knows besides the one session that it follows, and what it counts.
type sessions struct {
	n      int
	losses []Loss
	epochs map[slot][]*EpochRow
	lists  map[string]*list
	newest map[string][]*Operation // acknowledged appends by list, in the order of their end

	SessionCounts
}

// expectation is what a session may expect of one bucket.
type expectation struct {
	last    map[string]*Operation // the newest answer, by list
	answers []*Operation          // all since the beginning, or since something was lost
}

func (k *sessions) follow(c *Check, name string, ops []*Operation) {
	slices.SortStableFunc(ops, func(a, b *Operation) int { return cmp.Compare(a.InvokedUS, b.InvokedUS) })
	expects := map[slot]*expectation{}
	var before *Operation
	for _, o := range ops {
		if before != nil && o.InvokedUS < before.ReturnedUS {
			c.Error = fmt.Sprintf("session %s had two requests at a time, %s and %s: nothing can be said of it", name, before.ID, o.ID)
			return
		}
		before = o
		s := slot{o.Keyspace, bucketOf(o.Key, k.n)}
		e := expects[s]
		if e == nil {
			e = &expectation{last: map[string]*Operation{}}
			expects[s] = e
		}
		if o.Lost != "" {
			k.Told++
			if why := k.unexplained(s, e, o); why != "" {
				c.found("session %s was told that it lost %s, and %s: %s", name, o.Lost, why, o)
			}
			*e = expectation{last: map[string]*Operation{}}
		}
		k.count(o)
		if o.Outcome == OK {
			if k.late(s, e, o) {
				k.Late++
				*e = expectation{last: map[string]*Operation{}}
			}
			k.checkAnswer(c, e, o)
			e.last[o.Key] = o
		}
		if o.Outcome == OK || o.TokenBytes > 0 {
			e.answers = append(e.answers, o)
		}
	}
}

func (k *sessions) count(o *Operation) {
	k.TokenBytes = max(k.TokenBytes, o.TokenBytes)
	switch {
	case o.Outcome != OK:
		if !o.appends() && o.Status >= 500 {
			k.Refused++
		}
		return
	case o.appends():
		k.Appends++
		return
	}
	k.Reads++
	if at, _, _ := strings.Cut(o.Target, "/"); topo.SiteID(at) == o.Site {
		k.Local++
	}
	appends := k.newest[o.Key]
	ended, _ := slices.BinarySearchFunc(appends, o.InvokedUS, func(a *Operation, us int64) int { return cmp.Compare(a.ReturnedUS, us) })
	if ended > 0 && appends[ended-1].Site != o.Site { // where it was appended last, the owner is, or was a moment ago
		k.Copies++
	}
}

func (k *sessions) checkAnswer(c *Check, e *expectation, o *Operation) {
	if o.TokenBytes == 0 {
		c.found("session %s: an answer without a token: %s", o.Session, o)
	}
	l := k.lists[o.Key]
	l.checkEntries(c, o)
	before := e.last[o.Key]
	if before == nil || startsWith(o.List, before.List) {
		return
	}
	what := "less than it saw, or something else"
	missing := slices.IndexFunc(before.List, func(value string) bool {
		by := l.appends[value]
		return by != nil && by.Session == o.Session && by.Outcome == OK && !slices.Contains(o.List, value)
	})
	switch {
	case o.appends():
		what = "its append does not follow what it wrote and saw"
	case missing >= 0:
		what = fmt.Sprintf("not what it wrote, %q is missing", before.List[missing])
	}
	c.found("session %s, list %s: %s: %d entries, which do not begin with the %d that %s was answered at %s by %s: %s",
		o.Session, o.Key, what, len(o.List), len(before.List), before.ID, clock(before.Returned()), before.Site, o)
}

// unexplained says why a session cannot have lost anything; "" if it can.
func (k *sessions) unexplained(s slot, e *expectation, o *Operation) string {
	if named, ok := slotOfEpoch(o.Lost); !ok || named != s {
		return fmt.Sprintf("it asked for bucket %s", s)
	}
	if len(e.answers) == 0 {
		return "it had nothing of that bucket"
	}
	why := "no failover took that bucket before"
	for l, to := range k.lossesOf(s) {
		could := func(a *Operation) bool {
			return a.Invoked().Before(to.open) || a.Site == l.Lost && l.during(a.Invoked())
		}
		switch {
		case l.Killed.After(o.Returned()):
		case slices.ContainsFunc(e.answers, could):
			return ""
		default:
			why = fmt.Sprintf("all that it had is from after %s had opened at %s", to.site, clock(to.open))
		}
	}
	return why
}

// late tells whether an answer has less than the session expects because of a failover that nobody is told of any more: the
// session was given nothing of the bucket between the opening and the settling, but by the lost site, which may not have known.
func (k *sessions) late(s slot, e *expectation, o *Operation) bool {
	if before := e.last[o.Key]; before == nil || startsWith(o.List, before.List) {
		return false
	}
	for l, to := range k.lossesOf(s) {
		meanwhile := func(a *Operation) bool {
			return a.Site != l.Lost && !a.Invoked().Before(to.open) && !a.Returned().After(l.Settled)
		}
		if !l.Settled.IsZero() && o.Returned().After(l.Settled) && e.answers[0].Invoked().Before(to.open) && !slices.ContainsFunc(e.answers, meanwhile) {
			return true
		}
	}
	return false
}

// lossesOf yields the losses of a bucket, each with the window of the site that took over.
func (k *sessions) lossesOf(s slot) iter.Seq2[*Loss, *window] {
	return func(yield func(*Loss, *window) bool) {
		ws := windows(k.epochs[s])
		for i := 1; i < len(ws); i++ {
			from, to := &ws[i-1], &ws[i]
			if l := lossBetween(k.losses, from, to); l != nil && from.site != to.site && !yield(l, to) {
				return
			}
		}
	}
}

// slotOfEpoch reads KEYSPACE/BUCKET/EPOCH.
func slotOfEpoch(text string) (slot, bool) {
	parts := strings.Split(text, "/")
	if len(parts) != 3 {
		return slot{}, false
	}
	bucket, err1 := strconv.ParseUint(parts[1], 10, 32)
	_, err2 := strconv.ParseUint(parts[2], 10, 64)
	return slot{topo.KeyspaceID(parts[0]), topo.BucketID(bucket)}, err1 == nil && err2 == nil
}
