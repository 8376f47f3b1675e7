// Package sdk is what a Go service of a deployment uses: to reach the site that owns a key, to run a job only where its
// bucket is owned, and to tell its gateway what the fence refused.
//
//   - [View] follows the ownership, as a gateway of this site passes it on.
//   - [Transport] is an http.RoundTripper that routes as the gateway does; package sdk/rpc has the same for gRPC.
//   - [Session] carries what its holder has written and seen from answer to request.
//   - [Guard] runs a function while a bucket is owned here, with its epoch.
//   - [Fenced] reads the fence's refusal from a PostgreSQL error, and [WriteFenced] answers it.
//
// It guarantees that a request is sent again only where the one before was not executed: it was not sent, or a gateway said
// so (see [OutcomeOf]). Without a view everything goes to this site's own gateways, which route as always.
//
// It guarantees nothing about who may write. A view is a copy, and may be late; the fence in the database has the last word
// (docs/adr/018). A service that is right with the SDK is right without it, and slower.
package sdk
