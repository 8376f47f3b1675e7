package agent

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pgserver"
	"github.com/atollhq/atoll/topo"
)

// start3 starts a, b and c, and has a own all but 0-20, which are b's.
func (w *world) start3() {
	w.t.Helper()
	for _, id := range []topo.SiteID{"a", "b", "c"} {
		w.start(id)
	}
	w.open("a")
	w.linked()
	w.await(w.people, w.begin("b", "0-20"), "done")
}

// writers write at sites until they are ended; what they have written is known to the row.
type writers struct {
	w    *world
	stop chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex
	want map[int]int // by key: how often it was counted up, and that acknowledged
}

// write has a site insert keys and count them up, one transaction after the other. Whatever else than a refusal by the
// fence fails the test: nothing is taken from these sites.
func (w *world) write(ws *writers, id topo.SiteID, keys []int) {
	ws.wg.Go(func() {
		c, err := pgx.Connect(context.Background(), w.sites[id].app)
		if err != nil {
			w.t.Error(err)
			return
		}
		defer func() { _ = c.Close(context.Background()) }()
		for n := 0; ; n++ {
			select {
			case <-ws.stop:
				return
			default:
			}
			key := keys[n%len(keys)]
			_, err := c.Exec(context.Background(), "INSERT INTO item VALUES ($1, 1) ON CONFLICT (id) DO UPDATE SET n = item.n + 1", key)
			if strings.HasPrefix(code(err), "AT") { // refused: on a busy machine a lease may run out for a moment
				select {
				case <-ws.stop:
				case <-time.After(20 * time.Millisecond):
				}
				continue
			}
			if err != nil {
				w.t.Errorf("write at %s: %v", id, err)
				return
			}
			ws.mu.Lock()
			ws.want[key]++
			ws.mu.Unlock()
		}
	})
}

func (ws *writers) count() (n int) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, k := range ws.want {
		n += k
	}
	return n
}

// end stops the writers, and checks that every site has every acknowledged write once.
func (ws *writers) end(sites ...topo.SiteID) {
	w := ws.w
	w.t.Helper()
	close(ws.stop)
	ws.wg.Wait()
	for _, id := range sites {
		var got map[int]int
		w.eventually(fmt.Sprintf("site %s has what was acknowledged", id), func() bool {
			got = map[int]int{}
			for _, line := range strings.Fields(w.rows(id, "SELECT id || '/' || n FROM item WHERE id >= 1000")) {
				var key, n int
				if _, err := fmt.Sscanf(line, "%d/%d", &key, &n); err != nil {
					w.t.Fatal(err)
				}
				got[key] = n
			}
			for key, n := range ws.want {
				if got[key] > n {
					w.t.Fatalf("site %s has key %d at %d, and %d were acknowledged", id, key, got[key], n)
				}
				if got[key] < n {
					return false
				}
			}
			return true
		})
	}
	w.same(sites...)
	w.t.Logf("%d acknowledged writes", ws.count())
}

// same waits until sites have the same rows.
func (w *world) same(sites ...topo.SiteID) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("%v are equal", sites), func() bool {
		first := w.rows(sites[0], "SELECT id || '/' || n FROM item ORDER BY id")
		for _, id := range sites[1:] {
			if w.rows(id, "SELECT id || '/' || n FROM item ORDER BY id") != first {
				return false
			}
		}
		return true
	})
}

// replaceDatabase gives a site an empty database in the place of its own, and waits until its agent has found out.
func (w *world) replaceDatabase(id topo.SiteID) {
	w.t.Helper()
	w.stop(id)
	w.sites[id] = w.newSite(id, server(w.t))
	w.start(id)
	w.eventually("the site's agent finds another database", func() bool {
		st, err := w.client(id).Status(w.t.Context(), true)
		return err == nil && st.Sites[0].Keeper != nil && st.Sites[0].Keeper.Rebuild && !st.Sites[0].Standby
	})
}

// rebuild rebuilds a site, and asks again where the answer does not come: on a busy machine a connection may be given up.
func (w *world) rebuild(c *api.Client, req api.RebuildRequest) (answer api.RebuildAnswer) {
	w.t.Helper()
	w.eventually("it is rebuilt", func() bool {
		a, err := c.Rebuild(w.t.Context(), req)
		if err != nil {
			w.t.Logf("rebuild: %v", err)
			return rebuiltAlready(err)
		}
		answer = a
		return true
	})
	return answer
}

func rebuiltAlready(err error) bool { return strings.Contains(err.Error(), "ordinary way") }

