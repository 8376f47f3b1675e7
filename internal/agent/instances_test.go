package agent

import (
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
)

// An instance registers at a real agent; behind the agent's restart a gateway is told that the list is not complete, and the
// instance is back with its next renewal. That is no matter of the database, which is not even waited for.
func TestInstancesRegister(t *testing.T) {
	w := newWorld(t)
	w.spec.Sites["a"].Upstreams = map[string]*spec.Upstream{"shop": {URL: "http://shop.test", Discover: &spec.Discover{Register: 30 * time.Second}}, "old": {URL: "http://old.test"}}
	if err := pki.Issue(w.spec.PKI, pki.Role{Kind: pki.Service, Name: "shop"}); err != nil {
		t.Fatal(err)
	}
	id, err := pki.Load(w.spec.PKI, "service-shop")
	if err != nil {
		t.Fatal(err)
	}
	instance := api.NewClient(w.spec.Sites["a"].Agent.API, id.ClientTLS("a"), nil)
	t.Cleanup(instance.Close)
	gateway := w.siteClient("a")
	renew := func() {
		t.Helper()
		if answer, err := instance.Register(t.Context(), api.RegisterRequest{Service: "shop", Instance: api.Instance{Address: "10.0.0.5:9000"}}); err != nil || answer.TTLMS != 30_000 {
			t.Fatalf("%+v, %v", answer, err)
		}
	}
	list := func(after string) api.InstanceList {
		t.Helper()
		got, err := gateway.Instances(t.Context(), "shop", after, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	w.start("a")
	renew()
	before := list("")
	if len(before.Instances) != 1 || before.Complete {
		t.Errorf("%+v", before)
	}
	w.stop("a")
	w.start("a")
	fresh := list(before.Version) // at once: it is another run
	if len(fresh.Instances) != 0 || fresh.Complete || fresh.Version == before.Version {
		t.Errorf("%+v", fresh)
	}
	renew()
	if back := list(fresh.Version); len(back.Instances) != 1 {
		t.Errorf("%+v", back)
	}
	if all, err := w.people.Services(t.Context()); err != nil || len(all) != 1 || all[0].Service != "shop" {
		t.Errorf("%+v, %v: want what the spec declares", all, err)
	}
	for path, call := range map[string]func() error{
		"status":  func() error { _, err := instance.Status(t.Context(), true); return err },
		"health":  func() error { _, err := instance.Health(t.Context()); return err },
		"explain": func() error { _, err := instance.Explain(t.Context(), "a"); return err },
	} {
		if call() == nil {
			t.Errorf("a service reads the agent's %s", path)
		}
	}
}
