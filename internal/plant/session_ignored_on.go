//go:build plant_session_ignored

package plant

// SessionIgnored: a gateway reads from its site's copy whatever the session has seen.
const SessionIgnored = true
