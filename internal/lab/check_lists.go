package lab

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// CheckLists: lists are appended to, and nothing else. All that was ever answered of a list is a beginning of what it is in
// the end, an answer is no shorter than one that was given before it was asked for, and every acknowledged entry is in
// the list once.
//
// A failover may drop entries, but only ones of versions in its conflict log: what the lost site had appended and nobody
// else had. Who saw those saw the beginning of a logged version, and asked before the taker opened. A version that was
// applied after the site's return was gone meanwhile, so that answers may have been shorter from the kill to the settling.
//
// What a session reads may come from a site's copy, and so be shorter; CheckK5 says what it may expect. A lost site's copy, and
// that of one that did not hear of the takeover, may show a logged version until that is settled.
//
// ops must have final reads. It relies on lists' rows being written by appends only, each with a value of its own.
func CheckLists(ops []Operation, conflicts []ConflictRow, losses []Loss) Check {
	c := Check{Name: "lists", Claim: "nothing appended is lost, doubled or out of order; a failover drops logged entries only"}
	lists := listsOf(ops, conflicts, losses)
	appended, answers, dropped := 0, 0, 0
	for _, l := range lists {
		l.check(&c)
		answers += len(l.seen)
		for _, o := range l.appends {
			if o.Outcome == OK {
				appended++
			}
		}
		for _, of := range l.losses {
			dropped += len(of.version) - l.common(of.version)
		}
	}
	c.Looked = fmt.Sprintf("%d acknowledged entries and %d answers of %d lists, %d entries of lost sites that did not stand", appended, answers, len(lists), dropped)
	if appended == 0 || answers == appended {
		c.Error = "no list was appended to and read"
	}
	return c
}

// list is one key's operations and what the conflict logs say of it.
type list struct {
	key     string
	appends map[string]*Operation // by value
	twice   []*Operation          // whose value another one appends
	seen    []*Operation          // answers, in the order of their end
	final   []string              // the longest of the final reads
	losses  []listLoss
}

// listLoss is what one loss did to a list: the longest version that the lost site had alone, decided in whatever way.
type listLoss struct {
	loss    *Loss
	version []string
}

func listsOf(ops []Operation, conflicts []ConflictRow, losses []Loss) []*list {
	byKey := map[string]*list{}
	for i := range ops {
		o := &ops[i]
		if !o.ofList() {
			continue
		}
		l := byKey[o.Key]
		if l == nil {
			l = &list{key: o.Key, appends: map[string]*Operation{}}
			byKey[o.Key] = l
		}
		l.add(o)
	}
	for i := range conflicts {
		r := &conflicts[i]
		l := byKey[column(r.Remote, "id")]
		version := arrayOf(column(r.Remote, listColumn))
		if l == nil || bareTable(r.Table) != registerTable || r.Handover == "" || len(version) == 0 {
			continue
		}
		for j := range losses {
			if losses[j].ID == r.Handover {
				l.lose(&losses[j], version)
			}
		}
	}
	for _, l := range byKey {
		slices.SortStableFunc(l.seen, func(a, b *Operation) int { return cmp.Compare(a.ReturnedUS, b.ReturnedUS) })
	}
	return slices.SortedFunc(maps.Values(byKey), func(a, b *list) int { return strings.Compare(a.key, b.key) })
}

// A list is a column of the shop's customers.
const listColumn = "wishes"

