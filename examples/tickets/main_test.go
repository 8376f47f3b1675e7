package main

import (
	"context"
	"errors"
	"testing"

	"github.com/atollhq/atoll/internal/pki"
	"github.com/atollhq/atoll/internal/spec"
	"github.com/atollhq/atoll/sdk"
)

func TestSample_IsValid(t *testing.T) {
	t.Parallel()
	if _, err := spec.Load("atoll.yaml"); err != nil {
		t.Fatal(err)
	}
}

// TestServeRegistered: the shop serves until it has said goodbye, and a shop that cannot serve does not stay registered.
func TestServeRegistered(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := errors.Join(pki.Init(dir, "tickets"), pki.Issue(dir, pki.Role{Kind: pki.Service, Name: "shop"})); err != nil {
		t.Fatal(err)
	}
	registrar, err := sdk.NewRegistrar(sdk.RegistrarConfig{Site: "a", Agents: []string{"127.0.0.1:1"}, PKI: dir, Service: "shop", Address: "127.0.0.1:9000"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	serve := func(serving context.Context) error {
		cancel()
		<-serving.Done() // the registrar has ended
		return serving.Err()
	}
	if err := serveRegistered(ctx, registrar, serve); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	broken := errors.New("the port is gone")
	if err := serveRegistered(t.Context(), registrar, func(context.Context) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
}

func TestCommand_RefusesBadInput(t *testing.T) {
	for _, args := range [][]string{
		{"init", "--dsn-env", "NO_SUCH_VARIABLE"},
		{"serve", "--dsn-env", "NO_SUCH_VARIABLE"},
		{"serve", "--dsn-env", "BAD_DSN"},
		{"serve", "--dsn-env", "GOOD_DSN", "--register", "127.0.0.1:9000"},
		{"serve", "--dsn-env", "GOOD_DSN", "--register", "127.0.0.1:9000", "--agent", "127.0.0.1:1", "--pki", "/no/such/folder"},
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
		t.Setenv("GOOD_DSN", "postgres://shop@127.0.0.1:1/shop")
		cmd := command()
		cmd.SetArgs(args)
		if err := cmd.ExecuteContext(t.Context()); err == nil {
			t.Errorf("tickets %v: no error", args)
		}
	}
}
