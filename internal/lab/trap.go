package lab

import (
	"bytes"
	"time"
)

// maxTrap is the longest that the bytes of a trap may be.
const maxTrap = 128

// Trap waits for certain bytes to pass and holds them, and what follows them on their connection, for a time. It holds
// once. What is held arrives even if its sender is dead by then, as from a long wire.
type Trap struct {
	Sprung chan struct{} // closed when the bytes came
	At     time.Time     // when that was; read it behind Sprung

	key   ruleKey
	match []byte
	hold  time.Duration
}

// HoldWhen sets a trap for bytes that travel in one direction to one kind of endpoint.
func (n *Network) HoldWhen(w Way, k Kind, match []byte, hold time.Duration) *Trap {
	if len(match) == 0 || len(match) > maxTrap {
		panic("BUG: a trap for no bytes or for too many")
	}
	t := &Trap{Sprung: make(chan struct{}), key: ruleKey{w, k}, match: match, hold: hold}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.traps[t] = struct{}{}
	return t
}

// Disarm takes a trap away that has not sprung; one that has holds on.
func (n *Network) Disarm(t *Trap) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.mu.traps, t)
}

// trapped tells for how long a trap holds a piece that was just read.
func (f *flow) trapped(data []byte) time.Duration {
	seen := append(f.tail, data...)
	f.tail = append(f.tail[:0:0], seen[max(0, len(seen)-maxTrap+1):]...)
	n := f.c.net
	n.mu.Lock()
	defer n.mu.Unlock()
	for t := range n.mu.traps {
		// Bytes that had passed before the trap was set are not found again: each ends in this piece.
		from := max(0, len(seen)-len(data)-len(t.match)+1)
		if t.key == (ruleKey{f.way, f.c.kind}) && bytes.Contains(seen[from:], t.match) {
			delete(n.mu.traps, t)
			t.At = time.Now()
			close(t.Sprung)
			return t.hold
		}
	}
	return 0
}
