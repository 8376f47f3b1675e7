// Package plant names the bugs that can be planted into a build to show that the checks of the lab catch them. Each
// is a constant that is false in the ordinary binary, so that the compiler leaves its code out; a build with the tag
// of the same name (PLANT=fence-removed is tag plant_fence_removed) sets it. `atoll --version` names what is planted.
package plant

// Planted lists the names of the bugs in this build; empty in the ordinary binary.
func Planted() []string {
	var out []string
	for _, p := range []struct {
		name string
		on   bool
	}{
		{"fence-removed", FenceRemoved},
		{"marker-skipped", MarkerSkipped},
		{"marker-unannounced", MarkerUnannounced},
		{"early-release", EarlyRelease},
		{"wait-out-removed", WaitOutRemoved},
		{"epoch-ignored", EpochIgnored},
		{"takeover-unconditional", TakeoverUnconditional},
		{"lease-relative", LeaseRelative},
		{"dropped-conflict", DroppedConflict},
		{"tail-unsettled", TailUnsettled},
		{"open-before-applier-idle", OpenBeforeApplierIdle},
		{"frozen-now", FrozenNow},
		{"deadline-late", DeadlineLate},
		{"abort-keeps-epoch", AbortKeepsEpoch},
		{"open-unconditional", OpenUnconditional},
		{"stale-view", StaleView},
		{"control-row-lock-removed", ControlRowLockRemoved},
		{"lease-logged", LeaseLogged},
		{"vector-ignored", VectorIgnored},
		{"promise-forgotten", PromiseForgotten},
		{"cut-ignored", CutIgnored},
		{"session-ignored", SessionIgnored},
	} {
		if p.on {
			out = append(out, p.name)
		}
	}
	return out
}
