package gateway

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

const (
	// seenBound is how long an answer waits for the word on what it showed. Without it the session counts as having seen
	// everything: only the owner can answer it then.
	seenBound = time.Second
	// awaitBound is how long a read waits for this site to have what its session has seen, before it goes to the owner.
	awaitBound = 100 * time.Millisecond
	// knownFor is how long it is believed without asking again that changes are applied: a database that is replaced by an
	// older one takes longer to come up.
	knownFor = time.Second
)

// readers asks the site's own agent where the database stands, for answers that carry a session, and whether it has what
// a session has seen. One question at a time is under way for all answers that have come meanwhile.
type readers struct {
	agents []*agentClient // of this site
	wg     sync.WaitGroup
	mu     struct {
		sync.Mutex
		turn    int      // index of the agent that answered last
		asking  bool     // a question is under way
		next    *reading // gathers answers until it is asked; nil: none waits
		applied map[topo.SiteID]applied
		asOf    map[topo.SiteID]time.Time // what each other site had committed by then is here
	}
}

// applied is how far a site's changes were applied here at a moment, as an agent said.
type applied struct {
	position uint64
	at       time.Time
}

// reading is one question about where the database stands.
type reading struct {
	buckets []api.Seen
	index   map[bucketKey]int
	done    chan struct{} // closed when answered
	ok      bool          // buckets are filled in
}

func newReaders(agents []*agentClient) *readers {
	r := &readers{}
	for _, a := range agents {
		if a.own {
			r.agents = append(r.agents, a)
		}
	}
	r.mu.applied = make(map[topo.SiteID]applied)
	return r
}

// close waits for questions that nobody waits for any more.
func (r *readers) close() { r.wg.Wait() }

// seen tells where the database stands now for a bucket: what it has shown before the call is covered.
func (r *readers) seen(ctx context.Context, ks topo.KeyspaceID, b topo.BucketID) (api.Seen, bool) {
	q, i := r.join(bucketKey{ks, b})
	timer := time.NewTimer(seenBound)
	defer timer.Stop()
	select {
	case <-q.done:
		if !q.ok || q.buckets[i].Epoch == 0 {
			return api.Seen{}, false
		}
		return q.buckets[i], true
	case <-timer.C:
	case <-ctx.Done():
	}
	return api.Seen{}, false
}

// join adds a bucket to the next question, which is asked as soon as the one before is answered.
func (r *readers) join(key bucketKey) (q *reading, index int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.next == nil {
		r.mu.next = &reading{index: make(map[bucketKey]int), done: make(chan struct{})}
	}
	q = r.mu.next
	i, there := q.index[key]
	if !there {
		i = len(q.buckets)
		q.index[key] = i
		q.buckets = append(q.buckets, api.Seen{Keyspace: key.keyspace, Bucket: key.bucket})
	}
	if !r.mu.asking {
		r.mu.asking = true
		r.wg.Go(r.askAll) // ends when no question waits; close joins it
	}
	return q, i
}

func (r *readers) askAll() {
	for {
		r.mu.Lock()
		q := r.mu.next
		r.mu.next = nil
		if q == nil {
			r.mu.asking = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), seenBound)
		var answer api.SeenAnswer
		err := r.ask(ctx, "/v1/view/seen", api.SeenRequest{Buckets: q.buckets}, &answer)
		cancel()
		if q.ok = err == nil && len(answer.Buckets) == len(q.buckets); q.ok {
			q.buckets = answer.Buckets
		}
		close(q.done)
	}
}

// await tells whether this site has what was seen, and waits a moment for it. current says that the bucket is at the epoch
// that was seen: then it is known from answers before. later is not 0 where it has it because the bucket is at a later
// epoch: but for what a failover cut off.
func (r *readers) await(ctx context.Context, seen api.Seen, current bool) (here bool, later topo.Epoch) {
	if seen.Position == api.Everything {
		return false, 0
	}
	if current && r.has(seen) {
		return true, 0
	}
	asked := time.Now()
	ctx, cancel := context.WithTimeout(ctx, awaitBound+seenBound)
	defer cancel()
	var answer api.AwaitAnswer
	if err := r.ask(ctx, "/v1/view/await", api.AwaitRequest{Seen: seen, BoundMS: awaitBound.Milliseconds()}, &answer); err != nil {
		return false, 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.mu.applied[seen.Site]; known.at.Before(asked) {
		r.mu.applied[seen.Site] = applied{answer.Applied, asked}
	}
	return answer.Here, answer.Epoch
}

func (r *readers) has(seen api.Seen) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := r.mu.applied[seen.Site]
	return known.position >= seen.Position && time.Since(known.at) < knownFor
}

// ask asks the site's active agent: the one that answered last, then the other one.
func (r *readers) ask(ctx context.Context, path string, in, out any) error {
	r.mu.Lock()
	turn := r.mu.turn
	r.mu.Unlock()
	err := errors.New("this site has no agent to ask")
	for i := range r.agents {
		n := (turn + i) % len(r.agents)
		err = r.agents[n].post(ctx, path, in, out)
		if err == nil {
			r.mu.Lock()
			r.mu.turn = n
			r.mu.Unlock()
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// told takes how old the agent says that copies are; the answer to a question that was sent at a moment.
func (r *readers) told(sent time.Time, staleMS map[topo.SiteID]int64) {
	asOf := make(map[topo.SiteID]time.Time, len(staleMS))
	for site, ms := range staleMS {
		if ms >= 0 && ms <= maxAge.Milliseconds() {
			asOf[site] = sent.Add(-time.Duration(ms) * time.Millisecond)
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.asOf = asOf
}

// maxAge bounds what an answer may claim; what is older is of any age.
const maxAge = 365 * 24 * time.Hour

// age is how old this site's copy of another site's changes is at most. Not ok: it may be of any age.
func (r *readers) age(of topo.SiteID, now time.Time) (time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, ok := r.mu.asOf[of]
	return now.Sub(at), ok
}
