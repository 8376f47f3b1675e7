//go:build !plant_abort_keeps_epoch

package plant

// AbortKeepsEpoch: an aborted handover leaves its buckets at their epoch.
const AbortKeepsEpoch = false
