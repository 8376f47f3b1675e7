package postgres

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/atollhq/atoll/topo"
)

// AdoptFor is how long an adopted database accepts writes without an agent.
const AdoptFor = 24 * time.Hour

// adoption plans that the application goes on writing while the fence is put in under it: the site holds every bucket
// at epoch 1, as the first ownership document will say, and has a long first lease, which the agent takes back when
// it starts. It comes before the first guard. Only keyspaces that are new here are opened, so that a database that has
// run before is never opened by it.
func (p *planner) adoption(all map[topo.KeyspaceID]fenceKeyspace) {
	if !p.d.Adopt {
		return
	}
	const group = "adoption"
	for _, name := range slices.Sorted(maps.Keys(p.d.Keyspaces)) {
		if _, ran := p.cat.keyspaces[name]; ran {
			continue
		}
		k := all[name]
		p.add(Statement{Group: group, Reason: "this site holds keyspace " + string(name) + " at epoch 1",
			SQL: fmt.Sprintf("INSERT INTO atoll.bucket (site, keyspace, bucket, epoch, state, handover) SELECT %s, %s, b, 1, 'open', 'adopted' FROM generate_series(0, %d) b",
				sqlLiteral(string(p.d.Site)), sqlLiteral(string(name)), k.buckets-1)})
		p.add(Statement{Group: group, Reason: "and its fence is open for it",
			SQL: fmt.Sprintf("SELECT setval(atoll.word_of(%d::smallint, w << 5), %d) FROM generate_series(0, %d) w",
				k.id, uint64(1)<<min(k.buckets, 32)-1, k.words()-1)})
	}
	if p.cat.install == nil {
		p.add(Statement{Group: group, Reason: "the application goes on writing until the agent takes over, for 24 hours at most",
			SQL: fmt.Sprintf("SELECT setval('atoll.lease'::regclass, (date_part('epoch', clock_timestamp()) * 1000)::bigint + %d)", AdoptFor.Milliseconds())})
	}
}
