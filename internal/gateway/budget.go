package gateway

import (
	"sync"
	"time"
)

// The retries that a gateway adds to a failing service's load: a fifth of the requests, and ten a second for the
// quiet hours.
const (
	budgetShare     = 0.2
	budgetPerSecond = 10
	budgetMax       = 100
)

// budget says whether one more retry is allowed, of requests that are for one service. Re-routing a request that was provably not executed is not a retry.
type budget struct {
	mu struct {
		sync.Mutex
		tokens float64
		at     time.Time
	}
}

func newBudget(now time.Time) *budget {
	b := &budget{}
	b.mu.tokens, b.mu.at = budgetPerSecond, now
	return b
}

// earn counts a request.
func (b *budget) earn() {
	b.mu.Lock()
	b.mu.tokens = min(b.mu.tokens+budgetShare, budgetMax)
	b.mu.Unlock()
}

// spend takes one retry, if there is one.
func (b *budget) spend(now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.tokens = min(b.mu.tokens+now.Sub(b.mu.at).Seconds()*budgetPerSecond, budgetMax)
	b.mu.at = now
	if b.mu.tokens < 1-1e-9 { // fifths do not add up to one exactly
		return false
	}
	b.mu.tokens--
	return true
}
