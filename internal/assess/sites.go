package assess

import "fmt"

// siteAnswers say what each site is worth, as disaster recovery and as capacity.
func (v *evaluator) siteAnswers(book Book) ([]SiteAnswer, error) {
	var out []SiteAnswer
	for _, l := range v.siteLoads(v.today) {
		s, err := v.siteDown(v.site[l.Site])
		if err != nil {
			return nil, err
		}
		n := v.ask(s)
		inputs := v.inputsOf(s.model)
		sets := Part{Name: "minimal cut sets", Value: float64(s.tree.CutSets().Total), Unit: Count}
		a := SiteAnswer{Site: l.Site, Load: l, Singles: v.singles(n)}
		a.Unavailable = book.Note(Derivation{ID: "site." + l.Site + ".unavailable", What: "share of time in which site " + l.Site + " does not work", Value: n.down, Unit: Ratio,
			Method: "exact, from what it needs", Parts: []Part{sets}, Inputs: inputs})
		a.PerYear = book.Note(Derivation{ID: "site." + l.Site + ".failures", What: "how often a year site " + l.Site + " fails", Value: n.perSecond * year, Unit: Count,
			Method: "Σ Birnbaum importance × frequency of each event", Parts: []Part{sets}, Inputs: inputs})
		worst := l.Usual
		for other, name := range v.sites {
			if name != l.Site && v.Sites[name].Kind != Witness {
				worst = max(worst, l.Usual+v.foreign(l.Site, other))
			}
		}
		a.CanTakeOver = worst <= limit
		a.Text = v.siteText(l, worst)
		out = append(out, a)
	}
	return out, nil
}

// siteText says how full a site is, and would be with the worst other one's load.
func (v *evaluator) siteText(l SiteLoad, worst float64) string {
	if v.Sites[l.Site].Kind == Cloud && v.Sites[l.Site].Cores.Line == 0 {
		return "takes what is asked of it: the file names no limit"
	}
	text := fmt.Sprintf("runs at %.0f %% of its cores at the peak", 100*l.Usual)
	switch {
	case worst > limit:
		return text + fmt.Sprintf("; with the worst other site's load it would need %.0f %%: it is capacity, not disaster recovery", 100*worst)
	case worst == l.Usual:
		return text + "; no other site serves anything that it could take over"
	}
	return text + fmt.Sprintf("; it could take the worst other site's load too (%.0f %%)", 100*worst)
}

// foreign is what all that another site serves today would take of a site's cores.
func (v *evaluator) foreign(site string, other int) float64 {
	cores := 0.0
	for i, name := range v.services {
		cores += v.Services[name].Demand.Cores.Mean() * v.spot(v.today, i).carries[0][other]
	}
	return cores / v.Sites[site].Cores.Mean()
}
