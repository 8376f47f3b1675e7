package postgres

import (
	"testing"

	"github.com/atollhq/atoll/internal/pgserver"
)

func TestMain(m *testing.M) { pgserver.Main(m) }
