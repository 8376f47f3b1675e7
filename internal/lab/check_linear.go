package lab

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// linearBound is for one register; one that is not decided by then is an error, not a pass.
const linearBound = 20 * time.Second

// CheckK4: every register is linearizable, also across switches; and across a failover but for versions that are in
// the conflict log.
//
// A failover is part of the model, not a hole in the history. For each register of which the lost site logged versions,
// two kinds of steps that no client made are added to its operations, each with the interval in which it must have
// happened:
//
//   - takeover, between the cut and the opening: the register goes back to what it was before the first logged version.
//     A logged version can be written before the takeover only, the logged ones follow one another in the order of
//     the lost site's stream, and none that is not logged comes between or behind them: the tail is a suffix;
//   - for each decision "applied", between the entry's time and the settling: the register takes that version, in the
//     order of the stream, and only while no client has written it since the takeover. "kept" has no step.
//
// So the model stays deterministic and all choice lies in the order, which is what porcupine searches. Splitting the
// history at the failover was refused: requests are under way on both sides of any moment. The general form, a
// takeover after which any logged version may or may not survive, was refused too: it excuses a taker that had a
// version, showed it, and went back.
//
// It relies on registers' rows being written by register operations only, each with a value of its own.
func CheckK4(ops []Operation, conflicts []ConflictRow, losses []Loss) Check {
	c := Check{Name: "K4", Claim: "reads and writes of one key are linearizable; a failover drops logged versions only"}
	losses = slices.SortedFunc(slices.Values(losses), func(a, b Loss) int { return a.Opened.Compare(b.Opened) })
	for _, l := range losses {
		if l.Killed.IsZero() || l.Opened.Before(l.Killed) {
			c.Error = fmt.Sprintf("failover %s: the times of the kill or of the opening are not known", l.ID)
			return c
		}
	}
	registers := registersOf(ops, conflicts, losses)
	var writes, reads, unknown, dropped int
	for _, r := range registers {
		r.count(&writes, &reads, &unknown)
		dropped += len(r.lost)
		if r.contradictions(&c) {
			continue
		}
		history := r.history()
		switch porcupine.CheckOperationsTimeout(registerModel, history, linearBound) {
		case porcupine.Illegal:
			c.found("%s", r.explain(history))
		case porcupine.Unknown:
			c.Error = fmt.Sprintf("register %s: not decided within %v", r.key, linearBound)
		}
	}
	c.Looked = fmt.Sprintf("%d acknowledged writes and %d reads of %d registers, %d writes of unknown outcome, %d versions of lost sites",
		writes, reads, len(registers), unknown, dropped)
	if c.Error == "" && (writes == 0 || reads == 0) {
		c.Error = "no register was written and read"
	}
	return c
}

// FinalReads are what the sites' databases have in the registers and lists once all stands still: reads of every site,
// for K4 and for the check of lists.
func FinalReads(ops []Operation, sites []Shop, at time.Time) []Operation {
	keys := map[string]Operation{}
	for i := range ops {
		switch o := &ops[i]; {
		case o.Register():
			keys[o.Key] = Operation{Op: registerRead, Keyspace: o.Keyspace}
		case o.ofList():
			keys[o.Key] = Operation{Op: listRead, Keyspace: o.Keyspace}
		}
	}
	var out []Operation
	for _, s := range sites {
		for _, key := range slices.Sorted(maps.Keys(keys)) {
			o := keys[key]
			o.ID, o.Client, o.Key, o.Outcome, o.Status = "final-"+string(s.Site)+"-"+key, finalClient, key, OK, 200
			o.InvokedUS, o.ReturnedUS, o.Target, o.Site = at.UnixMicro(), at.UnixMicro(), string(s.Site)+"/db", s.Site
			if o.Op == registerRead {
				o.Value = s.Registers[key]
			} else {
				o.List = s.Lists[key]
			}
			out = append(out, o)
		}
	}
	return out
}

// finalClient is the client of final reads.
const finalClient = -1

// register is one key's operations and what the conflict logs say of it.
type register struct {
	key    string
	ops    []*Operation
	writes map[string]*Operation // by value
	twice  []*Operation          // whose value another one writes
	read   map[string]int64      // value → when it was first read and answered
	lost   map[string]lostVersion
	losses []lossOf
}

// lostVersion is a logged version: which of the register's losses, and its place in that tail.
type lostVersion struct{ loss, place int }

// lossOf is what one loss did to a register.
type lossOf struct {
	loss    *Loss
	applied []*ConflictRow // decisions that put a version back, in the order of the stream
}

