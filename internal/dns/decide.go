package dns

import (
	"net/netip"
	"slices"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// Site is what the spec says of one site's way to users.
type Site struct {
	ID        topo.SiteID
	Weight    int                     // share of the users; 0: only while no site with a weight is well
	Addresses []netip.Addr            // while the site is well
	Gateways  map[string][]netip.Addr // while that gateway is connected
	Count     int                     // of its gateways: with fewer connected, its weight is less
}

// Basis is what a choice rests on.
type Basis string

const (
	Healthy  Basis = "healthy"   // on sites that are known to be well, or were when they were last heard of
	LastGood Basis = "last good" // no site is known to be well: the last choice that was made of such
	Everyone Basis = "everyone"  // nor has there been such a choice: every site
)

// Share is one site's part of a choice.
type Share struct {
	Site      topo.SiteID  `json:"site"`
	Weight    int          `json:"weight"` // at least 1
	Addresses []netip.Addr `json:"addresses"`
}

// Choice is where users are sent. It is empty only if the spec has no address.
type Choice struct {
	Basis  Basis   `json:"basis"`
	Shares []Share `json:"shares"` // in order of site
}

// Equal tells whether two choices are the same.
func (c Choice) Equal(o Choice) bool {
	return c.Basis == o.Basis && slices.EqualFunc(c.Shares, o.Shares, func(a, b Share) bool {
		return a.Site == b.Site && a.Weight == b.Weight && slices.Equal(a.Addresses, b.Addresses)
	})
}

// Decide chooses where users are sent. last is the last choice with the basis [Healthy], zero if there was none; it may
// come from an earlier spec: what that had and this has not is left out.
//
//	member  lease    gateways          → the site
//	no      any      any               → out, unless there is nobody else at all
//	yes     live     some, or unknown  → well
//	yes     live     known, none       → out
//	yes     lapsed   any               → out
//	yes     unknown  any               → as it was in the last choice
//
// What is well and has a weight is chosen; else what is well; else the last choice; else everyone.
func Decide(sites []Site, health api.Health, last Choice) Choice {
	last = last.within(sites)
	known := map[topo.SiteID]api.SiteHealth{}
	for _, h := range health.Sites {
		known[h.Site] = h
	}
	var well, members, all []Share
	for _, s := range sites {
		everything := Share{Site: s.ID, Weight: max(s.Weight, 1), Addresses: s.all()}
		if len(everything.Addresses) == 0 {
			continue
		}
		all = append(all, everything)
		h, ok := known[s.ID]
		if ok && !h.Member {
			continue
		}
		members = append(members, everything)
		switch was, wasWell := last.of(s.ID); {
		case !ok || h.Lease != api.LeaseLive && h.Lease != api.LeaseLapsed:
			if wasWell {
				was.Weight = s.Weight
				well = append(well, was)
			}
		case h.Lease == api.LeaseLive:
			if share, any := s.share(h); any {
				well = append(well, share)
			}
		}
	}
	if len(well) > 0 {
		return Choice{Healthy, weighed(well)}
	}
	if last = last.among(members); len(last.Shares) > 0 {
		return Choice{LastGood, last.Shares}
	}
	if len(members) > 0 {
		return Choice{Everyone, members}
	}
	return Choice{Everyone, all}
}

// weighed leaves sites without a weight out, or if no other is there, gives them all the same.
func weighed(well []Share) []Share {
	var out []Share
	for _, s := range well {
		if s.Weight > 0 {
			out = append(out, s)
		}
	}
	if len(out) > 0 {
		return out
	}
	for i := range well {
		well[i].Weight = 1
	}
	return well
}

// share is the part of a site whose lease is live; false: no user can reach it.
func (s Site) share(h api.SiteHealth) (Share, bool) {
	if !h.GatewaysKnown {
		return Share{Site: s.ID, Weight: s.Weight, Addresses: s.all()}, true
	}
	out := Share{Site: s.ID, Weight: s.Weight}
	if len(h.Gateways) > 0 {
		out.Addresses = slices.Clone(s.Addresses)
	}
	for name, list := range s.Gateways {
		if slices.Contains(h.Gateways, name) {
			out.Addresses = append(out.Addresses, list...)
		}
	}
	out.Addresses = tidy(out.Addresses)
	if connected := len(h.Gateways); s.Weight > 0 && connected < s.Count {
		out.Weight = max(1, s.Weight*connected/s.Count)
	}
	return out, len(out.Addresses) > 0
}

// all are the site's addresses, whatever is connected.
func (s Site) all() []netip.Addr {
	out := slices.Clone(s.Addresses)
	for _, list := range s.Gateways {
		out = append(out, list...)
	}
	return tidy(out)
}

// tidy sorts addresses and takes what stands there twice out.
func tidy(list []netip.Addr) []netip.Addr {
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list)
}

func (c Choice) of(site topo.SiteID) (Share, bool) {
	for _, s := range c.Shares {
		if s.Site == site {
			return s, true
		}
	}
	return Share{}, false
}

// within is what a choice has that the sites have too.
func (c Choice) within(sites []Site) Choice {
	out := Choice{Basis: c.Basis}
	for _, share := range c.Shares {
		s, ok := siteByID(sites, share.Site)
		if _, twice := out.of(share.Site); !ok || twice {
			continue
		}
		have := s.all()
		kept := Share{Site: share.Site, Weight: max(share.Weight, 1)}
		for _, a := range share.Addresses {
			if slices.Contains(have, a) {
				kept.Addresses = append(kept.Addresses, a)
			}
		}
		if kept.Addresses = tidy(kept.Addresses); len(kept.Addresses) > 0 {
			out.Shares = append(out.Shares, kept)
		}
	}
	return out
}

// among is what a choice has of the sites in the list.
func (c Choice) among(list []Share) Choice {
	out := Choice{Basis: c.Basis}
	for _, share := range c.Shares {
		if slices.ContainsFunc(list, func(s Share) bool { return s.Site == share.Site }) {
			out.Shares = append(out.Shares, share)
		}
	}
	return out
}
