// Package assess says, before anything is bought or moved, where an estate would break, what each service gets under
// each way of running it, what that costs and saves, and which services do not deserve it.
//
// The main type is [Estate], read from a file by [Read]: what fails, sites, links, shared causes, services and their
// calls, prices. Every number keeps where it was written and whether it was given or assumed, so that every answer can
// be traced back to its inputs.
//
// It guarantees that probabilities are exact (package fault) and agree with a simulation of the same model, and that
// nothing is invented in silence: what the file leaves out is filled in by defaults that the report names as assumed.
//
// It refuses what cannot be: units that do not fit, circles, names that do not exist, a quorum of two sites. Everything
// is pure but for reading files: no clock, no network, and randomness only from the seed in the file.
package assess
