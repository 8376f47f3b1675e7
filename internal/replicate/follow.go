package replicate

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/atollhq/atoll/internal/change"
	"github.com/atollhq/atoll/internal/link"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/plant"
	"github.com/atollhq/atoll/topo"
)

// ahead is how many decoded transactions may wait for the sink. They let it join what waits; the bytes are bounded by
// the link's window and the size of the parts.
const ahead = 64

// Follow brings one origin's changes to this site. The exported fields are set before Run.
type Follow struct {
	Site       topo.SiteID // the target: this site
	Origin     topo.SiteID
	Deployment string
	Addr       string // the origin's agent, for links
	Standby    string // the origin's second agent; "": it has none. Of the two the one that last gave changes is asked first.
	Relays     []Via  // other sites that keep the origin's changes, asked where they have more and the origin is not reached
	Identity   *pki.Identity
	// Open opens this site's database for the origin; the sink is closed when the link ends.
	Open     func(context.Context) (Sink, error)
	CopyFrom bool // the origin is the seed: a database without progress starts from a copy of it
	Applied  *Applied
	Relay    Relay // nil: nothing is kept
	// Others are the members besides this site and the origin: while one of them lacks changes, Relay keeps them. Nil: there
	// are none. It must not block; who has acknowledged a document has to go by it from then on.
	Others func() []topo.SiteID
	// Gone tells of sites that are members no more: what a marker asks of them is here. May be nil, must not block.
	Gone func(topo.SiteID) bool
	// Wants has another origin's stream come to a position that a marker waits for: an idle stream takes its time where
	// nothing but the position is to come. May be nil, must not block.
	Wants    func(topo.SiteID, change.Position)
	Settings link.Settings
	Logger   *slog.Logger // default: discards

	// Tail names the sites that have to decide what the origin committed there beyond a failover's cut, before this site may
	// pass it over; none if nothing of it is left to another site. May be nil, must not block.
	Tail func(change.Position) []topo.SiteID

	rebuild bool      // Copy is under way
	second  bool      // Standby's turn; Run's goroutine only
	unkept  bool      // it is recorded that nothing is kept; Run's goroutine only
	missed  bool      // the origin was asked last, and has not given what it should; Run's goroutine only
	trimmed time.Time // when the relay was last trimmed; Run's goroutine only

	mu struct {
		sync.Mutex
		phase    Phase
		since    time.Time // of phase
		waitsFor topo.SiteID
		in       *link.Inbound   // of the present connection, else of the last
		via      topo.SiteID     // the relay that in is of; "": the origin
		direct   *link.Inbound   // the last that is of the origin
		pull     change.Position // until which a relay comes first
		position change.Position
		applied  time.Time   // when position last moved
		commit   time.Time   // at the origin, of what was applied last
		wrote    time.Time   // when a transaction of an application was last applied
		flight   []inFlight  // received, not yet durably applied
		lacked   []change.Tx // those of them that another site may lack, and that are not kept yet as far as this knows
		err      error
		errAt    time.Time
	}
}

// Via is another site at which an origin's changes can be had.
type Via struct {
	Site  topo.SiteID
	Addrs []string // of its agents, for links
}

// inFlight is a transaction between the link and its durable commit.
type inFlight struct {
	position  change.Position
	committed time.Time
	writes    bool // it is an application's
}

var (
	// errCopied ends the connection that gave this site its place in the stream; the next one goes on from there.
	errCopied = link.Refusef(link.Closing, "the beginning is on disk")
	// errSinkStopped: the sink broke its promise to run until its input ends.
	errSinkStopped = errors.New("applying ended by itself")
	// errNoBeginning: only the origin itself can begin a stream.
	errNoBeginning = errors.New("nothing of the origin is here yet, and a relay has no beginning")
)

// dataError is a failure on the way of the data, at this side, as opposed to one of the path.
type dataError struct{ err error }

// passing is a data error whose reason goes away by itself: a failover from the origin is under way, or this site's
// fence is closed for the moment.
type passing interface {
	error
	Passing() bool
}

func (e *dataError) Error() string { return e.err.Error() }
func (e *dataError) Unwrap() error { return e.err }

