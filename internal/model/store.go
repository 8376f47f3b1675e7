package model

import (
	"fmt"
	"strings"
	"unsafe"

	"github.com/atollhq/atoll/internal/handover"
	"github.com/atollhq/atoll/topo"
)

// The store is linearizable and does each transaction whole: what it is asked is done between two steps of anybody else.

// request is one call of an agent to the store or to a database, as it travels: it may be carried out late, when nobody
// waits for it any more, or never.
type request struct {
	id   uint32 // the asking machine's state, or what it writes
	doc  uint16 // the ownership that it is made of
	val  uint16
	lead uint16
	ep   [buckets]uint8
	kind kind
	by   uint8 // the agent
	at   uint8 // the site whose lease or database it is about
	ho   uint8
	mask uint8 // buckets
	rev  uint8 // compared
	void uint8 // openings: the restrictions that they know of; closings: the attempt
	verb uint8
}

func (q *request) bytes() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(q)), unsafe.Sizeof(*q))
}

type kind uint8

const (
	none kind = iota
	renewLease
	take
	giveUp
	decide // a claim, a commit or an abort
	save
	writeMoment
	recordCuts
	openRows
	openBits
	halt
	unhalt
	beginClose
	finishClose
	abandonClose
)

func (k kind) String() string {
	return [...]string{"nothing", "renewal", "takeover", "refusal of its own failover", "transaction of the switch", "record", "lease moment", "cuts",
		"opening (rows)", "opening (bits)", "halt", "end of the halt", "closing (bits)", "closing (marker)", "reopening"}[k]
}

// toStore tells which of the two a request goes to.
func (k kind) toStore() bool { return k >= renewLease && k <= save }

// answer is what became of a request.
type answer struct {
	ok   bool
	doc  uint16
	rev  uint8
	pos  uint8
	mask uint8
	void uint8  // the attempt at closing
	text string // why not
}

// place is what a document says of one bucket.
type place struct {
	owner, epoch int
	moving       uint8 // the handover
	target       int
	cut          cut
	cutFrom      int
}

// document is an ownership document with what the model asks of it.
type document struct {
	topo.Ownership
	at        [buckets]place
	owns      [2]int // open buckets per site
	moving    [2]int
	unsettled [2]uint8 // handover
	moves     uint16   // what it says is moving, for keepers
}

func (m *Model) document(id uint16) document {
	return m.docInfo.get(id, func() document {
		o := m.docs.get(uint32(id))
		d := document{Ownership: o}
		for b := range buckets {
			r, _ := o.At(keyspace, topo.BucketID(b))
			p := place{owner: siteOf(r.Owner), epoch: int(r.Epoch), moving: m.number(r.Handover), target: siteOf(r.Target)}
			if r.Cut != nil {
				p.cut = cut{uint8(r.Cut.Epoch), uint8(r.Cut.Position), m.number(r.Cut.Handover)}
				p.cutFrom = siteOf(r.Cut.From)
			}
			d.at[b] = p
			if r.State == topo.Open {
				d.owns[p.owner]++
			} else {
				d.moving[p.owner]++
			}
		}
		for s := range d.unsettled {
			d.unsettled[s] = m.number(o.Unsettled(siteID(s)))
		}
		d.moves = m.moveSets.small(movesOf(o))
		return d
	})
}

// name and number are a handover's: switches are s1, s2, …, failovers go on from there as f3, f4, …
func (m *Model) name(n uint8) topo.HandoverID {
	switch {
	case n == 0:
		return ""
	case int(n) <= len(m.cfg.Switches):
		return topo.HandoverID(fmt.Sprintf("s%d", n))
	default:
		return topo.HandoverID(fmt.Sprintf("f%d", n))
	}
}

// number is 32 and the version for openings that belong to no handover.
func (m *Model) number(id topo.HandoverID) uint8 {
	var n uint8
	switch {
	case id == "":
	case strings.HasPrefix(string(id), "open-1."):
		fmt.Sscanf(string(id), "open-1.%d", &n)
		n += 32
	default:
		fmt.Sscanf(string(id)[1:], "%d", &n)
	}
	return n
}

// docOf numbers a document.
func (m *Model) docOf(o topo.Ownership) uint16 { return m.docs.small(o) }