func TestRebuildAmongThreeSites(t *testing.T) {
	w := newWorldOf(t, pgserver.Shared(t), "c")
	w.start3()
	ofB, ofA := w.keysIn(0, 20, 40), w.keysIn(31, 63, 40)
	w.await(w.people, w.begin("c", "21-30"), "done") // c has owned something once, at all sites
	ofC := w.keysIn(21, 30, 2)
	w.exec(w.sites["c"].app, insert(ofC[0], 5))
	w.arrives("a", ofC[0], 5)
	w.await(w.people, w.begin("a", "21-30"), "done")

	w.replaceDatabase("c")
	ws := &writers{w: w, stop: make(chan struct{}), want: map[int]int{}}
	w.write(ws, "a", ofA)
	w.write(ws, "b", ofB)
	w.eventually("writes are under way", func() bool { return ws.count() > 200 })
	c := w.client("c")
	dry, err := c.Rebuild(t.Context(), api.RebuildRequest{Site: "c", DryRun: true})
	if err != nil || dry.From != "a" {
		t.Fatalf("dry run: %+v, %v", dry, err)
	}
	before := ws.count()
	answer := w.rebuild(c, api.RebuildRequest{Site: "c", From: "b", Why: "test"})
	during := ws.count() - before
	t.Logf("%d writes during the rebuild: %+v", during, answer)
	w.eventually("writes go on behind it", func() bool { return ws.count() > before+during+200 })
	ws.end("a", "b", "c")
	if during == 0 || answer.From != "b" && answer.From != "" || answer.Logged != 0 {
		t.Errorf("%d writes during the rebuild, %+v", during, answer)
	}
	for _, id := range []topo.SiteID{"a", "b", "c"} {
		if n := w.value(id, "SELECT count(*)::int FROM atoll.conflict"); n != 0 {
			t.Errorf("%d conflicts at %s", n, id)
		}
	}
	// Its own stream begins anew everywhere, and it owns again.
	w.linked()
	w.await(w.people, w.begin("c", "21-30"), "done")
	w.exec(w.sites["c"].app, insert(ofC[1], 7))
	w.arrives("a", ofC[1], 7)
	w.arrives("b", ofC[1], 7)
	// What it keeps of others, and they of it, is whole: a third site that cannot reach the origin is served.
	w.stop("c")
	w.start("c")
	w.linked()
	w.exec(w.sites["c"].app, fmt.Sprintf("UPDATE item SET n = 8 WHERE id = %d", ofC[1]))
	w.arrives("b", ofC[1], 8)
	w.same("a", "b", "c")
	if _, err := c.Rebuild(t.Context(), api.RebuildRequest{Site: "c"}); err == nil {
		t.Error("an owner is rebuilt")
	}
}

// The copied site lags behind a third one's stream, of which the replaced database had more: what the copy has of it must
// not end before the new place.
func TestRebuildFromASiteThatLags(t *testing.T) {
	w := newWorldOf(t, server(t), "c")
	w.start3()
	// c has said something to both: of a stream that has just begun they may have begun at different places, and neither
	// has for the other what lies between.
	w.await(w.people, w.begin("c", "21-30"), "done")
	w.await(w.people, w.begin("a", "21-30"), "done")
	at := func(id topo.SiteID) int {
		return w.value(id, "SELECT position::int FROM atoll.progress WHERE origin = 'c'")
	}
	w.eventually("a and b have the same of c", func() bool { return at("a") == at("b") })
	lock, err := pgx.Connect(t.Context(), w.sites["b"].admin)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Close(context.Background()) }()
	for _, sql := range []string{"BEGIN", "SELECT FROM atoll.progress WHERE origin = 'a' FOR UPDATE"} {
		if _, err := lock.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	keys := w.keysIn(31, 63, 3)
	w.exec(w.sites["a"].app, insert(keys[0], 1), insert(keys[1], 1))
	w.arrives("c", keys[1], 1)
	w.replaceDatabase("c")
	c, ended := w.client("c"), make(chan error, 1)
	go func() {
		var err error
		for range 5 { // see rebuild
			if _, err = c.Rebuild(context.Background(), api.RebuildRequest{Site: "c", From: "b"}); err == nil || rebuiltAlready(err) {
				err = nil
				break
			}
		}
		ended <- err
	}()
	w.eventually("it waits for the copied site", func() bool {
		st, err := c.Status(t.Context(), true)
		return err == nil && strings.Contains(strings.Join(st.Sites[0].Returning, "\n"), "site b to have what is before")
	})
	if n := w.value("b", fmt.Sprintf("SELECT count(*)::int FROM item WHERE id = %d", keys[1])); n != 0 {
		t.Error("b does not lag")
	}
	if _, err := lock.Exec(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	w.exec(w.sites["a"].app, insert(keys[2], 1))
	w.arrives("c", keys[2], 1)
	w.same("a", "b", "c")
}
