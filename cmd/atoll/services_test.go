package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/atollhq/atoll/internal/api"
)

func TestPrintServices(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	err := printServices(&out, []siteServices{
		{Site: "a", Services: []api.InstanceList{
			{Service: "basket", Complete: true, Instances: []api.Registered{
				{Instance: api.Instance{Address: "10.0.0.5:9000", Zone: "z1", Weight: 2}, RemainingMS: 21_300},
				{Instance: api.Instance{Address: "10.0.0.6:9000"}, RemainingMS: -40_000}}},
			{Service: "shop"}}},
		{Site: "b", Problem: "no answer"},
	})
	want := `SITE  SERVICE  INSTANCE       ZONE  WEIGHT  HEARD
a     basket   10.0.0.5:9000  z1    2       for 21s more
a     basket   10.0.0.6:9000  -     1       silent for 40s too long
! shop at site a: the agent has not heard its instances for long enough to know them all; gateways keep those that they know
! site b: no answer
`
	if err != nil || out.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, &out, want)
	}
}

// A gateway looks for registered instances where the spec says so; `atoll register` says what is missing.
func TestRegister_SaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	register := func(args ...string) error {
		_, err := run(t, append([]string{"register", "-f", p.file, "--site", "a"}, args...)...)
		return err
	}
	wantError(t, register("--service", "shop", "--address", "127.0.0.1:9000"), `--service "shop"`, "discover: {register: 30s}")
	text, err := os.ReadFile(p.file)
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "shop: http://127.0.0.1:9000", "shop: {url: 'http://shop.internal', discover: {register: 30s}}", 1)
	if err := os.WriteFile(p.file, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(t, register("--service", "shop", "--address", "127.0.0.1:9000"), "atoll ca issue service shop")
	if out, err := run(t, "ca", "issue", "service", "shop", "-f", p.file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantError(t, register("--service", "shop"), "instance of service shop: address")
	_, err = run(t, "services", "-f", p.file, "--at", "a")
	wantError(t, err, "no agent answers")
}