// Run follows the origin until ctx ends. Whatever breaks is told in State and in the log, and tried again from the
// recorded position.
func (f *Follow) Run(ctx context.Context) error {
	if f.Logger == nil {
		f.Logger = slog.New(slog.DiscardHandler)
	}
	log := f.Logger.With("origin", f.Origin)
	told := map[bool]string{} // by whose turn it was
	var lastLogged time.Time
	for failures := 0; ; {
		before, second := f.at(), f.second
		via, addr := f.route(failures)
		err := f.attempt(ctx, via, addr)
		f.missed = via == ""
		if ctx.Err() != nil {
			f.enter(Stopped, nil)
			return nil
		}
		if errors.Is(err, errCopied) {
			log.Info("begun: the origin's stream goes on from here")
			failures, f.missed = 0, false // it has given what it should
			continue
		}
		if f.at() > before {
			failures = 0
		} else if via == "" {
			f.second = f.Standby != "" && !f.second
		}
		failures++
		p := cutPath
		var said *link.Refusal
		var ours *dataError
		if errors.As(err, &ours) || errors.As(err, &said) && said.Reason != link.Closing {
			p = needHelp
		}
		if soon := passing(nil); errors.As(err, &soon) && soon.Passing() {
			p = holdsUp
		}
		f.enter(Retrying, err)
		wait := p.wait(failures)
		level := slog.LevelDebug // a path that stays cut is not news
		if text := err.Error(); text != told[second] || time.Since(lastLogged) > 30*time.Second {
			level, told[second], lastLogged = slog.LevelWarn, text, time.Now()
		}
		log.Log(ctx, level, "link broken", "error", err, "failures", failures, "again_in", wait)
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
		}
	}
}

// Copy connects once and takes a copy with which this site is rebuilt, for a sink that begins with one; the stream behind
// it is left to Run.
func (f *Follow) Copy(ctx context.Context) error {
	if f.Logger == nil {
		f.Logger = slog.New(slog.DiscardHandler)
	}
	f.CopyFrom, f.rebuild = true, true
	err := f.attempt(ctx, "", f.Addr)
	var said *link.Refusal
	if f.Standby != "" && errors.As(err, &said) && said.Reason == link.Closing && !errors.Is(err, errCopied) { // the agent there stands by
		err = f.attempt(ctx, "", f.Standby)
	}
	f.enter(Stopped, nil)
	switch {
	case errors.Is(err, errCopied):
		return nil
	case err == nil:
		return errors.New("the link ended before the copy was complete")
	}
	return err
}

// route says whom to ask next, and where: a relay that has more than this site, if the origin was just not reached or
// somebody waits; else the origin itself.
func (f *Follow) route(failures int) (via topo.SiteID, addr string) {
	at, waits := f.at(), f.pulls()
	if f.missed || waits {
		for i := range f.Relays {
			r := f.Relays[(i+failures)%len(f.Relays)]
			if len(r.Addrs) > 0 && f.Applied.said(r.Site, f.Origin) > at {
				return r.Site, r.Addrs[failures/max(1, len(f.Relays))%len(r.Addrs)]
			}
		}
	}
	if f.second {
		return "", f.Standby
	}
	return "", f.Addr
}

// attempt connects once, to a relay or with "" to the origin, and stays until something breaks.
func (f *Follow) attempt(ctx context.Context, via topo.SiteID, addr string) error {
	f.enter(Connecting, nil)
	sink, err := f.Open(ctx)
	if err != nil {
		return &dataError{fmt.Errorf("this site's database: %w", err)}
	}
	defer sink.Close()
	progress, err := sink.Progress(ctx)
	if err != nil {
		return &dataError{fmt.Errorf("this site's database: %w", err)}
	}
	if err := f.recorded(ctx, progress.Position); err != nil {
		return &dataError{err}
	}
	if progress.Known && len(f.others()) > 0 {
		if err := f.beginRelay(ctx); err != nil {
			return err
		}
	}
	hello := link.Hello{Deployment: f.Deployment, Site: f.Site, Origin: f.Origin, Vector: f.Applied.Vector()}
	switch {
	case progress.Known:
		hello.Start, hello.Position, hello.Epochs = link.StartResume, progress.Position, progress.Epochs
	case f.rebuild:
		hello.Start = link.StartRebuild
	case f.CopyFrom:
		hello.Start = link.StartCopy
	default:
		hello.Start = link.StartFresh
	}
	if via != "" && hello.Start != link.StartResume {
		return errNoBeginning
	}
	in, err := link.Dial(ctx, link.DialConfig{Addr: addr, TLS: f.Identity.ClientTLS(cmp.Or(via, f.Origin)), Via: via, Hello: hello, Settings: f.Settings, Vector: f.Applied.Vector})
	if err != nil {
		return err
	}
	f.connected(in, via)
	if progress.Known && len(f.others()) == 0 && !f.unkept { // nobody waits for that
		if err := f.beginRelay(ctx); err != nil {
			in.Close()
			return err
		}
		f.unkept = true
	}
	f.Logger.Info("link stands", "origin", f.Origin, "via", via, "start", hello.Start, "position", hello.Position)
	if hello.Start != link.StartResume {
		f.enter(Copying, nil)
		return f.copy(ctx, in, sink)
	}
	f.enter(Streaming, nil)
	return f.stream(ctx, in, sink, progress.Position)
}

