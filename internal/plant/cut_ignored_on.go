//go:build plant_cut_ignored

package plant

// CutIgnored: a survivor that did not take over applies the lost site's changes beyond the cut as if nothing had been.
const CutIgnored = true
