package sdk_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/loopback"
	"github.com/atollhq/atoll/sdk"
	"github.com/atollhq/atoll/topo"
)

func TestView_GoesOnAtTheNextGateway(t *testing.T) {
	t.Parallel()
	a, b := pair(t, echo)
	publish(half(), a, b)
	gone, err := loopback.Addr()
	if err != nil {
		t.Fatal(err)
	}
	notOne := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(notOne.Close)
	v, err := sdk.NewView(sdk.ViewConfig{Site: "a", Gateways: []string{"http://" + gone, notOne.URL, b.admin(), a.admin() + "/"}}) // b's is refused
	if err != nil {
		t.Fatal(err)
	}
	running(t, "view", v.Run)
	waitFor(t, v)
	if p, err := v.Place("users", keyIn(3)); err != nil || p != (sdk.Place{Keyspace: "users", Bucket: 3, Owner: "a", Epoch: 1}) {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err := v.Place("catalog", ""); err != nil || p.Owner != "a" {
		t.Errorf("%+v, %v", p, err)
	}
	moving := must(half().StartMove("users", topo.SpansOf(3), "h1", "b"))
	publish(moving, a)
	eventually(t, "the bucket moves", func() bool { p, err := v.Place("users", keyIn(3)); return err == nil && p.Moving })
	a.stop()
	if p, err := v.Place("users", keyIn(3)); err != nil || !p.Moving {
		t.Errorf("without a gateway: %+v, %v", p, err)
	}
}

func TestView_RefusesWhatIsNone(t *testing.T) {
	t.Parallel()
	for name, line := range map[string]string{
		"not JSON": "x", "no format": "{}", "of a newer version": `{"format":2,"gateway":{"site":"a"}}`, "an agent's": `{"format":1}`,
		"another site's": `{"format":1,"gateway":{"site":"b"}}`, "no document": `{"format":1,"ownership":{"format":1},"gateway":{"site":"a"}}`,
		"no routes": `{"format":1,"gateway":{"site":"a","table":{"routes":[{"name":"x","path":"y"}]}}}`,
	} {
		refused := make(chan struct{}, 16)
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = fmt.Fprintln(w, line)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done() // the client goes away
			select {
			case refused <- struct{}{}:
			default:
			}
		}))
		v, err := sdk.NewView(sdk.ViewConfig{Site: "a", Gateways: []string{s.URL}})
		if err != nil {
			t.Fatal(err)
		}
		stop := running(t, "view", v.Run)
		<-refused
		stop()
		s.Close()
		if _, err := v.Place("users", "x"); !errors.Is(err, sdk.ErrNoView) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, conf := range []sdk.ViewConfig{{}, {Site: "a"}, {Site: "A", Gateways: []string{"http://h"}}, {Site: "a", Gateways: []string{"h:1"}}} {
		if _, err := sdk.NewView(conf); err == nil {
			t.Errorf("%+v: no error", conf)
		}
	}
}

// A guarded job beside the real fence: it ends when the bucket begins to move, and a job that does not heed that is stopped
// by the fence, which has the last word.
func TestGuard_TheFenceHasTheLastWord(t *testing.T) {
	t.Parallel()
	db := newFencedSite(t)
	db.open(t, 1)
	a, b := pair(t, echo)
	o := half()
	publish(o, a, b)
	v := viewAt(t, a)
	guard := sdk.NewGuard(v, 0)
	key := keyIn(3)
	eventually(t, "a guarded write", func() bool {
		err := guard.Run(t.Context(), "users", key, func(ctx context.Context, _ topo.Epoch) error { return db.write(ctx, key) })
		var elsewhere *sdk.ElsewhereError
		if err != nil && !(errors.As(err, &elsewhere) && elsewhere.Why == sdk.WhyLease) { // the gateway asks for the lease once it has a view
			t.Fatal(err)
		}
		return err == nil
	})
	err := guard.Run(t.Context(), "users", key, func(ctx context.Context, epoch topo.Epoch) error {
		publish(must(o.StartMove("users", topo.SpansOf(3), "h1", "b")), a, b)
		<-ctx.Done()
		db.close(t, "h1", 3, epoch)
		return db.write(context.WithoutCancel(ctx), key) // it does not heed
	})
	var elsewhere *sdk.ElsewhereError
	if _, fenced := sdk.Fenced(err); !fenced || !errors.As(err, &elsewhere) || elsewhere.Why != sdk.WhyMoving || !elsewhere.Began {
		t.Errorf("error %v", err)
	}
	if err := guard.Run(t.Context(), "users", keyIn(12), nil); !errors.As(err, &elsewhere) || elsewhere.Why != sdk.WhyOwner || elsewhere.Owner != "b" || !strings.Contains(err.Error(), "owner b") {
		t.Errorf("error %v", err)
	}
}