func registersOf(ops []Operation, conflicts []ConflictRow, losses []Loss) []*register {
	byKey := map[string]*register{}
	for i := range ops {
		o := &ops[i]
		if !o.Register() {
			continue
		}
		r := byKey[o.Key]
		if r == nil {
			r = &register{key: o.Key, writes: map[string]*Operation{}, read: map[string]int64{}, lost: map[string]lostVersion{}}
			byKey[o.Key] = r
		}
		r.add(o)
	}
	logged := map[string][]*ConflictRow{}
	for i := range conflicts {
		row := &conflicts[i]
		value := column(row.Remote, registerColumn)
		if bareTable(row.Table) != registerTable || row.Handover == "" || value == "" || value == column(row.Local, registerColumn) {
			continue // the version changes something else
		}
		key := column(row.Remote, "id")
		logged[key] = append(logged[key], row)
	}
	for key, r := range byKey {
		slices.SortStableFunc(logged[key], func(a, b *ConflictRow) int { return cmp.Compare(a.Position, b.Position) })
		for i := range losses {
			r.lose(&losses[i], logged[key])
		}
	}
	return slices.SortedFunc(maps.Values(byKey), func(a, b *register) int { return strings.Compare(a.key, b.key) })
}

// A register is a column of the shop's customers.
const (
	registerTable  = "customers"
	registerColumn = "address"
)

func (r *register) add(o *Operation) {
	r.ops = append(r.ops, o)
	switch {
	case o.Op == registerWrite && r.writes[o.Value] != nil:
		r.twice = append(r.twice, o)
	case o.Op == registerWrite:
		r.writes[o.Value] = o
	case o.Outcome == OK:
		if first, seen := r.read[o.Value]; !seen || o.ReturnedUS < first {
			r.read[o.Value] = o.ReturnedUS
		}
	}
}

func (r *register) lose(l *Loss, logged []*ConflictRow) {
	of := lossOf{loss: l}
	place := 0
	for _, row := range logged {
		value := column(row.Remote, registerColumn)
		if row.Handover != l.ID {
			continue
		}
		if _, again := r.lost[value]; again {
			continue // the same version, carried along by a later change of the row
		}
		r.lost[value] = lostVersion{len(r.losses), place}
		place++
		if row.Decision == decisionApplied {
			of.applied = append(of.applied, row)
		}
	}
	if place > 0 {
		r.losses = append(r.losses, of)
	}
}

func (r *register) count(writes, reads, unknown *int) {
	for _, o := range r.ops {
		switch {
		case o.Outcome == Unknown:
			*unknown++
		case o.Outcome != OK:
		case o.Op == registerWrite:
			*writes++
		default:
			*reads++
		}
	}
}

// contradictions finds what needs no search.
func (r *register) contradictions(c *Check) bool {
	before := c.Violated
	for _, o := range r.twice {
		c.found("register %s: two operations write one value; this check needs one each: %s", r.key, o)
	}
	for _, value := range slices.Sorted(maps.Keys(r.lost)) {
		if o := r.writes[value]; o == nil {
			c.found("register %s: the conflict log has the version %q, which no client wrote", r.key, value)
		} else if o.Outcome == Fail {
			c.found("register %s: refused, and a version in the conflict log: %s", r.key, o)
		}
	}
	for _, value := range slices.Sorted(maps.Keys(r.read)) {
		if o := r.writes[value]; o == nil && value != "" {
			c.found("register %s: %q was read, which no client wrote", r.key, value)
		} else if o != nil && o.Outcome == Fail {
			c.found("register %s: refused, and read all the same: %s", r.key, o)
		}
	}
	return c.Violated > before
}

// history is what porcupine is given: the operations that may have happened, and the steps of the losses.
func (r *register) history() []porcupine.Operation {
	var out []porcupine.Operation
	add := func(in registerStep, call, ret int64, what fmt.Stringer) {
		out = append(out, porcupine.Operation{ClientId: len(out), Input: in, Call: call, Return: max(call, ret), Metadata: what})
	}
	for _, o := range r.ops {
		in := registerStep{kind: stepRead, value: o.Value}
		ret := o.ReturnedUS
		if o.Op == registerWrite {
			in.kind = stepWrite
			v, logged := r.lost[o.Value]
			if logged {
				in.kind, in.lostVersion = stepWriteLost, v
			}
			if o.Outcome == Unknown {
				ret = r.latest(o)
				if ret == math.MaxInt64 && !logged {
					continue // nobody saw it: as good as never done, since a write that nobody sees helps no other operation
				}
			}
		}
		if o.Outcome == Fail || o.Outcome == Unknown && o.Op == registerRead {
			continue
		}
		add(in, o.InvokedUS, ret, o)
	}
	for i, of := range r.losses {
		l := of.loss
		from := l.Killed
		if !l.Cut.IsZero() && l.Cut.Before(from) {
			from = l.Cut
		}
		add(registerStep{kind: stepTakeOver, lostVersion: lostVersion{loss: i}}, from.UnixMicro(), l.Opened.UnixMicro(), takeover{l})
		for n, row := range of.applied {
			until := int64(math.MaxInt64)
			if !l.Settled.IsZero() {
				until = l.Settled.UnixMicro()
			}
			add(registerStep{stepApply, column(row.Remote, registerColumn), lostVersion{i, n}}, row.At.UnixMicro(), until, application{row})
		}
	}
	return out
}

