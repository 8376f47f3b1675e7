package registry

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/atollhq/atoll/internal/api"
)

func sample() *Registry {
	return New("a", "one", map[string]time.Duration{"shop": 30 * time.Second, "basket": 10 * time.Second})
}

func request(service, address string) api.RegisterRequest {
	return api.RegisterRequest{Service: service, Instance: api.Instance{Address: address}}
}

// What cannot be meant is refused with the place and a word on what to do.
func TestRefusals(t *testing.T) {
	t.Parallel()
	r := sample()
	for name, c := range map[string]struct {
		edit   func(*api.RegisterRequest)
		status int
		want   []string
	}{
		"another service":   {func(r *api.RegisterRequest) { r.Service = "shp" }, 404, []string{`service "shp" do not register themselves at site a; those that do: basket, shop`, "discover: {register: 30s}"}},
		"no port":           {func(r *api.RegisterRequest) { r.Address = "10.0.0.1" }, 400, []string{`service shop: address "10.0.0.1": want HOST:PORT`}},
		"port 0":            {func(r *api.RegisterRequest) { r.Address = "10.0.0.1:0" }, 400, []string{"want HOST:PORT"}},
		"nobody's address":  {func(r *api.RegisterRequest) { r.Address = "0.0.0.0:9000" }, 400, []string{"0.0.0.0 is not where gateways reach one instance"}},
		"metadata":          {func(r *api.RegisterRequest) { r.Address = "169.254.169.254:80" }, 400, []string{"is not where gateways reach"}},
		"metadata, mapped":  {func(r *api.RegisterRequest) { r.Address = "[::ffff:169.254.169.254]:80" }, 400, []string{"is not where gateways reach"}},
		"no host name":      {func(r *api.RegisterRequest) { r.Address = "a b:80" }, 400, []string{"neither an IP address nor a host name"}},
		"a URL":             {func(r *api.RegisterRequest) { r.Address = "http://a/b:80" }, 400, []string{"want HOST:PORT"}},
		"too long":          {func(r *api.RegisterRequest) { r.Address = strings.Repeat("a.", 150) + "a:80" }, 400, []string{"want HOST:PORT"}},
		"zone":              {func(r *api.RegisterRequest) { r.Zone = "Z!" }, 400, []string{`service shop: zone: name "Z!"`}},
		"weight":            {func(r *api.RegisterRequest) { r.Weight = -1 }, 400, []string{"weight -1: want 1 to 1000"}},
		"for too long":      {func(r *api.RegisterRequest) { r.TTLMS = 30_001 }, 400, []string{"ttl_ms 30001: want 2000 to 30000", "raise discover: {register: 30s}"}},
		"for no time":       {func(r *api.RegisterRequest) { r.TTLMS = -5 }, 400, []string{"ttl_ms -5: want 2000"}},
		"longer than ever":  {func(r *api.RegisterRequest) { r.TTLMS = 1 << 62 }, 400, []string{"want 2000"}},
		"the last of ports": {func(r *api.RegisterRequest) { r.Address = "10.0.0.1:65536" }, 400, []string{"want HOST:PORT"}},
	} {
		req := request("shop", "10.0.0.1:9000")
		c.edit(&req)
		_, err := r.Register(req)
		var coded *api.Error
		if !errors.As(err, &coded) || coded.Status != c.status {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %v\nwant %q", name, err, want)
			}
		}
	}
	if _, err := r.Leave(api.LeaveRequest{Service: "shop", Address: "x"}); err == nil {
		t.Error("nobody has left")
	}
	if _, err := New("a", "one", nil).Register(request("shop", "h:1")); err == nil || !strings.Contains(err.Error(), "none does") {
		t.Errorf("%v", err)
	}
	if list, err := r.List(t.Context(), "shop", "", 0); err != nil || len(list.Instances) != 0 || list.Complete {
		t.Errorf("%+v, %v", list, err)
	}
	for _, address := range []string{"10.0.0.1:9000", "[2001:db8::1]:9000", "127.0.0.1:80", "shop-1.internal:9000", "h:65535"} {
		if answer, err := r.Register(request("shop", address)); err != nil || answer.TTLMS != 30_000 {
			t.Errorf("%s: %+v, %v", address, answer, err)
		}
	}
}