// move is a step of a switch on the document; 0: the document does not allow it.
func (m *Model) move(doc uint16, verb handover.Verb, ho uint8, mv handover.Move) uint16 {
	type args struct {
		doc  uint16
		verb handover.Verb
		ho   uint8
	}
	return m.moved.get(args{doc, verb, ho}, func() uint16 {
		o := m.document(doc).Ownership
		next, err := o.CommitMove(mv.Keyspace, mv.Buckets, m.name(ho))
		switch verb {
		case handover.Claim:
			next, err = o.StartMove(mv.Keyspace, mv.Buckets, m.name(ho), mv.To)
		case handover.Abort:
			next, err = o.AbortMove(mv.Keyspace, mv.Buckets, m.name(ho))
		}
		if err != nil {
			return 0
		}
		if verb == handover.Abort && m.cfg.Plant == EpochKept {
			next = keepEpochs(o, next)
		}
		return m.docOf(next)
	})
}

// keepEpochs is a planted bug: an abort that leaves the epochs as they were.
func keepEpochs(o, next topo.Ownership) topo.Ownership {
	p := next.Keyspaces[keyspace]
	p.Ranges = nil
	for b := range topo.BucketID(buckets) {
		r, _ := next.At(keyspace, b)
		was, _ := o.At(keyspace, b)
		r.First, r.Last, r.Epoch = b, b, was.Epoch
		p.Ranges = append(p.Ranges, r)
	}
	out := topo.NewOwnership(map[topo.KeyspaceID]topo.Placement{keyspace: p})
	out.Version = next.Version
	return out
}

// takeover is the document of a failover; 0: there is nothing to take.
func (m *Model) takeover(doc uint16, by int, ho, pos uint8) uint16 {
	type args struct {
		doc     uint16
		by      int
		ho, pos uint8
	}
	return m.taken.get(args{doc, by, ho, pos}, func() uint16 {
		next, _, err := m.document(doc).TakeOver(siteID(other(by)), siteID(by), m.name(ho), uint64(pos))
		if err != nil {
			return 0
		}
		return m.docOf(next)
	})
}

// setDoc is the store's document becoming another one.
func (s *step) setDoc(doc uint16) {
	s.checkDocument(doc)
	s.w.doc = doc
}

// setRecord is the store's record of a handover becoming another one.
func (s *step) setRecord(ho uint8, rec uint32) {
	s.w.rec[ho-1] = rec
	s.w.recRev[ho-1]++
}

// atStore carries out what a request asks of the store.
func (s *step) atStore(q request) answer {
	w := &s.w
	switch q.kind {
	case renewLease:
		p := &w.seat[q.at]
		if p.rev != q.rev {
			return answer{text: "conflict"}
		}
		*p = seat{rev: p.rev + 1, seq: p.seq + 1, holder: uint8(q.val)}
		return answer{ok: true, rev: p.rev, doc: w.doc}
	case take:
		return s.takeInStore(q)
	case giveUp:
		if w.rec[q.ho-1] != 0 {
			return answer{text: "conflict"}
		}
		s.setRecord(q.ho, q.id)
		return answer{ok: true}
	case decide, save:
		if w.recRev[q.ho-1] != q.rev || q.kind == decide && w.doc != q.doc {
			return answer{text: "conflict"}
		}
		if q.kind == decide {
			s.setDoc(q.val)
		}
		s.setRecord(q.ho, q.id)
		return answer{ok: true, rev: w.recRev[q.ho-1], doc: w.doc}
	}
	panic("BUG: no store does a " + q.kind.String())
}

// takeInStore is the takeover: one transaction that compares the ownership, the lost site's lease and the record.
func (s *step) takeInStore(q request) answer {
	w, p := &s.w, &s.w.seat[q.at]
	pos := s.m.positionOf(q.id)
	doc := q.doc
	if s.m.cfg.Plant == TakeoverUnconditional {
		doc = w.doc
	} else if w.doc != q.doc || p.rev != q.rev || w.rec[q.ho-1] != 0 {
		return answer{text: "conflict"}
	}
	next := s.m.takeover(doc, int(q.by), q.ho, pos)
	if next == 0 {
		return answer{text: "refused"}
	}
	for b := range buckets {
		if was, is := s.m.document(w.doc).at[b], s.m.document(next).at[b]; was.owner != is.owner {
			w.mon.cut[b] = is.cut
		}
	}
	s.setDoc(next)
	if s.m.cfg.Plant != TakeoverUnconditional {
		*p = seat{rev: p.rev + 1, seq: p.seq + 1, holder: p.holder, by: q.ho}
	}
	s.setRecord(q.ho, s.m.landed(q.id, next, int(w.now)))
	return answer{ok: true, doc: next}
}
