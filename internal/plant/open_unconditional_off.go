//go:build !plant_open_unconditional

package plant

// OpenUnconditional: the fence opens at whatever epoch an order names, also one that it has left behind (I6).
const OpenUnconditional = false
