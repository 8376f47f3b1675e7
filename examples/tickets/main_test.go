package main

import (
	"testing"

	"github.com/atollhq/atoll/internal/spec"
)

func TestSample_IsValid(t *testing.T) {
	t.Parallel()
	if _, err := spec.Load("atoll.yaml"); err != nil {
		t.Fatal(err)
	}
}

func TestCommand_RefusesBadInput(t *testing.T) {
	for _, args := range [][]string{
		{"init", "--dsn-env", "NO_SUCH_VARIABLE"},
		{"serve", "--dsn-env", "NO_SUCH_VARIABLE"},
		{"serve", "--dsn-env", "BAD_DSN"},
		{"load", "--history", "/dev/null"},
		{"load", "--history", "/dev/null", "--gateways", "127.0.0.1:8080"},
		{"load", "--history", "/no/such/folder/h", "--gateways", "a/g1=http://127.0.0.1:1"},
		{"load", "--history", "/dev/null", "--gateways", "a/g1=http://127.0.0.1:1", "--rate", "0"},
		{"load", "--history", "/dev/null", "--gateways", "a/g1=http://127.0.0.1:1", "--writes", "1.5"},
		{"load", "--history", "/dev/null", "--gateways", "a/g1=http://127.0.0.1:1", "--registers", "1000"},
		{"load", "--history", "/dev/null", "--gateways", "a/g1=http://127.0.0.1:1", "--registers", "1", "--register-every", "0s"},
		{"load", "--history", "/dev/null", "--gateways", "a/g1=http://127.0.0.1:1", "--registers", "500", "--lists", "500"},
		{"lod"},
	} {
		t.Setenv("BAD_DSN", "postgres://%zz")
		cmd := command()
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err == nil {
			t.Errorf("tickets %v: no error", args)
		}
	}
}
