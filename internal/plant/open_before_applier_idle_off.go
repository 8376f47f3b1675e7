//go:build !plant_open_before_applier_idle

package plant

// OpenBeforeApplierIdle: a failover opens while its own apply transaction from the lost site may still be under way.
const OpenBeforeApplierIdle = false