// arrayOf reads the text form of an array of words without commas, quotes or spaces, as all values of lists are.
func arrayOf(text string) []string {
	text = strings.TrimSuffix(strings.TrimPrefix(text, "{"), "}")
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

func (l *list) add(o *Operation) {
	if o.appends() {
		if l.appends[o.Value] != nil {
			l.twice = append(l.twice, o)
		} else {
			l.appends[o.Value] = o
		}
	}
	if o.Outcome != OK {
		return
	}
	l.seen = append(l.seen, o)
	if o.Client == finalClient && len(o.List) > len(l.final) {
		l.final = o.List
	}
}

func (l *list) lose(loss *Loss, version []string) {
	for i := range l.losses {
		if of := &l.losses[i]; of.loss == loss {
			if len(version) > len(of.version) {
				of.version = version
			}
			return
		}
	}
	l.losses = append(l.losses, listLoss{loss, version})
}

// common is how many first entries of a version stand in the end.
func (l *list) common(version []string) int {
	n := 0
	for n < len(version) && n < len(l.final) && version[n] == l.final[n] {
		n++
	}
	return n
}

func (l *list) check(c *Check) {
	for _, o := range l.twice {
		c.found("list %s: two operations append one value; this check needs one each: %s", l.key, o)
	}
	for _, o := range l.seen {
		l.checkEntries(c, o)
		if !startsWith(l.final, o.List) && l.lossOf(o) == nil {
			c.found("list %s: an answer of %d entries is no beginning of the %d that it has in the end, they differ from entry %d on, and no conflict log says why: %s",
				l.key, len(o.List), len(l.final), l.common(o.List)+1, o)
		}
	}
	for _, value := range slices.Sorted(maps.Keys(l.appends)) {
		o := l.appends[value]
		switch in := slices.Contains(l.final, value); {
		case o.Outcome == OK && !in && l.droppedBy(o) == nil:
			c.found("list %s: an entry was acknowledged and is missing: %s", l.key, o)
		case o.Outcome == Fail && in:
			c.found("list %s: refused, and in the list all the same: %s", l.key, o)
		}
	}
	l.checkShorter(c)
}

// checkEntries: an answer has each entry once, none that nobody appended, and what was appended with it last.
func (l *list) checkEntries(c *Check, o *Operation) {
	once := map[string]bool{}
	for _, value := range o.List {
		by := l.appends[value]
		switch {
		case by == nil:
			c.found("list %s: it has %q, which no client appended: %s", l.key, value, o)
		case once[value]:
			c.found("list %s: it has %q twice: %s", l.key, value, o)
		case by.InvokedUS > o.ReturnedUS:
			c.found("list %s: it has %q before that was sent: %s", l.key, value, o)
		}
		once[value] = true
	}
	if o.appends() && (len(o.List) == 0 || o.List[len(o.List)-1] != o.Value) {
		c.found("list %s: the answer to an append does not end with its entry: %s", l.key, o)
	}
}

// lossOf finds the loss that explains an answer with entries that do not stand.
func (l *list) lossOf(o *Operation) *Loss {
	for _, of := range l.losses {
		fromCopy := o.Op == sessionRead && o.Site != of.loss.Taker
		if startsWith(of.version, o.List) && (fromCopy || o.Invoked().Before(of.loss.Opened)) {
			return of.loss
		}
	}
	return nil
}

func (l *list) droppedBy(o *Operation) *Loss {
	for _, of := range l.losses {
		if slices.Contains(of.version, o.Value) && o.Invoked().Before(of.loss.Opened) {
			return of.loss
		}
	}
	return nil
}

// checkShorter: what had been answered is not gone from later answers of the owner. Entries that do not stand in the end are
// held to it among themselves.
func (l *list) checkShorter(c *Check) {
	ended := slices.DeleteFunc(slices.Clone(l.seen), func(o *Operation) bool { return o.Op == sessionRead })
	asked := slices.SortedFunc(slices.Values(ended), func(a, b *Operation) int { return cmp.Compare(a.InvokedUS, b.InvokedUS) })
	longest := map[*Loss]*Operation{} // among the answers that had ended; nil: those that stand
	for _, o := range asked {
		for ; len(ended) > 0 && ended[0].ReturnedUS < o.InvokedUS; ended = ended[1:] {
			if g := l.groupOf(ended[0]); longest[g] == nil || len(longest[g].List) < len(ended[0].List) {
				longest[g] = ended[0]
			}
		}
		before := longest[l.groupOf(o)]
		if before != nil && len(before.List) > len(o.List) && !l.goneMeanwhile(before.List[len(o.List):], o) {
			c.found("list %s: it has %d entries after %d had been answered (%s): %s", l.key, len(o.List), len(before.List), before, o)
		}
	}
}

// groupOf is nil for an answer that is a beginning of what stands.
func (l *list) groupOf(o *Operation) *Loss {
	if startsWith(l.final, o.List) {
		return nil
	}
	return l.lossOf(o)
}

// goneMeanwhile tells whether entries were the lost site's own, and the answer fell into the time before they were applied.
func (l *list) goneMeanwhile(entries []string, o *Operation) bool {
	return slices.ContainsFunc(l.losses, func(of listLoss) bool {
		all := !slices.ContainsFunc(entries, func(e string) bool { return !slices.Contains(of.version, e) })
		return all && of.loss.overlaps(o)
	})
}

// overlaps tells whether an operation fell, at least in part, into the time from the kill to the settling.
func (l *Loss) overlaps(o *Operation) bool {
	end := l.Settled
	if end.IsZero() {
		end = time.UnixMicro(1<<62 - 1)
	}
	return !o.Returned().Before(l.Killed) && !o.Invoked().After(end)
}

func startsWith(list, beginning []string) bool {
	return len(beginning) <= len(list) && slices.Equal(list[:len(beginning)], beginning)
}