func (f *Follow) others() []topo.SiteID {
	if f.Others == nil {
		return nil
	}
	return f.Others()
}

// beginRelay says in the database from where on all of the origin's changes are kept for others, or that none are.
func (f *Follow) beginRelay(ctx context.Context) error {
	if f.Relay == nil {
		return nil
	}
	if err := f.Relay.Begin(ctx, f.Origin, len(f.others()) > 0); err != nil {
		return &dataError{fmt.Errorf("relay of site %s: %w", f.Origin, err)}
	}
	return nil
}

// copy applies the origin's tables as of one moment, or none of them if the link is fresh, and records the position
// of that moment, in one transaction of the sink.
func (f *Follow) copy(ctx context.Context, in *link.Inbound, sink Sink) error {
	var ended error
	var wg sync.WaitGroup
	wg.Go(func() { ended = in.Run(ctx) })
	err := sink.Copy(ctx, in.NextCopy)
	if err == nil {
		in.End(errCopied)
		wg.Wait()
		return errCopied
	}
	// If the link ended first, that is why the sink failed, and ended says it: only the first reason counts.
	in.End(&dataError{fmt.Errorf("initial copy of site %s: %w", f.Origin, err)})
	wg.Wait()
	return ended
}

// stream feeds the sink until the link ends and everything that had arrived is applied, or something fails.
func (f *Follow) stream(ctx context.Context, in *link.Inbound, sink Sink, from change.Position) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() { f.enter(Finishing, in.Run(ctx)) }) // feed learns the same from NextTx, behind what had arrived
	txs := make(chan change.Tx, ahead)
	fed := make(chan struct{})
	wg.Go(func() {
		err := sink.Run(ctx, txs, func(pos change.Position, markers []change.Marker) { f.durable(in, pos, markers) })
		if err == nil {
			select {
			case <-fed:
				return
			default:
				err = errSinkStopped
			}
		}
		cancel(&dataError{fmt.Errorf("applying changes of site %s behind position %d: %w", f.Origin, f.at(), err)})
	})
	err := f.feed(ctx, in, txs, order{origin: f.Origin, last: from})
	var data *dataError
	if errors.As(err, &data) {
		cancel(err) // ends sink and link; the origin is told
	}
	close(fed)
	close(txs)
	wg.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// feed gives the sink what arrives. Its errors are data errors, the link's end behind what had arrived, or ctx's.
