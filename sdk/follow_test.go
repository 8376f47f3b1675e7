package sdk

import (
	"context"
	"encoding/json"
	"testing"
	"time"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// Whatever a line holds, the view stays one that can be asked, and never goes back.
func FuzzLine(f *testing.F) {
	o := guardOwnership()
	good, err := json.Marshal(api.ViewUpdate{Format: 1, Ownership: o.Encode(), OpenedVersion: 1, Gateway: &api.GatewayWord{Site: "a", AgeMS: 5, LeaseMS: 60_000, Table: &guardRoutes}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1,"ownership":null,"gateway":{"site":"a","age_ms":-9223372036854775808,"lease_ms":9223372036854775807,"table":{}}}`))
	f.Add([]byte(`{"format":1,"ownership":` + string(o.Encode()) + `,"gateway":{"site":"a","age_ms":9223372036854775,"lease_ms":9223372036854775807}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		v, err := NewView(ViewConfig{Site: "a", Gateways: []string{"http://127.0.0.1:1"}})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		for _, text := range [][]byte{good, line} {
			before := v.document()
			u, err := decodeLine(text, "a")
			if err == nil {
				err = v.apply(u, now, false)
			}
			if after := v.document(); before != nil && before.Ownership.Newer(after.Ownership) || err != nil && after != before {
				t.Errorf("went from %+v to %+v (%v)", before, after, err)
			}
		}
		if until := v.current.Load().lease; until.Sub(now) > maxLease || v.current.Load().heard.After(now) {
			t.Errorf("a lease until %s, heard %s", until, v.current.Load().heard)
		}
		if v.document().Buckets("users") == 2 && v.current.Load().spaces["users"] == guardRoutes.Keyspaces["users"] {
			if _, err := v.Place("users", "7"); err != nil {
				t.Error(err)
			}
		}
		_ = NewGuard(v, 0).Run(t.Context(), "users", "7", func(context.Context, topo.Epoch) error { return nil })
	})
}
