package lab

import (
	"maps"
	"os/exec"
	"slices"

	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/internal/supervise"
	"github.com/atollhq/atoll/topo"
)

// ground is what the sites of a deployment stand on: where their processes run and listen, and how those of one site
// reach another.
type ground interface {
	// addresses picks where a site listens; a witness has a store only.
	addresses(site topo.SiteID, witness bool, gateways int) (*addresses, error)
	// reach is how the processes of one site reach another; nil: at its addresses.
	reach(from, to topo.SiteID, at *addresses) (*spec.Reach, error)
	// peerEnv is what a site's store needs in its environment to reach the others by their advertised names.
	peerEnv(from topo.SiteID, at map[topo.SiteID]*addresses) ([]string, error)
	// start starts a process at a site, "" for beside the lab.
	start(site topo.SiteID, cmd *exec.Cmd) (*supervise.Process, error)
}

// proxies is the ground of everyday: every site on loopback ports of its own, every path through a proxy of the network.
type proxies struct {
	*Network
	directDatabase bool
}

func (p *proxies) addresses(site topo.SiteID, witness bool, gateways int) (*addresses, error) {
	a, err := pickAddresses(witness, gateways)
	if err != nil {
		return nil, err
	}
	// The one name under which all store members know this site's; each source site's CONNECT proxy leads it over its own path.
	a.peerName = string(site) + ".store.atoll" + a.storePeer[len("127.0.0.1"):]
	if !witness && p.directDatabase {
		a.databasePath = local(a.database)
	} else if !witness {
		a.databasePath, err = p.Path(site, site, Database, local(a.database))
	}
	return a, err
}

func (p *proxies) reach(from, to topo.SiteID, a *addresses) (*spec.Reach, error) {
	r := &spec.Reach{}
	var err error
	open := func(kind Kind, target string) string {
		if err != nil {
			return ""
		}
		var addr string
		addr, err = p.Path(from, to, kind, target)
		return addr
	}
	r.StoreClient = open(StoreClient, a.storeClient)
	if a.witness() {
		return r, err
	}
	r.AgentAPI = open(AgentAPI, a.api)
	r.Link = open(Link, a.link)
	r.Gateways = map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(a.gateways)) {
		r.Gateways[name] = open(GatewayPeer, a.gateways[name].peer)
	}
	return r, err
}

func (p *proxies) peerEnv(from topo.SiteID, at map[topo.SiteID]*addresses) ([]string, error) {
	hosts := map[string]Destination{}
	for site, a := range at {
		hosts[a.peerName] = Destination{Site: site, Addr: a.storePeer}
	}
	proxy, err := p.ConnectProxy(from, StorePeer, hosts)
	return []string{"HTTPS_PROXY=http://" + proxy, "https_proxy=http://" + proxy, "NO_PROXY=", "no_proxy="}, err
}

func (p *proxies) start(site topo.SiteID, cmd *exec.Cmd) (*supervise.Process, error) {
	return startBeside(site, cmd)
}
