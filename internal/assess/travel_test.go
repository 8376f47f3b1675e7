package assess

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
)

// travel writes the estate of a seller of tickets: two cities, two data centres of its own in one of them, a region of
// a public cloud in the other and a witness, and so many services in four layers that call down.
func travel(services int, seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 7))
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	b.WriteString(`estate: 1
title: travel
currency: EUR
prices: {own_core_month: ~9, cloud_core_month: ~25, own_gb_month: 0.05, cloud_gb_month: 0.10, same_city_gb: 0.01, cross_city_gb: 0.02, person_month: ~9k}
curves:
  web: {hours: [0.2, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.9, 1, 0.9, 0.9, 0.9, 0.9, 0.9, 1, 1, 0.9, 0.7, 0.5, 0.3], usual: 40%, peak_days: 10}
components:
  feed-n: {kind: power, every: ~3000h, lasts: 1h..2h..6h}
  duct: {kind: duct, every: ~3y}
  region: {kind: network, every: ~400d, lasts: ~3h}
  carrier-1: {kind: carrier, every: 200d, lasts: 4h}
  carrier-2: {kind: carrier, every: 200d, lasts: 4h}
`)
	for _, dc := range []string{"n1", "n2"} {
		line("  ups-%s: {kind: power, every: 5y, lasts: 8h}\n  generator-%s: {kind: power, down: ~2%%, lasts: 24h}", dc, dc)
		line("  chiller-%s-a: {kind: cooling, every: ~1y}\n  chiller-%s-b: {kind: cooling, every: ~1y}\n  switch-%s: {kind: network, every: ~6y}", dc, dc, dc)
	}
	line("sites:")
	for _, dc := range []string{"n1", "n2"} {
		line("  %s: {kind: own, city: north, needs: (feed-n or (ups-%s and generator-%s)) and (chiller-%s-a or chiller-%s-b) and switch-%s and (carrier-1 or carrier-2), cores: 1600, fixed_month: 20k}", dc, dc, dc, dc, dc, dc)
	}
	b.WriteString(`  south: {kind: cloud, city: south, needs: region}
  w: {kind: witness}
links:
  - {between: [n1, n2], rtt: 1ms, needs: duct}
  - {between: [n1, south], rtt: ~28ms, needs: carrier-1 or carrier-2}
  - {between: [n2, south], rtt: ~28ms, needs: carrier-1 or carrier-2}
shared:
  - {name: bad release, every: ~60d, lasts: 20m..40m..2h, hits: {services: [all]}}
  - {name: name service, every: ~2y, lasts: 1h, hits: {sites: [n1, n2]}}
services:
`)
	layer := func(i int) int { return 4 * i / services }
	for i := range services {
		line("  v%02d:", i)
		line("    now: {pattern: single, sites: [%s]}", []string{"n1", "n2", "n1", "south"}[r.IntN(4)])
		var calls []string
		for j := i + 1; j < services; j++ {
			if layer(j) == layer(i)+1 && r.IntN(5) == 0 {
				calls = append(calls, fmt.Sprintf("{to: v%02d, times: %d, optional: %t, parallel: %t}", j, 1+r.IntN(3), r.IntN(3) == 0, r.IntN(2) == 0))
			}
		}
		if len(calls) > 0 {
			line("    calls: [%s]", strings.Join(calls, ", "))
		}
		line("    servers: {count: %d, need: %d}", 3+r.IntN(4), 2)
		line("    demand: {peak: %d, cores: %d, curve: web}", 50+r.IntN(2000), 4+r.IntN(40))
		if layer(i) > 0 {
			line("    data: {size: %dGB, changes: %dKB/s, by_user: ~%d%%}", 1+r.IntN(500), 10+r.IntN(2000), r.IntN(101))
		}
		if layer(i) == 0 {
			line("    latency: {p50: 20ms, p99: 80ms, budget_p99: %dms}", 300+r.IntN(700))
			line("    revenue: {minute: ~%d, deferred: ~30%%}", r.IntN(900))
			line("    wants: {availability: 99.95%%, rto: 5m, rpo: 10s}")
		}
	}
	return b.String()
}

// A company of 40 services is assessed while one waits: in two seconds without simulation, in ten with.
func TestFortyServicesInTwoSeconds(t *testing.T) {
	e := estate(t, travel(count(), 1))
	r, err := Assess(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(r.Verdict)
	t.Logf("%d derivations, %d doubts", len(r.Book), len(r.Doubts))
}

func count() int {
	n, _ := strconv.Atoi(os.Getenv("N"))
	if n == 0 {
		n = 40
	}
	return n
}