func (f *Follow) feed(ctx context.Context, in *link.Inbound, txs chan<- change.Tx, order order) error {
	for {
		batch, err := f.next(ctx, in)
		if err != nil {
			return err
		}
		if err := f.keep(ctx, batch); err != nil {
			return err
		}
		for i := range batch {
			tx := &batch[i]
			if err := order.check(tx); err != nil {
				return &dataError{err}
			}
			if err := f.await(ctx, tx); err != nil {
				return err
			}
			f.underWay(tx)
			select {
			case txs <- *tx:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// next takes the next transaction, and if others may lack them, those behind it that are here: what is kept ahead costs a
// commit.
func (f *Follow) next(ctx context.Context, in *link.Inbound) ([]change.Tx, error) {
	const most = 256
	var batch []change.Tx
	for len(batch) == 0 || f.Relay != nil && len(f.others()) > 0 && in.Ready() && len(batch) < most {
		tx, err := in.NextTx(ctx)
		if err != nil {
			var said *link.Refusal
			if errors.As(err, &said) && !said.Remote { // what arrived cannot be read
				err = &dataError{err}
			}
			return nil, err
		}
		batch = append(batch, tx)
	}
	return batch, nil
}

// await holds a marker, and so everything behind it, until this site has applied what its vector asks for (I3).
func (f *Follow) await(ctx context.Context, tx *change.Tx) error {
	if plant.VectorIgnored {
		return nil
	}
	for _, m := range tx.Markers {
		need := maps.Clone(m.Vector) // the marker goes on as it is
		maps.DeleteFunc(need, func(s topo.SiteID, _ uint64) bool { return f.Gone != nil && f.Gone(s) })
		for {
			lacking := f.Applied.lacks(need)
			if lacking == "" {
				break
			}
			f.waits(lacking)
			if err := f.awaitOther(ctx, lacking, need[lacking]); err != nil {
				return err
			}
		}
	}
	if len(tx.Markers) > 0 {
		f.waits("")
	}
	return f.awaitDecision(ctx, tx)
}

// awaitOther waits for another origin's changes up to a position, and has its stream come there; again every second, since
// that may have been just away.
func (f *Follow) awaitOther(ctx context.Context, origin topo.SiteID, position uint64) error {
	for {
		if f.Wants != nil {
			f.Wants(origin, change.Position(position))
		}
		wait, cancel := context.WithTimeout(ctx, time.Second)
		err := f.Applied.WaitVector(wait, topo.Vector{origin: position})
		over := wait.Err() != nil && ctx.Err() == nil
		cancel()
		if err == nil || !over {
			return err
		}
	}
}

// awaitDecision holds what another site has to decide until it has: that it is passed over here must not come first, or it
// would be lost if this site became the owner.
func (f *Follow) awaitDecision(ctx context.Context, tx *change.Tx) error {
	if f.Tail == nil || !tx.First || len(tx.Rows) == 0 {
		return nil
	}
	held := false
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		owners := f.Tail(tx.Position)
		i := slices.IndexFunc(owners, func(s topo.SiteID) bool { return f.Applied.said(s, f.Origin) < tx.Position })
		if i < 0 {
			if held {
				f.waits("")
			}
			return nil
		}
		if !held { // the site that decides may lack just this
			if err := f.keepAhead(ctx); err != nil {
				return err
			}
			held = true
			f.waits(owners[i])
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// keep sees to it that what another full site may still lack is kept no later than it is applied here: what was applied and
// not kept could not be served to anybody. The sink does it with what it applies; what may have to wait in front of it, and
// the parts of what is applied as one, are kept at once, since another site may be what they wait for.
func (f *Follow) keep(ctx context.Context, batch []change.Tx) error {
	others := f.others()
	if f.Relay == nil || len(others) == 0 {
		return nil
	}
	everywhere := f.Applied.everywhere(f.Origin, others)
	ahead := false
	f.mu.Lock()
	for i := range batch {
		tx := &batch[i]
		whole := tx.First && tx.Last
		if tx.Position <= everywhere || whole && len(tx.Rows) == 0 { // the latter only moves the position on
			continue
		}
		tx.Keep = whole && len(tx.Markers) == 0
		ahead = ahead || !tx.Keep
		f.mu.lacked = append(f.mu.lacked, *tx)
	}
	f.mu.Unlock()
	if ahead {
		if err := f.keepAhead(ctx); err != nil {
			return err
		}
	}
	if time.Since(f.trimmed) < 10*time.Second || everywhere == 0 {
		return nil
	}
	f.trimmed = time.Now()
	if err := f.Relay.Trim(ctx, f.Origin, everywhere); err != nil {
		return f.relayError(err)
	}
	return nil
}

// keepAhead keeps all that was received and is lacked, and not only the last of it: whoever is served what is kept takes it
// that nothing is missing between two of its transactions.
func (f *Follow) keepAhead(ctx context.Context) error {
	f.mu.Lock()
	lacked := slices.Clone(f.mu.lacked)
	f.mu.Unlock()
	if len(lacked) == 0 {
		return nil
	}
	if err := f.Relay.Keep(ctx, lacked); err != nil {
		return f.relayError(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.lacked = nil // only this goroutine adds to it
	return nil
}

func (f *Follow) relayError(err error) error {
	return &dataError{fmt.Errorf("relay of site %s: %w", f.Origin, err)}
}

// durable takes the sink's word that everything up to a position is on disk.
func (f *Follow) durable(in *link.Inbound, pos change.Position, markers []change.Marker) {
	f.mu.Lock()
	f.mu.lacked = slices.DeleteFunc(f.mu.lacked, func(tx change.Tx) bool { return tx.Position <= pos })
	f.mu.Unlock()
	f.Applied.advance(f.Origin, pos, markers)
	f.landed(pos)
	in.Ack(pos)
}
