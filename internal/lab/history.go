package lab

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/atollhq/atoll/topo"
)

// Outcome is what a client knows about its operation.
type Outcome string

const (
	OK      Outcome = "ok"      // acknowledged
	Fail    Outcome = "fail"    // refused: it has not happened
	Unknown Outcome = "unknown" // sent, then no answer or one that does not tell
)

// Operation is one line of a client's history.
type Operation struct {
	ID         string          `json:"id"`
	Client     int             `json:"client"`
	Op         string          `json:"op"`
	Keyspace   topo.KeyspaceID `json:"keyspace"`
	Key        string          `json:"key"`
	Write      bool            `json:"write"`
	InvokedUS  int64           `json:"invoked_us"`
	ReturnedUS int64           `json:"returned_us"`
	Outcome    Outcome         `json:"outcome"`
	Status     int             `json:"status"`
	Target     string          `json:"target"`
	Gateway    string          `json:"gateway"`
	Site       topo.SiteID     `json:"site"`
	View       string          `json:"view"`
	Epoch      topo.Epoch      `json:"epoch"`
	HeldMS     int64           `json:"held_ms"`
	Reason     string          `json:"reason"`
	Error      string          `json:"error"`
	Order      *Receipt        `json:"order"`
	Value      string          `json:"value"` // of a register: written, or read; of a list: appended
	List       []string        `json:"list"`  // of a list: all of it, as it was answered

	Session    string `json:"session,omitempty"`     // that the request belonged to: it carried what the session had got last
	Lost       string `json:"lost,omitempty"`        // what a failover took from the session, as the answer said: KEYSPACE/BUCKET/EPOCH
	TokenBytes int    `json:"token_bytes,omitempty"` // of the token that came with the answer; 0: none
}

// The load generator's names for what it does to registers and lists.
const (
	registerWrite = "register-write"
	registerRead  = "register-read"
	listAppend    = "list-append"
	listRead      = "list-read"
	sessionAppend = "session-append"
	sessionRead   = "session-read"
)

// Register tells whether the operation is one of a register's.
func (o *Operation) Register() bool { return o.Op == registerWrite || o.Op == registerRead }

// ofList tells whether the operation is one of a list's, a session's too.
func (o *Operation) ofList() bool { return o.appends() || o.Op == listRead || o.Op == sessionRead }

// appends tells whether the operation appends to a list.
func (o *Operation) appends() bool { return o.Op == listAppend || o.Op == sessionAppend }

// ofSession tells whether the operation is a session's.
func (o *Operation) ofSession() bool { return o.Op == sessionAppend || o.Op == sessionRead }

// Receipt is what the shop answered about an order.
type Receipt struct {
	ID     string `json:"id"`
	Number int    `json:"number"`
	Seat   string `json:"seat"`
}

// Invoked and Returned are the ends of the operation on the clients' clock.
func (o *Operation) Invoked() time.Time { return time.UnixMicro(o.InvokedUS) }

// Returned is when the client had its answer or gave up.
func (o *Operation) Returned() time.Time { return time.UnixMicro(o.ReturnedUS) }

// Failed tells whether the client was let down: a 5xx, a broken connection, a time-out. A refusal by the shop (the
// seat is taken) is an answer.
func (o *Operation) Failed() bool { return o.Status >= 500 || o.Status == 0 }

func (o *Operation) overlaps(from, to time.Time) bool {
	return !o.Invoked().After(to) && !o.Returned().Before(from)
}

func (o *Operation) String() string {
	why := strings.TrimSpace(o.Reason + " " + strings.TrimSpace(o.Error))
	if why != "" {
		why = ": " + why
	}
	return fmt.Sprintf("%s %s of %s at %s (%s via %s, status %d%s)", o.Op, o.ID, o.Key, clock(o.Invoked()), o.Outcome, o.Target, o.Status, why)
}

