package postgres

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/atollhq/atoll/topo"
)

// PublicationName is the publication that capture reads; it exists in every site's database.
const PublicationName = "atoll"

// markPrefix is the prefix of the logical message that every applying transaction begins with. It needs no privilege
// and keeps applied changes from going out again, beside the replication origin.
const markPrefix = "atoll"

// pointPrefix is the prefix of the logical message of a transaction that only moves targets' positions on: it is sent
// at once, where an idle stream would take its time. See Fence.Point.
const pointPrefix = "atoll point"

// maxIdentifier is how long a name may be on an ordinary server, in bytes.
const maxIdentifier = 63

// SlotName is the name of the replication slot that a site keeps for one target.
func SlotName(deployment string, target topo.SiteID) string {
	return "atoll_" + strings.ReplaceAll(deployment+"_"+string(target), "-", "_")
}

// OriginName is the name of the replication origin under which a site applies the changes of another.
func OriginName(origin topo.SiteID) string { return "atoll_" + string(origin) }

// pinnedSettings make the text form of every type the same at both ends, whatever the role or database sets.
var pinnedSettings = map[string]string{
	"client_encoding":                     "UTF8",
	"datestyle":                           "ISO, MDY",
	"intervalstyle":                       "postgres",
	"timezone":                            "UTC",
	"extra_float_digits":                  "3",
	"bytea_output":                        "hex",
	"lc_monetary":                         "C",
	"xmloption":                           "content",
	"search_path":                         "pg_catalog", // names in values (regclass) come out qualified
	"statement_timeout":                   "0",
	"lock_timeout":                        "0",
	"idle_in_transaction_session_timeout": "0",
	"idle_session_timeout":                "0",
	"row_security":                        "off", // an error instead of rows that a policy hides
}

// noTransactionTimeout lifts a limit that exists from 17 on, for connections with long transactions.
const noTransactionTimeout = "SELECT set_config('transaction_timeout', '0', false) WHERE current_setting('server_version_num')::int >= 170000"

// streamConfig is how capture and apply connect: pinned settings, and a peer that is gone is noticed in half a minute.
func streamConfig(dsn, name string) (*pgx.ConnConfig, error) {
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("database DSN: %w", err)
	}
	for k, v := range pinnedSettings {
		cfg.RuntimeParams[k] = v
	}
	cfg.RuntimeParams["application_name"] = name
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 4}}
	cfg.DialFunc = dialer.DialContext
	return cfg, nil
}

// sqlState is the error's SQLSTATE, "" when it did not come from the server.
func sqlState(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// errConnection: the connection broke in the middle of something.
var errConnection = errors.New("the connection to the database broke")

// transient tells whether the same work may succeed when it is tried again: deadlocks, serialization failures, lost
// connections, a server that restarts or lacks a resource for a moment.
func transient(err error) bool {
	switch state := sqlState(err); state {
	case "":
		var net net.Error
		var connect *pgconn.ConnectError
		return errors.Is(err, errConnection) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
			errors.As(err, &net) || errors.As(err, &connect) || pgconn.SafeToRetry(err)
	case "40001", "40P01", "55P03", "55006", "57014", "57P01", "57P02", "57P03", "57P05":
		return true
	default:
		return strings.HasPrefix(state, "08") || strings.HasPrefix(state, "53")
	}
}
