package sdk

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// Headers of sessions, see docs/adr/014.
const (
	HeaderSession = "Atoll-Session"
	// HeaderSessionLost names a bucket of which a failover lost something that the session had seen: KEYSPACE/BUCKET/EPOCH.
	// It stands in the answer, which the caller has.
	HeaderSessionLost = "Atoll-Session-Lost"
)

// Session is what one caller has written and seen, as a token that gateways make and read: a reader that brings it along is
// answered by a site that has that. It is safe for concurrent use; the zero value is a new session.
//
// Make one per user of yours (not one per process: a session remembers eight buckets), put it into the context of their
// requests with [WithSession], and keep its token with theirs if it is to outlive this process.
type Session struct {
	mu struct {
		sync.Mutex
		token string
	}
}

// NewSession goes on with a token that [Session.Token] gave; "" begins anew.
func NewSession(token string) *Session {
	s := &Session{}
	s.mu.token = token
	return s
}

// Token is the session as text of at most 1024 bytes, fit for a header or a cookie; "" before the first answer.
func (s *Session) Token() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.token
}

// Outgoing is the value of [HeaderSession] in a request of this session: its token, or the word that asks for one.
func (s *Session) Outgoing() string { return cmp.Or(s.Token(), api.SessionNew) }

type sessionKey struct{}

// WithSession puts a session into the context of requests.
func WithSession(ctx context.Context, s *Session) context.Context {
	return context.WithValue(ctx, sessionKey{}, s)
}

// SessionOf is the session of a context, nil without one.
func SessionOf(ctx context.Context) *Session {
	s, _ := ctx.Value(sessionKey{}).(*Session)
	return s
}

// Learn takes the token of an answer, and what [HeaderSessionLost] says in it; "" says nothing. Answers that overlap leave
// the furthest of both. [Transport] calls it for each answer.
func (s *Session) Learn(token, lost string) {
	if token == "" && lost == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.token = mergeTokens(token, forget(s.mu.token, lost))
}

// mergeTokens has of each bucket the place that lies further, the newest answer's buckets first. A token of another format is for
// gateways to read: it is kept where there is no other.
func mergeTokens(newest, before string) string {
	now, err := api.ParseSession(newest)
	merged, unknown := api.ParseSession(before)
	switch {
	case newest == "" || err != nil && unknown == nil:
		return cmp.Or(before, newest)
	case err != nil || unknown != nil:
		return newest
	}
	for _, seen := range slices.Backward(now.Seen) {
		merged = merged.With(seen)
	}
	return merged.String()
}

// forget takes a bucket out of a token as far as a failover lost it.
func forget(token, lost string) string {
	f := strings.Split(lost, "/")
	s, err := api.ParseSession(token)
	if len(f) != 3 || err != nil {
		return token
	}
	bucket, err1 := strconv.ParseUint(f[1], 10, 32)
	epoch, err2 := strconv.ParseUint(f[2], 10, 63)
	if err1 != nil || err2 != nil {
		return token
	}
	seen, ok := s.Of(topo.KeyspaceID(f[0]), topo.BucketID(bucket))
	if !ok || seen.Epoch > topo.Epoch(epoch) {
		return token
	}
	return s.Without(seen.Keyspace, seen.Bucket).String()
}
