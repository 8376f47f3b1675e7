package gateway

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"
)

// keepBody is how much of a request's body is kept, give or take one read, so that it can be sent again.
const keepBody = 64 << 10

// sentOnce tells whether a request has a body that may be too large to be kept: it can be sent once only.
func sentOnce(r *http.Request) bool { return r.ContentLength < 0 || r.ContentLength > keepBody }

// Pace is how slow a client may be.
type Pace struct {
	Idle time.Duration // within a body, or with accepting a piece of an answer; default 60 s
	Rate int           // bytes of a body a second, over all the time that the gateway waited for it but for Idle; default 256
}

func (p Pace) withDefaults() Pace {
	return Pace{cmp.Or(p.Idle, 60*time.Second), cmp.Or(p.Rate, 256)}
}

// bodyDrain is how long the server may read the rest of a body after the answer, to keep the connection.
const bodyDrain = 5 * time.Second

var errRevoked = errors.New("this attempt to send the request is over")

// replay reads a client's body once and hands it to one attempt after another, as long as what was read fits into
// keepBody. Attempts may overlap: a transport may go on reading after its round trip is over.
type replay struct {
	src      io.Reader
	length   int64 // as declared, -1 if it was not
	pace     Pace
	deadline func(time.Time) error // sets the read deadline of the client's connection
	reading  sync.Mutex            // held while reading src, which may block
	mu       struct {
		sync.Mutex
		kept    []byte
		total   int64         // read so far
		since   time.Time     // when the read that is under way began
		waited  time.Duration // for the client, in all reads before
		over    bool          // more was read than is kept
		busy    bool          // src is being read
		ended   bool          // the request is over
		err     error         // of src, io.EOF at the end
		attempt int
	}
}

func newReplay(src io.Reader, length int64, pace Pace, deadline func(time.Time) error) *replay {
	return &replay{src: src, length: length, pace: pace, deadline: deadline}
}

// patienceLocked is how long the next piece of the body may take. A client that sends a byte now and then would keep a
// connection for ever if only its pauses were bounded.
func (p *replay) patienceLocked() time.Duration {
	earned := time.Duration(float64(p.mu.total) / float64(p.pace.Rate) * float64(time.Second))
	return min(p.pace.Idle, max(p.pace.Idle+earned-p.mu.waited, 0))
}

// next begins an attempt and ends the one before. ok is false if the body cannot be sent again.
func (p *replay) next() (body io.ReadCloser, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.over {
		return nil, false
	}
	p.mu.attempt++
	return &attemptBody{replay: p, attempt: p.mu.attempt}, true
}

// again ends the current attempt and tells whether there can be another one.
func (p *replay) again() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.attempt++
	return !p.mu.over
}

// failed returns the error of the client's side of the body, nil if there is none.
func (p *replay) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.err == io.EOF {
		return nil
	}
	return p.mu.err
}

// prefetch begins to read the body as far as it is kept. A request that waits with an unread body does not notice that
// its client went away: the server looks for that only after the body's end. It is an attempt like any other: the next
// one ends it.
func (p *replay) prefetch() {
	body, ok := p.next() // before the goroutine starts: a late one must not end the attempt that follows
	if !ok {
		return
	}
	go func() { _, _ = io.CopyN(io.Discard, body, keepBody) }() // ends with the body, the next attempt, or end
}

// whole tells whether the client has sent all of its body.
func (p *replay) whole() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.wholeLocked()
}

func (p *replay) wholeLocked() bool {
	return p.mu.err == io.EOF || p.length >= 0 && p.mu.total >= p.length
}

// all is the whole body, if it has come and is kept.
func (p *replay) all() (body []byte, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.over || !p.wholeLocked() {
		return nil, false
	}
	return slices.Clone(p.mu.kept), true
}

// end wakes a read that is still under way, and bounds the server's own reading of what is left: until both return,
// the server cannot end the request. It returns whether that breaks the client's connection.
func (p *replay) end() (breaks bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.attempt++
	p.mu.ended = true
	switch {
	case p.wholeLocked():
		return false
	case p.mu.busy:
		_ = p.deadline(time.Unix(1, 0))
		return true
	}
	_ = p.deadline(time.Now().Add(bodyDrain))
	return p.mu.err != nil
}

// begin claims a read of the source for an attempt; done says that the read is answered without it.
func (p *replay) begin(b *attemptBody, out []byte) (n int, done bool, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case b.attempt != p.mu.attempt:
		return 0, true, errRevoked
	case !p.mu.over && b.at < len(p.mu.kept):
		n := copy(out, p.mu.kept[b.at:])
		b.at += n
		return n, true, nil
	case p.mu.err != nil:
		return 0, true, p.mu.err
	case len(p.mu.kept) > keepBody:
		p.mu.over, p.mu.kept = true, nil
	}
	p.mu.busy, p.mu.since = true, time.Now()
	_ = p.deadline(p.mu.since.Add(p.patienceLocked()))
	return 0, false, nil
}

// finish takes what a read of the source brought.
func (p *replay) finish(b *attemptBody, got []byte, err error) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.busy = false
	p.mu.waited += time.Since(p.mu.since)
	if err != nil && !p.mu.ended {
		// Else the deadline would strike while the connection waits for the answer or for the next request.
		_ = p.deadline(time.Time{})
	}
	if !p.mu.over {
		p.mu.kept = append(p.mu.kept, got...)
	}
	p.mu.err = err
	p.mu.total += int64(len(got))
	if b.attempt != p.mu.attempt {
		return 0, errRevoked // the bytes are kept for the attempt that follows
	}
	b.at += len(got)
	return len(got), err
}

// attemptBody is the body of one attempt.
type attemptBody struct {
	replay  *replay
	attempt int
	at      int // how much of it was handed out
}

func (b *attemptBody) Read(out []byte) (int, error) {
	b.replay.reading.Lock()
	defer b.replay.reading.Unlock()
	if n, done, err := b.replay.begin(b, out); done {
		return n, err
	}
	n, err := b.replay.src.Read(out)
	return b.replay.finish(b, out[:n], err)
}

// Close ends nothing: the client's body is the server's to close.
func (b *attemptBody) Close() error { return nil }
