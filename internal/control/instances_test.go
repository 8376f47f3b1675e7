package control

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
)

// TestInstancesOverTheAPI: an instance registers and leaves, a gateway that waits hears of both, and an operator sees it.
func TestInstancesOverTheAPI(t *testing.T) {
	t.Parallel()
	s := serve(t)
	shop, gateway := s.as("service-shop"), s.as("site-a")
	first, err := gateway.Instances(t.Context(), "shop", "", time.Minute)
	if err != nil || len(first.Instances) != 0 || first.Complete {
		t.Fatalf("%+v, %v", first, err)
	}
	type heard struct {
		list api.InstanceList
		err  error
	}
	wait := func(after string) chan heard {
		c := make(chan heard, 1)
		go func() {
			list, err := gateway.Instances(t.Context(), "shop", after, time.Minute)
			c <- heard{list, err}
		}()
		return c
	}
	next := wait(first.Version)
	in := api.Instance{Address: "10.0.0.5:9000", Zone: "z1", Weight: 2}
	if answer, err := shop.Register(t.Context(), api.RegisterRequest{Service: "shop", Instance: in, TTLMS: 15_000}); err != nil || answer.TTLMS != 15_000 {
		t.Fatalf("%+v, %v", answer, err)
	}
	got := <-next
	if got.err != nil || len(got.list.Instances) != 1 || got.list.Instances[0].Instance != in || got.list.Instances[0].RemainingMS > 15_000 {
		t.Fatalf("%+v", got)
	}
	list, err := s.as("operator-ann").Services(t.Context())
	if err != nil || len(list) != 2 || list[0].Service != "basket" || list[1].Version != got.list.Version || len(list[1].Instances) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
	next = wait(got.list.Version)
	if answer, err := shop.Leave(t.Context(), api.LeaveRequest{Service: "shop", Address: in.Address}); err != nil || !answer.Known {
		t.Fatalf("%+v, %v", answer, err)
	}
	if got = <-next; got.err != nil || len(got.list.Instances) != 0 || len(got.list.Left) != 1 {
		t.Fatalf("%+v", got)
	}
}

// TestInstancesRefused: errors say where and what to do.
func TestInstancesRefused(t *testing.T) {
	t.Parallel()
	s := serve(t)
	shop, gateway := s.as("service-shop"), s.as("site-a")
	register := func(r api.RegisterRequest) error { _, err := shop.Register(t.Context(), r); return err }
	list := func(service string, wait time.Duration) error {
		_, err := gateway.Instances(t.Context(), service, "", wait)
		return err
	}
	for name, c := range map[string]struct {
		err    error
		status int
		want   []string
	}{
		"another service":    {register(api.RegisterRequest{Service: "basket", Instance: api.Instance{Address: "h:1"}}), 403, []string{"of service shop", `"basket"`, "atoll ca issue service"}},
		"no service":         {register(api.RegisterRequest{}), 403, []string{"of service shop"}},
		"no address":         {register(api.RegisterRequest{Service: "shop"}), 400, []string{"service shop: address", "for example 10.0.0.5:9000"}},
		"no such service":    {list("shp", 0), 404, []string{`"shp"`, "basket, shop", "discover: {register: 30s}"}},
		"a wait without end": {list("shop", time.Hour), 400, []string{"want a duration up to 1m0s"}},
	} {
		var coded *api.Error
		if !errors.As(c.err, &coded) || coded.Status != c.status {
			t.Errorf("%s: %v", name, c.err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(c.err.Error(), want) {
				t.Errorf("%s: %v\nwant %q", name, c.err, want)
			}
		}
	}
}
