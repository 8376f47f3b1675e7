# Everything here runs on a fresh Debian with Go. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PLANT ?=
TAGS := $(if $(PLANT),-tags plant_$(subst -,_,$(PLANT)))
BIN := bin$(if $(PLANT),/$(PLANT))
export CGO_ENABLED ?= 0

.PHONY: help build demo check test fuzz clean tools

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

tools: ## install PostgreSQL and a C compiler where they are missing
	@bash scripts/install-tools

build: ## build the binaries: bin/atoll, bin/tickets
	go build $(TAGS) -trimpath -o $(BIN)/ ./cmd/atoll ./examples/tickets

demo: tools build ## two sites and a witness on this machine: load, switches, a cut; report in out/demo.json
	$(BIN)/atoll lab demo --atoll $(BIN)/atoll --tickets $(BIN)/tickets --out out

check: ## format, vet, lint, import rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not formatted (run gofmt -w):"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go test -count=1 -run 'TestImportDirection|TestPackageNames' .

test: ## all tests, with the race detector
	@bash scripts/install-tools browser
	CGO_ENABLED=1 go test -race -timeout 15m ./...
	go test -count=1 -tags plant_wait_out_removed -run TestFenceRace ./internal/postgres # must find violations

fuzz: ## every fuzz test for FUZZTIME (default 20s) each
	@bash scripts/fuzz $(or $(FUZZTIME),20s)

clean: ## remove what the build and the demo made
	rm -rf bin out
