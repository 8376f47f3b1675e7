package postgres

import (
	"strings"

	"github.com/atollhq/atoll/internal/plant"
)

// plantedSQL is the SQL of the fence as this build installs it: with the bugs that are planted, or as it stands.
func plantedSQL(sql string) string {
	swap := func(is bool, old, planted string) {
		if is {
			sql = strings.ReplaceAll(sql, old, planted)
		}
	}
	swap(plant.FrozenNow, "pg_catalog.clock_timestamp() <", "pg_catalog.now() <")
	swap(plant.LeaseLogged, "CREATE UNLOGGED SEQUENCE atoll.lease", "CREATE SEQUENCE atoll.lease")
	swap(plant.ControlRowLockRemoved, "  SELECT * INTO k FROM atoll.keyspace WHERE name = ks FOR UPDATE;", "  SELECT * INTO k FROM atoll.keyspace WHERE name = ks;")
	swap(plant.ControlRowLockRemoved, "  PERFORM FROM atoll.keyspace WHERE id = ks FOR UPDATE;\n", "")
	swap(plant.OpenUnconditional, "  WHERE w.epoch > w.asked OR (w.epoch = w.asked AND w.state = 'closed') OR w.closing >= w.asked;", "  WHERE false;")
	swap(plant.OpenUnconditional, "  WHERE b.epoch < excluded.epoch;", ";")
	return sql
}