// ParseOperation reads one line and refuses what no client could have written.
func ParseOperation(line []byte) (Operation, error) {
	var o Operation
	if err := json.Unmarshal(line, &o); err != nil {
		return o, err
	}
	switch {
	case o.ID == "":
		return o, errors.New("operation without an id")
	case o.Outcome != OK && o.Outcome != Fail && o.Outcome != Unknown:
		return o, fmt.Errorf("operation %s: outcome %q; want ok, fail or unknown", o.ID, o.Outcome)
	case o.InvokedUS <= 0 || o.ReturnedUS < o.InvokedUS:
		return o, fmt.Errorf("operation %s: returned at %d, invoked at %d", o.ID, o.ReturnedUS, o.InvokedUS)
	case o.Register() && (o.Key == "" || o.Op == registerWrite && (o.Value == "" || !o.Write)):
		return o, fmt.Errorf("operation %s: a register's without a key or without the value that it writes", o.ID)
	case o.ofList() && (o.Key == "" || o.appends() && (o.Value == "" || !o.Write)):
		return o, fmt.Errorf("operation %s: a list's without a key or without the value that it appends", o.ID)
	case o.ofSession() != (o.Session != ""):
		return o, fmt.Errorf("operation %s: a session's without its name, or another one's with a name", o.ID)
	}
	if o.View != "" {
		if _, err := parseView(o.View); err != nil {
			return o, fmt.Errorf("operation %s: %w", o.ID, err)
		}
	}
	return o, nil
}

// ReadHistory reads all operations of a history. A last line without its end is the load generator's last breath and
// is left out.
func ReadHistory(in io.Reader) ([]Operation, error) {
	var out []Operation
	r := bufio.NewReaderSize(in, 1<<20)
	for n := 1; ; n++ {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, fmt.Errorf("lab: history: %w", err)
		}
		if len(bytes.TrimSpace(line)) == 0 {
			continue
		}
		o, err := ParseOperation(line)
		if err != nil {
			return nil, fmt.Errorf("lab: history line %d: %w", n, err)
		}
		out = append(out, o)
	}
}

// version is a gateway's view: generation, then version.
type version struct{ generation, version uint64 }

func (v version) less(o version) bool {
	return v.generation < o.generation || v.generation == o.generation && v.version < o.version
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.generation, v.version) }

func parseView(text string) (version, error) {
	g, n, found := strings.Cut(text, ".")
	generation, err1 := strconv.ParseUint(g, 10, 64)
	number, err2 := strconv.ParseUint(n, 10, 64)
	if !found || err1 != nil || err2 != nil {
		return version{}, fmt.Errorf("view %q; want GENERATION.VERSION", text)
	}
	return version{generation, number}, nil
}

// Counts sums up a history or a part of it.
type Counts struct {
	OK      int `json:"ok"`              // answered
	Failed  int `json:"failed"`          // a 5xx, a broken connection, a time-out
	Unknown int `json:"unknown"`         // those of Failed that may have happened
	Refused int `json:"refused_by_shop"` // those of OK that were answered "no": the seat was taken
	Writes  int `json:"writes"`
	Held    int `json:"held"`
}

// Total counts every request once.
func (c Counts) Total() int { return c.OK + c.Failed }

func (c *Counts) add(o *Operation) {
	if o.Failed() {
		c.Failed++
	} else {
		c.OK++
	}
	if o.Outcome == Unknown {
		c.Unknown++
	}
	if o.Status >= 400 && o.Status < 500 {
		c.Refused++
	}
	if o.Write {
		c.Writes++
	}
	if o.HeldMS > 0 {
		c.Held++
	}
}

func (c *Counts) sum(o Counts) {
	c.OK, c.Failed, c.Unknown, c.Refused, c.Writes, c.Held = c.OK+o.OK, c.Failed+o.Failed, c.Unknown+o.Unknown, c.Refused+o.Refused, c.Writes+o.Writes, c.Held+o.Held
}

func count(ops []Operation) Counts {
	var c Counts
	for i := range ops {
		c.add(&ops[i])
	}
	return c
}

// historyTail follows a history that is being written, for the live display.
type historyTail struct {
	path   string
	offset int64
	rest   []byte
	bySite map[topo.SiteID]*Counts // by the site whose gateway was asked
}

// poll adds what was written since the last call. The file may not exist yet.
func (t *historyTail) poll() error {
	f, err := os.Open(t.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(t.offset, io.SeekStart); err != nil {
		return err
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	t.offset += int64(len(data))
	t.rest = append(t.rest, data...)
	for {
		line, rest, whole := bytes.Cut(t.rest, []byte("\n"))
		if !whole {
			return nil
		}
		t.rest = rest
		o, err := ParseOperation(line)
		if err != nil {
			continue // the checks read the history again and complain
		}
		site, _, _ := strings.Cut(o.Target, "/")
		c := t.bySite[topo.SiteID(site)]
		if c == nil {
			c = &Counts{}
			t.bySite[topo.SiteID(site)] = c
		}
		c.add(&o)
	}
}
