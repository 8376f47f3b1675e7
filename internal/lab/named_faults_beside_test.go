package lab

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/topo"
)

// settledAndShared waits until all is well, and has users at every site again for a while.
func (w *faultWorld) settledAndShared(ctx context.Context) {
	w.t.Helper()
	w.must(w.recover(ctx))
	w.must(w.share(ctx))
	before := w.answered()
	w.eventually(ctx, "the load is answered", func() bool { return w.answered() > before+120 })
}

// besideWriter writes at a site's database straight, as a job of the application's own would, for users that the site owns:
// gateways stop by themselves, the fence must not need them.
type besideWriter struct {
	w      *faultWorld
	forbid atomic.Bool
	end    context.CancelFunc
	done   chan struct{}
	once   sync.Once

	accepted, refused, forbidden int // its goroutine's, until done
}

func (w *faultWorld) beside(ctx context.Context, site topo.SiteID) *besideWriter {
	w.t.Helper()
	customers, err := w.customersOf(ctx, w.b(), w.ownedBy(ctx, site))
	w.must(err)
	if len(customers) == 0 {
		w.t.Fatalf("no customers of %s to write for", site)
	}
	ctx, cancel := context.WithCancel(ctx)
	b := &besideWriter{w: w, end: cancel, done: make(chan struct{})}
	dsn := w.d.databases[site].DSN(shopRole, database)
	go func() {
		defer close(b.done)
		for n := 0; rest(ctx, 20*time.Millisecond) == nil; n++ {
			b.write(ctx, dsn, customers[n%len(customers)])
		}
	}()
	return b
}

func (b *besideWriter) write(ctx context.Context, dsn, customer string) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	db, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return // it is not there
	}
	defer db.Close(context.WithoutCancel(ctx))
	forbidden := b.forbid.Load()
	tag, err := db.Exec(ctx, "UPDATE customers SET name = name WHERE id = $1", customer)
	var refused *pgconn.PgError
	switch {
	case err == nil && tag.RowsAffected() == 0: // it waited for a rebuild, which put another row in the place of this one
	case err == nil && forbidden:
		b.forbidden++
	case err == nil:
		b.accepted++
	case errors.As(err, &refused) && strings.HasPrefix(refused.Code, "AT"):
		b.refused++
	}
}

// refusedFromNowOn: the database is another one, and nothing may be accepted in it before it is in order.
func (b *besideWriter) refusedFromNowOn() { b.forbid.Store(true) }

// stop ends it and judges, once: a test defers it, so that it is also heard when the test ends early.
func (b *besideWriter) stop() {
	b.w.t.Helper()
	b.once.Do(b.judge)
}

func (b *besideWriter) judge() {
	b.w.t.Helper()
	b.end()
	<-b.done
	b.w.t.Logf("beside the gateways %d writes were accepted before, %d refused by the fence", b.accepted, b.refused)
	if b.forbidden > 0 {
		b.w.t.Errorf("the database accepted %d writes at epochs of before it was replaced", b.forbidden)
	}
	if b.refused < 20 {
		b.w.t.Errorf("only %d writes were refused: too few to say anything", b.refused)
	}
}
