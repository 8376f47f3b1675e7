package lab

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/atollhq/atoll/topo"
)

// device is a client that carries a session.
type device struct {
	w        *faultWorld
	customer string
	token    string
}

// ask sends one request to a gateway of a site: an append of a wish, or a read of the profile.
func (d *device) ask(at topo.SiteID, wish string) (o Operation) {
	d.w.t.Helper()
	gateways := d.w.d.at[at].gateways
	url, method, body := "http://"+gateways[slices.Sorted(maps.Keys(gateways))[0]].listen+"/me/", "GET", []byte(nil)
	if wish == "" {
		url += "profile"
	} else {
		method, url, body = "POST", url+"wishes", []byte(`{"wish": "`+wish+`"}`)
	}
	ctx, cancel := context.WithTimeout(d.w.t.Context(), 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	d.w.must(err)
	req.Header.Set("X-Customer", d.customer)
	req.Header.Set("Atoll-Session", cmp.Or(d.token, "new"))
	o.Outcome = Fail
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return o
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		return o
	}
	var list struct{ Wishes []string }
	d.w.must(json.Unmarshal(answer, &list))
	o.Outcome, o.List, o.Lost, o.Site = OK, list.Wishes, resp.Header.Get("Atoll-Session-Lost"), topo.SiteID(resp.Header.Get("Atoll-Site"))
	d.token = resp.Header.Get("Atoll-Session")
	return o
}

// A site comes back with writes that only it had, and the site that took over decides late about one of them. A session that has begun
// anew there asks the site that is back: it must not be shown what is not decided yet.
func TestSiteBackShowsNothingUndecided(t *testing.T) {
	playFault(t, func(ctx context.Context, w *faultWorld) {
		a, b := w.a(), w.b()
		customers, err := w.customersOf(ctx, a, w.owned(ctx, users, a))
		w.must(err)
		d := &device{w: w, customer: customers[0]}
		if o := d.ask(a, "one"); o.Outcome != OK || o.Site != a {
			t.Fatalf("%+v", o)
		}
		w.eventually(ctx, "the first wish is at b", func() bool { o := d.ask(b, ""); return o.Outcome == OK && o.Site == b && len(o.List) == 1 })
		link := w.d.CutKinds(a, b, Link)
		w.must(link.Inject(ctx))
		if o := d.ask(a, "two"); o.Outcome != OK || len(o.List) != 2 {
			t.Fatalf("%+v", o)
		}
		lost := w.d.LoseSite(a)
		w.must(lost.Inject(ctx))
		w.eventually(ctx, "b took over, and says what was lost", func() bool { o := d.ask(b, ""); return o.Lost != "" && len(o.List) == 1 })
		back, held := make(chan struct{}), make(chan error, 1)
		go func() { // b cannot decide while somebody has the row
			held <- w.d.onDatabase(ctx, b, func(db *pgx.Conn) error {
				return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
					if _, err := tx.Exec(ctx, "SELECT FROM customers WHERE id = $1 FOR UPDATE", d.customer); err != nil {
						return err
					}
					<-back
					return rest(ctx, 8*time.Second)
				})
			})
		}()
		w.must(link.Heal(ctx))
		w.must(lost.Heal(ctx))
		close(back)
		defer func() { w.must(<-held) }()
		seen, atBack := []string{"one"}, 0
		for until := time.Now().Add(20 * time.Second); time.Now().Before(until); {
			for _, site := range []topo.SiteID{a, b} {
				o := d.ask(site, "")
				if o.Outcome != OK {
					continue
				}
				if o.Site == a {
					atBack++
				}
				if !startsWith(o.List, seen) && o.Lost == "" {
					t.Fatalf("asked at %s, %s answers %v, after %v", site, o.Site, o.List, seen)
				}
				if !slices.Equal(o.List, seen) {
					t.Logf("asked at %s, %s answers %v, lost %q", site, o.Site, o.List, o.Lost)
				}
				seen = o.List
			}
		}
		t.Logf("%d reads were answered by %s, which is back; at the end %v", atBack, a, seen)
	})
}
