//go:build plant_epoch_ignored

package plant

// EpochIgnored: changes that were committed under an epoch that is over are applied as if they were ordinary (I5).
const EpochIgnored = true