// latest bounds a write of unknown outcome from above: it took effect before anybody's read of it was answered, and
// before the takeover if it is a version of the lost site's. Values are unique, so this takes nothing away.
func (r *register) latest(o *Operation) int64 {
	end := int64(math.MaxInt64)
	if first, seen := r.read[o.Value]; seen && first >= o.InvokedUS {
		end = first
	}
	if v, logged := r.lost[o.Value]; logged {
		if opened := r.losses[v.loss].loss.Opened.UnixMicro(); opened >= o.InvokedUS {
			end = min(end, opened)
		}
	}
	return end
}

type takeover struct{ *Loss }

func (t takeover) String() string { return fmt.Sprintf("the takeover %s at %s", t.ID, clock(t.Opened)) }

type application struct{ *ConflictRow }

func (a application) String() string {
	return fmt.Sprintf("version %q of the lost site, applied by %s at %s", column(a.Remote, registerColumn), a.Database, clock(a.At))
}

// registerStep is one step of a register.
type registerStep struct {
	kind  stepKind
	value string
	lostVersion
}

type stepKind int

const (
	stepRead      stepKind = iota
	stepWrite              // by a client; no loss touches it
	stepWriteLost          // by a client, at a site that was lost before anybody else had it
	stepTakeOver
	stepApply
)

// registerState is a register between two steps. It is comparable.
type registerState struct {
	value   string
	base    string // what the taker will have, while tail > 0
	tail    int    // versions that are at the lost site only
	losses  int    // takeovers so far
	applied int    // versions that the last loss's decisions have put back
	written bool   // by a client, since the last takeover
}

var registerModel = porcupine.Model{
	Init: func() any { return registerState{} },
	Step: func(state, input, _ any) (bool, any) { return state.(registerState).next(input.(registerStep)) },
}

func (s registerState) next(in registerStep) (bool, registerState) {
	switch in.kind {
	case stepRead:
		return s.value == in.value, s
	case stepWrite:
		ok := s.tail == 0 // behind a version that only the lost site has, the next one is there only, too
		s.value, s.written = in.value, true
		return ok, s
	case stepWriteLost:
		ok := s.losses == in.loss && s.tail == in.place
		if s.tail == 0 {
			s.base = s.value
		}
		s.value, s.written = in.value, true
		s.tail++
		return ok, s
	case stepTakeOver:
		ok := s.losses == in.loss && s.tail > 0
		return ok, registerState{value: s.base, losses: s.losses + 1}
	case stepApply:
		ok := s.losses == in.loss+1 && s.applied == in.place && !s.written
		s.value = in.value
		s.applied++
		return ok, s
	}
	panic("BUG: unknown step of a register")
}

// explain names the first operation that the longest order found has no place for.
func (r *register) explain(history []porcupine.Operation) string {
	_, info := porcupine.CheckOperationsVerbose(registerModel, history, linearBound)
	var longest []porcupine.Operation
	for _, p := range info.PartialLinearizationsOperations()[0] {
		if len(p) > len(longest) {
			longest = p
		}
	}
	placed := map[int]bool{}
	state := registerState{}
	for _, o := range longest {
		placed[o.ClientId] = true
		_, state = state.next(o.Input.(registerStep))
	}
	var first *porcupine.Operation
	for i := range history {
		if o := &history[i]; !placed[o.ClientId] && (first == nil || o.Return < first.Return) {
			first = o
		}
	}
	if first == nil {
		return fmt.Sprintf("register %s: its %d operations fit in no order", r.key, len(history))
	}
	what := ""
	if in := first.Input.(registerStep); in.kind == stepRead {
		what = fmt.Sprintf(" (it read %q)", in.value)
	}
	return fmt.Sprintf("register %s: fits in no order, at best with %q before it%s: %s", r.key, state.value, what, first.Metadata)
}
