package gateway

import (
	"encoding/json"
	"net/http"
	"testing"

	"github.com/atollhq/atoll/internal/api"
	"github.com/atollhq/atoll/topo"
)

// standBy publishes a document as an agent that stands by does, and refuses acknowledgements.
func (a *testAgent) standBy(o topo.Ownership) {
	line, err := json.Marshal(api.ViewUpdate{Format: api.ViewFormat, Ownership: o.Encode(), Standby: true})
	must0(err)
	a.publishLine(line)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.refuseAck = true
}

func (a *testAgent) activate(o topo.Ownership, opened uint64) {
	a.mu.Lock()
	a.mu.refuseAck = false
	a.mu.Unlock()
	a.publish(o, opened)
}

// TestTwoAgents: the view and the lease come from the active one of a site's two agents, whichever it is; from a standby
// the document is taken, and never a word about the fence.
func TestTwoAgents(t *testing.T) {
	t.Parallel()
	s := newSite(t, "a", http.NotFoundHandler())
	second := newTestAgent(t)
	o := half()
	s.agent.standBy(o)
	conf := s.config()
	conf.Agents = append(conf.Agents, Agent{Site: "a", URL: second.URL})
	s.start(t, conf)
	eventually(t, "the standby's document is in use", func() bool { return s.gw.views.load().version().version == o.Version })
	if s.gw.lease.live() {
		t.Error("the gateway has a lease from a standby")
	}
	second.activate(o, o.Version)
	s.ready(t, o.Version)
	eventually(t, "the active agent's word is heard", func() bool { return s.gw.views.load().opened == o.Version })

	// They change places: the one that was active stands by from now on, on the stream that it has.
	next := change(change(o.StartMove("users", topo.Spans{{First: 8, Last: 8}}, "h", "a")).CommitMove("users", topo.Spans{{First: 8, Last: 8}}, "h"))
	second.standBy(next)
	s.agent.activate(next, next.Version)
	eventually(t, "the other one's word is heard", func() bool { return s.gw.views.load().opened == next.Version })
	eventually(t, "and acknowledged", func() bool { return s.agent.acked("a/g1").Version == next.Version })
}
