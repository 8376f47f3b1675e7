package assess

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// fixes ranks what takes services down alone by what would be saved if it never failed again.
func (v *evaluator) fixes() ([]Fix, error) {
	victims := map[string][]string{}
	for i, name := range v.services {
		s, err := v.everywhere(v.today, i)
		if err != nil {
			return nil, err
		}
		for _, e := range s.singles {
			event := s.tree.Events()[e]
			victims[event] = append(victims[event], name)
		}
	}
	loss, downtime, err := v.sums()
	if err != nil {
		return nil, err
	}
	var out []Fix
	for event, services := range victims {
		less, shorter, err := v.with(&variation{service: -1, never: event}).sums()
		if err != nil {
			return nil, err
		}
		f := Fix{Event: plain(event), Services: services, Saves: max(0, loss-less)}
		if downtime > 0 {
			f.Share = max(0, 1-shorter/downtime)
		}
		f.Text = fmt.Sprintf("alone it takes down %s: %s %s of loss a year, %.0f %% of all downtime; %s", counted(len(services), "service"), amount(f.Saves), v.Currency, 100*f.Share, v.remedy(event))
		out = append(out, f)
	}
	slices.SortFunc(out, func(a, b Fix) int {
		return cmp.Or(cmp.Compare(b.Saves, a.Saves), cmp.Compare(b.Share, a.Share), cmp.Compare(a.Event, b.Event))
	})
	return out, nil
}

// sums adds up losses and downtimes of all services as they are today.
func (v *evaluator) sums() (loss, downtime float64, err error) {
	for i := range v.services {
		b, err := v.brief(v.today, i)
		if err != nil {
			return 0, 0, err
		}
		loss, downtime = loss+b.loss, downtime+b.downtime
	}
	return loss, downtime, nil
}

// remedy is what helps against a kind of event.
func (v *evaluator) remedy(event string) string {
	for _, cause := range v.Shared {
		if cause.Data && event == causePrefix+cause.Name {
			return "no other site helps, only a backup that is tested"
		}
	}
	switch kind := v.kindOf(event); {
	case kind == "servers":
		return "add a server"
	case kind == "shared cause":
		return "no other site helps: make it rarer or shorter, or let it strike one place at a time"
	case kind == "zone", kind == "region":
		return "only running elsewhere as well helps"
	case strings.Contains(kind, "carrier"), strings.Contains(kind, "duct"), strings.Contains(kind, "network"):
		return "add a second one that shares no way with it"
	default:
		return "add a second one that shares nothing with it"
	}
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
