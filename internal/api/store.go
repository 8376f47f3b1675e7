package api

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/atollhq/atoll/topo"
)

// StoreMember is one member of the store, or of the spec.
type StoreMember struct {
	Member  topo.SiteID `json:"member"`
	ID      string      `json:"id,omitempty"` // empty: it is in the spec only
	Peer    string      `json:"peer,omitempty"`
	Client  string      `json:"client,omitempty"`
	Role    string      `json:"role,omitempty"` // voter or learner
	Leader  bool        `json:"leader,omitempty"`
	Index   uint64      `json:"index,omitempty"` // of the last entry of the log that it has applied
	Lag     uint64      `json:"lag"`             // entries behind the member that is furthest
	Healthy bool        `json:"healthy"`
	Problem string      `json:"problem,omitempty"` // why it is not healthy, and what to do
}

// StoreMembers is who makes up the store.
type StoreMembers struct {
	Members []StoreMember `json:"members"`
	Voters  int           `json:"voters"`
	Healthy int           `json:"healthy"` // voters that answer
	Quorum  int           `json:"quorum"`  // voters that have to answer
	Problem string        `json:"problem,omitempty"`
}

// StoreAddRequest asks for the next step of a member's way into the store.
type StoreAddRequest struct {
	Member topo.SiteID `json:"member"`
	Peer   string      `json:"peer"` // host:port where the other members reach it
	Why    string      `json:"why,omitempty"`
}

// StoreAddAnswer says how far the member has come: waiting (for its process), learning, voting.
type StoreAddAnswer struct {
	Member   topo.SiteID `json:"member"`
	Standing string      `json:"standing"`
}

// StoreRemoveRequest asks for a member to be taken out of the store.
type StoreRemoveRequest struct {
	Member topo.SiteID `json:"member"`
	Force  bool        `json:"force,omitempty"` // do not count who answers this agent; etcd counts who answers each other
	Why    string      `json:"why,omitempty"`
}

// EvidenceRequest asks a site what its database knows of who owns what. With Seal the database is told of that generation
// of the store first: under an older one it opens nothing any more.
type EvidenceRequest struct {
	Seal uint64 `json:"seal,omitempty"`
}

// StoreMembers lists the members of the store.
func (c *Client) StoreMembers(ctx context.Context) (StoreMembers, error) {
	return call[StoreMembers](ctx, c, http.MethodGet, "/v1/store/members", nil)
}

// StoreAdd takes the next step of a member's way into the store; repeat it until the member is voting.
func (c *Client) StoreAdd(ctx context.Context, r StoreAddRequest) (StoreAddAnswer, error) {
	return call[StoreAddAnswer](ctx, c, http.MethodPost, "/v1/store/add", r)
}

// StoreRemove takes a member out of the store.
func (c *Client) StoreRemove(ctx context.Context, r StoreRemoveRequest) (StoreAddAnswer, error) {
	return call[StoreAddAnswer](ctx, c, http.MethodPost, "/v1/store/remove", r)
}

// StoreBackup writes a snapshot of the store, its checksum at the end. A copy that was broken off is known by that.
func (c *Client) StoreBackup(ctx context.Context, w io.Writer) error {
	resp, err := c.send(ctx, http.MethodGet, "/v1/store/backup", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("backup through the agent at %s: %w", c.addr, err)
	}
	return nil
}

// Evidence asks what the site's database knows of who owns what.
func (c *Client) Evidence(ctx context.Context, r EvidenceRequest) (topo.Evidence, error) {
	return call[topo.Evidence](ctx, c, http.MethodPost, "/v1/evidence", r)
}
