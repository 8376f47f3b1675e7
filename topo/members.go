package topo

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Member is a full site that takes part. One that is joining has the others' changes and is kept for, but takes over
// nothing, is asked for no promise and owns nothing, until every other member has acknowledged that it is there.
type Member struct {
	Site    SiteID `json:"site"`
	Joining bool   `json:"joining,omitempty"`
}

// Takes tells whether a site takes part, joining or not. In a document without a list of members every site does.
func (o Ownership) Takes(site SiteID) bool {
	return len(o.Members) == 0 || slices.ContainsFunc(o.Members, func(m Member) bool { return m.Site == site })
}

// Full tells whether a site takes part and has joined: only then may it own.
func (o Ownership) Full(site SiteID) bool {
	return len(o.Members) == 0 || slices.Contains(o.Members, Member{Site: site})
}

// TakingPart lists the members, those that are joining included if asked for, whether or not a spec names them; of a
// document without a list, the sites of the spec.
func (o Ownership) TakingPart(spec []SiteID, joining bool) []SiteID {
	if len(o.Members) == 0 {
		return slices.Clone(spec)
	}
	out := make([]SiteID, 0, len(o.Members))
	for _, m := range o.Members {
		if joining || !m.Joining {
			out = append(out, m.Site)
		}
	}
	return out
}

// WithMembers gives a document without a list of members one.
func (o Ownership) WithMembers(sites []SiteID) Ownership {
	if len(o.Members) > 0 {
		return o
	}
	for _, s := range sites {
		o.Members = append(o.Members, Member{Site: s})
	}
	slices.SortFunc(o.Members, func(a, b Member) int { return cmp.Compare(a.Site, b.Site) })
	return o.sealed()
}

// Join takes a site in, as joining; a second time, as one that has joined.
func (o Ownership) Join(site SiteID) (Ownership, error) {
	if len(o.Members) == 0 {
		return o, errors.New("the document has no list of members")
	}
	if err := CheckName(string(site)); err != nil {
		return o, err
	}
	i := slices.IndexFunc(o.Members, func(m Member) bool { return m.Site == site })
	o.Members = slices.Clone(o.Members)
	switch {
	case i < 0:
		o.Members = append(o.Members, Member{Site: site, Joining: true})
		slices.SortFunc(o.Members, func(a, b Member) int { return cmp.Compare(a.Site, b.Site) })
	case o.Members[i].Joining:
		o.Members[i].Joining = false
	default:
		return o, fmt.Errorf("site %s is a member already", site)
	}
	o.Version++
	return o.sealed(), nil
}

// Leave lets a site go that owns nothing. One that was lost and is not settled is let go with forever only: what it
// committed last and nobody has is given up, and its cuts, which only its own stream could need, are taken out.
func (o Ownership) Leave(site SiteID, forever bool) (Ownership, error) {
	rest := slices.DeleteFunc(slices.Clone(o.Members), func(m Member) bool { return m.Site == site })
	switch {
	case len(rest) == len(o.Members):
		return o, fmt.Errorf("site %s is no member", site)
	case !slices.ContainsFunc(rest, func(m Member) bool { return !m.Joining }):
		return o, fmt.Errorf("site %s is the last one", site)
	case o.Unsettled(site) != "" && !forever:
		return o, fmt.Errorf("site %s is returning from failover %s: its tail is not settled", site, o.Unsettled(site))
	}
	next := o
	next.Keyspaces = make(map[KeyspaceID]Placement, len(o.Keyspaces))
	for ks, p := range o.Keyspaces {
		var ranges []Range
		for _, r := range p.Ranges {
			if r.Owner == site || r.Target == site {
				return o, fmt.Errorf("site %s owns buckets %d-%d of keyspace %s, or they are on their way to it", site, r.First, r.Last, ks)
			}
			r.Cut = r.Cut.without(site)
			if n := len(ranges); n > 0 && ranges[n-1].sameAs(r) {
				ranges[n-1].Last = r.Last
				continue
			}
			ranges = append(ranges, r)
		}
		p.Ranges = ranges
		next.Keyspaces[ks] = p
	}
	next.Members = rest
	next.Version++
	return next.sealed(), nil
}

// without is the chain without a site's cuts.
func (c *Cut) without(site SiteID) *Cut {
	if c == nil {
		return nil
	}
	rest := c.Earlier.without(site)
	if c.From == site {
		return rest
	}
	out := *c
	out.Earlier = rest
	return &out
}

// validateMembers refuses a list that is not in order, or of nobody who could own.
func (o Ownership) validateMembers() error {
	for i, m := range o.Members {
		if err := CheckName(string(m.Site)); err != nil {
			return fmt.Errorf("member %w", err)
		}
		if i > 0 && o.Members[i-1].Site >= m.Site {
			return fmt.Errorf("members %s and %s are not in order", o.Members[i-1].Site, m.Site)
		}
	}
	if len(o.Members) > 0 && !slices.ContainsFunc(o.Members, func(m Member) bool { return !m.Joining }) {
		return errors.New("every member is joining")
	}
	return nil
}
