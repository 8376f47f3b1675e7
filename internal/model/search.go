package model

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound a search, beside what its Config says.
type Limits struct {
	States   int // 0: no limit
	Depth    int // steps; 0: no limit
	Workers  int // 0: one per core
	Progress func(Result)
}

// Result is what a search found.
type Result struct {
	States      int // different ones
	Transitions int
	Depth       int  // steps of the longest shortest way
	Whole       bool // every state within the Config was visited
	Took        time.Duration
	Bad         string // the invariant that breaks, "" if none
	Way         []Step // the shortest way there
}

// Step is one step of a way, for people.
type Step struct {
	At   int // true time in milliseconds, behind the first state
	Text string
}

func (r Result) String() string {
	whole := "all of them"
	if !r.Whole {
		whole = "not all"
	}
	return fmt.Sprintf("%d states (%s), %d transitions, depth %d, %s", r.States, whole, r.Transitions, r.Depth, r.Took.Round(time.Millisecond))
}

// visits are the states that were reached, in order: their hashes, and where each was reached from. The way to one is found
// again by walking.
type visits struct {
	hash   []uint64
	parent []uint32
}

func (v *visits) add(hash uint64, parent uint32) {
	v.hash, v.parent = append(v.hash, hash), append(v.parent, parent)
}

// known is the set of hashes, in shards of open addressing: eight to sixteen bytes for each.
type known struct {
	shard [64]struct {
		sync.Mutex
		n    int
		slot []uint64 // 0 is free; a length that is a power of two
	}
}

func newKnown() *known {
	k := &known{}
	for i := range k.shard {
		k.shard[i].slot = make([]uint64, 1024)
	}
	return k
}

// add tells whether a hash is new.
func (k *known) add(h uint64) bool {
	s := &k.shard[h>>58]
	h = max(h, 1)
	s.Lock()
	defer s.Unlock()
	if !put(s.slot, h) {
		return false
	}
	if s.n++; s.n*4 > len(s.slot)*3 {
		grown := make([]uint64, 2*len(s.slot))
		for _, old := range s.slot {
			if old != 0 {
				put(grown, old)
			}
		}
		s.slot = grown
	}
	return true
}

func put(slot []uint64, h uint64) bool {
	mask := uint64(len(slot) - 1)
	for i := h & mask; ; i = (i + 1) & mask {
		switch slot[i] {
		case h:
			return false
		case 0:
			slot[i] = h
			return true
		}
	}
}

// chunk is how many states a worker takes at a time.
const chunk = 256

// level is one generation of states, with the index of each among all visits.
type level struct {
	worlds []world
	first  int // index of worlds[0] among the visits
}

// found is what a worker made of a piece of a level.
type found struct {
	worlds  []world
	parents []uint32
	bad     string
	badAt   uint32 // the parent
	badBy   event
	steps   int
}

// Search visits every state, those with the fewest steps first, so that the way to one that is wrong is the shortest.
// States are told apart by 64 bits of their hash: two of n states are taken for one with a chance of about n²/2⁶⁵.
func (m *Model) Search(limits Limits) Result {
	start := time.Now()
	if limits.Workers == 0 {
		limits.Workers = runtime.GOMAXPROCS(0)
	}
	seen := newKnown()
	seen.add(m.root.hash())
	all := &visits{}
	all.add(m.root.hash(), 0)
	now := level{worlds: []world{m.root}}
	r := Result{States: 1}
	for len(now.worlds) > 0 {
		if limits.Depth > 0 && r.Depth >= limits.Depth || limits.States > 0 && r.States >= limits.States {
			r.Took = time.Since(start)
			return r
		}
		next := level{first: len(all.hash)}
		pieces := m.expand(now, seen, limits.Workers)
		for n := range pieces {
			f := &pieces[n]
			r.Transitions += f.steps
			if f.bad != "" && (r.Bad == "" || f.bad < r.Bad) { // of one length: the same one in every run, as far as can be
				r.Bad = f.bad
				r.Way = m.way(all, f.badAt, f.badBy)
			}
			for i := range f.worlds {
				all.add(f.worlds[i].hash(), f.parents[i])
			}
			next.worlds = append(next.worlds, f.worlds...)
			f.worlds = nil // a level is kept once
		}
		r.States = len(all.hash)
		r.Took = time.Since(start)
		if r.Bad != "" {
			return r
		}
		if len(next.worlds) > 0 {
			r.Depth++
		}
		now = next
		if limits.Progress != nil {
			limits.Progress(r)
		}
	}
	r.Whole = true
	return r
}

// expand makes the next level.
func (m *Model) expand(l level, seen *known, workers int) []found {
	var taken atomic.Int64
	out := make([]found, (len(l.worlds)+chunk-1)/chunk)
	var wg sync.WaitGroup
	for range min(workers, len(out)) {
		wg.Go(func() {
			for {
				n := int(taken.Add(1)) - 1
				if n >= len(out) {
					return
				}
				m.piece(l, n, seen, &out[n])
			}
		})
	}
	wg.Wait()
	return out
}

func (m *Model) piece(l level, n int, seen *known, f *found) {
	from, to := n*chunk, min((n+1)*chunk, len(l.worlds))
	for i := from; i < to; i++ {
		w := &l.worlds[i]
		for _, e := range m.events(w) {
			next, bad := m.apply(w, e)
			f.steps++
			if bad != "" {
				if f.bad == "" || bad < f.bad {
					f.bad, f.badAt, f.badBy = bad, uint32(l.first+i), e
				}
				continue
			}
			if seen.add(next.hash()) {
				f.worlds = append(f.worlds, next)
				f.parents = append(f.parents, uint32(l.first+i))
			}
		}
	}
}

// way walks again from the first state to one, and by one more event.
func (m *Model) way(all *visits, at uint32, last event) []Step {
	var hashes []uint64
	for i := at; i != 0; i = all.parent[i] {
		hashes = append(hashes, all.hash[i])
	}
	w := m.root
	var out []Step
	take := func(e event) {
		next, _ := m.apply(&w, e)
		out = append(out, Step{int(next.now) - m.cfg.Grid, m.tell(&w, e, &next)})
		w = next
	}
	for i := len(hashes) - 1; i >= 0; i-- {
		ok := false
		for _, e := range m.events(&w) {
			if next, _ := m.apply(&w, e); next.hash() == hashes[i] {
				take(e)
				ok = true
				break
			}
		}
		if !ok {
			panic("BUG: a step that was taken cannot be taken again; something in it is not a function of the state")
		}
	}
	take(last)
	return out
}
