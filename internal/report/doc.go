// Package report shows what an assessment found: as text for a terminal, as one self-contained page, as a derivation
// that answers where a number comes from, and as gates that a build can fail on.
//
// Its main functions take a [assess.Report]: [Text], [HTML], [Explain], [Check]. [Faults] and [Pairs] show the analysis
// of a fault tree and of a network.
//
// It guarantees that nothing in a name or a label, which come from files, is markup or a terminal's command in what it
// writes, and that a page needs nothing but itself: no script, no font, no request.
//
// It refuses to compute: what is shown was computed by packages assess and fault. Everything here is pure.
package report
