package load

import (
	"encoding/json"
	"fmt"
)

// Outcome is what a client knows of its operation.
type Outcome string

const (
	// OK: answered, also where the answer is that the seat is taken.
	OK Outcome = "ok"
	// Fail: it has not happened; or it was a read, and nothing could have happened.
	Fail Outcome = "fail"
	// Unknown: a write that was sent, then no answer, or one that does not tell.
	Unknown Outcome = "unknown"
)

// Order is an order as the shop answered it, on buying and on cancelling.
type Order struct {
	ID     string `json:"id"`
	Number int    `json:"number"`
	Seat   string `json:"seat"`
}

// Record is one line of the history. Times are microseconds since 1970: the moment at which the request was to start,
// and the moment at which its answer was there or it was given up.
type Record struct {
	ID         string  `json:"id"` // of a buy: the order's id, too
	Client     int     `json:"client"`
	Op         string  `json:"op"`
	Keyspace   string  `json:"keyspace"`
	Key        string  `json:"key"`
	Write      bool    `json:"write"`
	InvokedUS  int64   `json:"invoked_us"`
	ReturnedUS int64   `json:"returned_us"`
	Outcome    Outcome `json:"outcome"`
	Status     int     `json:"status"`  // 0: not answered
	Target     string  `json:"target"`  // the gateway that was asked
	Gateway    string  `json:"gateway"` // from here on as the answer said
	Site       string  `json:"site"`
	View       string  `json:"view"`
	Epoch      uint64  `json:"epoch"`
	HeldMS     int64   `json:"held_ms"`
	Reason     string  `json:"reason"`
	Error      string  `json:"error"`
	Order      *Order  `json:"order"`           // null: none was made or cancelled
	Value      string  `json:"value,omitempty"` // of a register: what was to be written, or what was read; of a list: what was to be appended

	List []string `json:"list,omitempty"` // of a list: all of it, as it was answered

	Session    string `json:"session,omitempty"`     // that the request belonged to
	Lost       string `json:"lost,omitempty"`        // what a failover took from the session, as the answer said: KEYSPACE/BUCKET/EPOCH
	TokenBytes int    `json:"token_bytes,omitempty"` // of the token that came with the answer; 0: none
	token      string
}

// writeHistory writes each line with one call, so that a killed run leaves whole lines. At the first error it calls
// stop and goes on receiving, or the requests that are under way could not end.
func (g *generator) writeHistory(stop func(error)) error {
	var failure error
	for rec := range g.history {
		if failure != nil {
			continue
		}
		line, err := json.Marshal(rec)
		if err == nil {
			_, err = g.History.Write(append(line, '\n'))
		}
		if err != nil {
			failure = fmt.Errorf("load: history: %w", err)
			stop(failure)
		}
	}
	return failure
}
