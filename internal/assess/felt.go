package assess

import "slices"

// felt is what the loss of one site is to a service that another site may still serve: its own interruption, and those
// of what it needs at every answer. It is back when all of them are.
type felt struct {
	site  string
	share float64 // of its users
	own   float64 // of them, whom its own placement loses: their newest writes may be gone
	via   int     // the service whose failure there it is: itself where it serves there
	waits []int   // the services whose recoveries it waits for
}

// losses lists the sites whose loss a service feels while something of it runs elsewhere: its own first, in their order.
func (h *shape) losses(e *Estate, spot func(service int) *Placement, service int) []felt {
	p := spot(service)
	sites := slices.Clone(p.Sites)
	for _, m := range h.hard[service] {
		for _, s := range spot(m).Sites {
			if !slices.Contains(sites, s) {
				sites = append(sites, s)
			}
		}
	}
	slices.Sort(sites[len(p.Sites):])
	var out []felt
	for _, site := range sites {
		if p.Pattern == Single && site == p.Sites[0] {
			continue // there is nothing elsewhere
		}
		if f := h.loss(e, spot, service, site); f.share > 0 {
			out = append(out, f)
		}
	}
	return out
}

func (h *shape) loss(e *Estate, spot func(service int) *Placement, service int, site string) felt {
	f := felt{site: site, via: service}
	if p := spot(service); p.Pattern != Single {
		if i := slices.Index(p.Sites, site); i >= 0 {
			f.own = p.interrupted(i)
		}
	}
	if f.share = f.own; f.own > 0 {
		f.waits = append(f.waits, service)
	}
	slowest := len(Patterns)
	for _, m := range h.hard[service] {
		p := spot(m)
		i := slices.Index(p.Sites, site)
		if m == service || i != 0 || p.Pattern == Single {
			continue // of what is active, calls go to a site that works
		}
		share := 1.0
		switch p.Pattern {
		case SameCity, Partitioned:
			continue
		case OneWriter:
			share = h.writes(e, service, m)
		}
		if share == 0 {
			continue
		}
		f.share, f.waits = max(f.share, share), append(f.waits, m)
		if r := rank(p.Pattern); f.own == 0 && r < slowest {
			f.via, slowest = m, r
		}
	}
	return f
}

// writes is the share of a service's answers that need a write of another one, at most.
func (h *shape) writes(e *Estate, from, to int) float64 {
	sum := 0.0
	for _, c := range e.Services[h.services[from]].Calls {
		switch callee := h.service[c.To]; {
		case c.Optional:
		case callee == to:
			sum += c.Times.Mean() * c.Writes.Mean()
		case slices.Contains(h.hard[callee], to):
			sum += min(1, c.Times.Mean()) * h.writes(e, callee, to)
		}
	}
	return min(1, sum)
}

// losses is the same for a plan, remembered.
func (v *evaluator) losses(a *arrangement, service int) []felt {
	if v.base != nil && !v.varied.touchesWrites(v, service) {
		return v.base.losses(a, service)
	}
	var space [128]byte
	key := v.hardKey(space[:0], a, service)
	if out, known := v.felt[string(key)]; known {
		return out
	}
	out := v.shape.losses(v.Estate, func(m int) *Placement { return &v.spot(a, m).Placement }, service)
	v.felt[string(key)] = out
	return out
}

// hardKey names where and how a service and all that it needs at every answer run.
func (h *shape) hardKey(key []byte, a *arrangement, service int) []byte {
	key = append(key, byte(service), byte(service>>8))
	for _, i := range h.hard[service] {
		key = append(key, byte(a.at[i]), byte(a.at[i]>>8))
	}
	return key
}
