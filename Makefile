# Everything here runs on a fresh Debian with Go. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PLANT ?=
POOLER ?=
TAGS := $(if $(PLANT),-tags plant_$(subst -,_,$(PLANT)))
BIN := bin$(if $(PLANT),/$(PLANT))
export CGO_ENABLED ?= 0

.PHONY: test-faults help build demo demo-pgbench check test test-matrix explore fuzz clean tools

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

tools: ## install PostgreSQL and a C compiler where they are missing
	@bash scripts/install-tools

build: ## build the binaries: bin/atoll, bin/tickets
	go build $(TAGS) -trimpath -o $(BIN)/ ./cmd/atoll ./examples/tickets

demo: tools build ## two sites and a witness on this machine: load, switches, a cut, a failover; report in out/demo.json (POOLER=pgbouncer, PART=failover)
	$(BIN)/atoll lab demo --atoll $(BIN)/atoll --tickets $(BIN)/tickets --out out $(if $(POOLER),--pooler $(POOLER)) $(if $(PART),--part $(PART))

demo-pgbench: tools build ## pgbench's bank, adopted under its clients, moved and failed over while they work; report in out/pgbench.json
	$(BIN)/atoll lab pgbench --atoll $(BIN)/atoll --tickets $(BIN)/tickets --out out $(if $(POOLER),--pooler $(POOLER))

check: ## format, vet, lint, import rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not formatted (run gofmt -w):"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go test -count=1 -run 'TestImportDirection|TestPackageNames' .

test: ## all tests, with the race detector
	@bash scripts/install-tools browser
	CGO_ENABLED=1 go test -race -timeout 15m ./...
	go test -count=1 -tags plant_wait_out_removed -run TestFenceRace ./internal/postgres # must find violations

test-faults: tools ## the named faults on real sites, alone on the machine (RUN=TestStoreLeaderKilled plays one)
	ATOLL_FAULTS=1 go test -count=1 -v -timeout 40m -run '$(or $(RUN),TestControllerKilled|TestStoreLeader|TestAgentPaused|TestDatabase)' ./internal/lab

explore: ## every interleaving of a small world, to a stated depth, against the invariants (WORLD=failover searches one; takes a while)
	ATOLL_EXPLORE=1 ATOLL_WORLD='$(WORLD)' go test -count=1 -v -timeout 6h -run 'TestExplore|TestPlantsAreSeen' ./internal/model

test-matrix: tools ## the adapter's tests on PostgreSQL 16, 17 and 18 too (needs npm for the binaries; kept in bin/postgresql)
	bash scripts/postgres-matrix bin/postgresql $(RUN)

fuzz: ## every fuzz test for FUZZTIME (default 20s) each
	@bash scripts/fuzz $(or $(FUZZTIME),20s)

clean: ## remove what the build and the demo made
	rm -rf bin out
