package load

import (
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"sync"

	"github.com/google/uuid"

	"github.com/atollhq/atoll/examples/tickets/seed"
)

// Mix says what is asked for, by whom. All are shares from 0 to 1.
type Mix struct {
	Writes       float64 // of all requests; three of four buy, the others cancel
	Hot          float64 // of all requests: from the hot customers, evenly; the others from all customers, evenly
	HotCustomers int
	Slow         float64 // of all requests: POST /orders/bulk-note, where the shop serves it
	SlowMillis   int     // how long its transaction stays open
}

// operation is one request, decided before it is sent.
type operation struct {
	id       string
	name     string
	method   string
	path     string
	body     []byte
	keyspace string
	key      string // the customer, "" where none is meant
	write    bool
	value    string // of a register's write
	session  string // name of the session; "": none
	token    string // what the session had got last, "" at its beginning
}

// choose draws the next operation.
func (g *generator) choose() operation {
	customer := g.customer()
	op := operation{id: newID(), keyspace: "users", key: customer, method: http.MethodGet}
	if x := g.random.Float64(); x < g.Mix.Slow {
		op.name, op.method, op.path, op.write = "bulk-note", http.MethodPost, "/orders/bulk-note", true
		op.body = mustJSON(map[string]any{"note": op.id, "ms": g.Mix.SlowMillis})
		return op
	}
	if g.random.Float64() < g.Mix.Writes {
		op.method, op.write = http.MethodPost, true
		if g.random.IntN(4) == 0 {
			if b, ok := g.orders.take(g.random); ok {
				op.name, op.key, op.path = "cancel", b.customer, "/orders/"+b.order+"/cancel"
				op.body = []byte("{}")
				return op
			}
		}
		op.name, op.path = "buy", "/buy"
		op.body = mustJSON(map[string]string{"event": g.event()})
		return op
	}
	switch g.random.IntN(3) {
	case 0:
		op.name, op.path = "orders", "/orders"
	case 1:
		op.name, op.path = "me", "/me"
	default:
		op.name, op.path, op.keyspace, op.key = "seats", "/events/"+g.event()+"/seats?limit=20", "catalog", ""
	}
	return op
}

func (g *generator) customer() string {
	n := g.Shape.Customers - g.setApart()
	if g.random.Float64() < g.Mix.Hot {
		n = min(n, g.Mix.HotCustomers)
	}
	return seed.Customer(g.Shape.Seed, g.random.IntN(n)).String()
}

func (g *generator) event() string {
	return seed.Event(g.Shape.Seed, g.random.IntN(g.Shape.Events)).String()
}

// newID is a random UUID that no other run has: drawn from the system, not from the seed, because it becomes the
// order's id, and two runs against one shop must not make the same orders.
func newID() string { return uuid.NewString() }

func mustJSON(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		panic("BUG: request does not marshal: " + err.Error())
	}
	return data
}

// bought is an order that may be cancelled.
type bought struct{ customer, order string }

// orderBook remembers orders to cancel; the oldest are forgotten.
type orderBook struct {
	mu struct {
		sync.Mutex
		list []bought
	}
}

const rememberOrders = 4096

func (o *orderBook) add(b bought) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.mu.list = append(o.mu.list, b)
	if len(o.mu.list) >= 2*rememberOrders {
		o.mu.list = append([]bought(nil), o.mu.list[rememberOrders:]...)
	}
}

func (o *orderBook) take(random *rand.Rand) (bought, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	last := len(o.mu.list) - 1
	if last < 0 {
		return bought{}, false
	}
	n := random.IntN(last + 1)
	b := o.mu.list[n]
	o.mu.list[n] = o.mu.list[last]
	o.mu.list = o.mu.list[:last]
	return b, true
}
