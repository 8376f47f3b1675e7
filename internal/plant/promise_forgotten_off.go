//go:build !plant_promise_forgotten

package plant

// PromiseForgotten: a site takes over although it has promised not to, and not so long.
const PromiseForgotten = false
