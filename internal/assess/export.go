package assess

import (
	"fmt"
	"maps"
	"slices"

	"github.com/atollhq/atoll/internal/fault"
)

// Tree is the fault tree of services as they run under a plan, for other tools; without a service it is that of all.
// One service's top is its failure at all of its sites; several share one tree, whose top is that any of them fails.
func (e *Estate) Tree(plan Plan, services ...string) (*fault.Model, error) {
	if len(services) == 0 {
		services = slices.Sorted(maps.Keys(e.Services))
	}
	b := e.newTree(plan)
	b.m.Title = e.Title
	var any []fault.Formula
	for _, name := range services {
		if e.Services[name] == nil {
			return nil, fmt.Errorf("service %q does not exist; %s", name, nearest(name, slices.Sorted(maps.Keys(e.Services))))
		}
		any = append(any, b.service(name))
	}
	b.m.Top = servicePrefix + services[0]
	if len(services) > 1 {
		b.m.Top = "any service"
		b.m.Gates[b.m.Top] = fault.AnyOf(any...)
	}
	return b.m, nil
}

// ParseNumber reads a number as a file has it: "~2h", "95%", "1h..3h". The error says what to write.
func ParseNumber(text string, unit Unit) (Number, error) { return parseNumber(text, unit) }