// A gateway hears of each change at once, also of those that time makes, and of nothing when nothing changes.
func TestListWaitsForAnotherVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, start := sample(), time.Now()
		after := ""
		// next waits for another version, and tells when it came.
		next := func() (api.InstanceList, time.Duration) {
			t.Helper()
			list, err := r.List(t.Context(), "basket", after, time.Hour)
			if err != nil || list.Version == after {
				t.Fatalf("%+v, %v", list, err)
			}
			after = list.Version
			return list, time.Since(start)
		}
		renew := func(d time.Duration, addresses ...string) {
			time.AfterFunc(d, func() {
				for _, a := range addresses {
					if _, err := r.Register(request("basket", a)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		if list, at := next(); len(list.Instances) != 0 || list.Complete || at != 0 {
			t.Errorf("%+v at %s", list, at)
		}
		renew(3*time.Second, "h:1")
		if list, at := next(); len(list.Instances) != 1 || list.Complete || at != 3*time.Second || list.Instances[0].RemainingMS != 10_000 {
			t.Errorf("%+v at %s", list, at)
		}
		renew(time.Second, "h:2") // 4 s
		if list, at := next(); len(list.Instances) != 2 || list.Complete || at != 4*time.Second {
			t.Errorf("%+v at %s", list, at)
		}
		renew(6*time.Second, "h:1", "h:2") // 10 s; nothing new
		if list, at := next(); len(list.Instances) != 2 || !list.Complete || at != 13*time.Second {
			t.Errorf("%+v at %s: want it to be complete a TTL after the first word", list, at)
		}
		renew(6*time.Second, "h:2") // 19 s; h:1 is silent from 20 s on
		if list, at := next(); len(list.Instances) != 1 || list.Instances[0].Address != "h:2" || at != 20*time.Second {
			t.Errorf("%+v at %s", list, at)
		}
		if list, at := next(); len(list.Instances) != 1 || list.Complete || at != 29*time.Second {
			t.Errorf("%+v at %s: want the last to stay, though it is silent", list, at)
		}
		list, err := r.List(t.Context(), "basket", after, time.Minute)
		if err != nil || list.Version != after || time.Since(start) != 89*time.Second || list.Instances[0].RemainingMS != -60_000 {
			t.Errorf("%+v, %v: want the same list at the end of the wait", list, err)
		}
		if other, err := r.List(t.Context(), "shop", "one.0", 0); err != nil || len(other.Instances) != 0 {
			t.Errorf("another service: %+v, %v", other, err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		if _, err := r.List(ctx, "basket", after, time.Hour); !errors.Is(err, context.Canceled) {
			t.Errorf("ended with %v", err)
		}
		if all := r.All(); len(all) != 2 || all[0].Service != "basket" || all[1].Service != "shop" {
			t.Errorf("%+v", all)
		}
	})
}

// Whatever bytes come, the registry says yes or why not, and what it lists is what a gateway takes.
func FuzzRequest(f *testing.F) {
	f.Add([]byte(`{"service":"shop","address":"10.0.0.5:9000","zone":"z1","weight":2,"ttl_ms":15000}`))
	f.Add([]byte(`{"service":"shop","address":"[fe80::1%eth0]:1","weight":-9223372036854775808,"ttl_ms":9223372036854775807}`))
	f.Add([]byte(`{"service":"basket","address":"\u0000:1"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var req api.RegisterRequest
		if json.Unmarshal(data, &req) != nil {
			return
		}
		r := sample()
		answer, err := r.Register(req)
		if _, leaveErr := r.Leave(api.LeaveRequest{Service: req.Service, Address: req.Address}); err == nil && leaveErr != nil {
			t.Errorf("%q came and cannot go: %v", req.Address, leaveErr)
		}
		if _, again := r.Register(req); (again == nil) != (err == nil) {
			t.Errorf("%v, then %v", err, again)
		}
		if err == nil && (answer.TTLMS < MinTTL.Milliseconds() || answer.TTLMS > 30_000) {
			t.Errorf("registered for %d ms", answer.TTLMS)
		}
		for _, list := range r.All() {
			if err := list.Check(); err != nil {
				t.Errorf("%+v: %v", list, err)
			}
		}
	})
}
