package shop

import (
	"sync"
	"time"

	"github.com/google/uuid"
)

const (
	refusedFirst = time.Second
	refusedMost  = 8 * time.Second
)

// elsewhere remembers which rows of the outbox the database refused because another site has the customer. They are
// tried again at growing intervals: a site that is behind still sees as open what was delivered long ago, and would
// only fall back further by trying all of it every second.
type elsewhere struct {
	mu   sync.Mutex
	rows map[uuid.UUID]deferral
}

type deferral struct{ since, again time.Time }

// refused notes that a row was refused just now.
func (e *elsewhere) refused(row uuid.UUID, now time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r, known := e.rows[row]
	if !known {
		r.since = now
	}
	if e.rows == nil {
		e.rows = map[uuid.UUID]deferral{}
	}
	r.again = now.Add(min(max(now.Sub(r.since), refusedFirst), refusedMost))
	e.rows[row] = r
}

// due leaves out the rows that are not to be tried yet, and forgets those that are long past their turn: they were
// delivered, here or there.
func (e *elsewhere) due(jobs []job, now time.Time) []job {
	e.mu.Lock()
	defer e.mu.Unlock()
	for row, r := range e.rows {
		if now.Sub(r.again) > 2*refusedMost {
			delete(e.rows, row)
		}
	}
	var out []job
	for _, j := range jobs {
		if r, known := e.rows[j.ID]; !known || !now.Before(r.again) {
			out = append(out, j)
		}
	}
	return out
}
