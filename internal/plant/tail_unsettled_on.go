//go:build plant_tail_unsettled

package plant

// TailUnsettled: the tail of a returning site is skipped: neither applied nor logged.
const TailUnsettled = true
