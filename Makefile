# Everything here runs on a fresh Debian with Go. `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PLANT ?=
POOLER ?=
LAB = $(BIN)/atoll lab random --atoll $(BIN)/atoll --tickets $(BIN)/tickets --out out $(if $(SITES),--sites $(SITES)) $(if $(WORKLOAD),--workload $(WORKLOAD)) $(FLAGS)
SHORT_SEEDS := 1975,229,1430
SHORT_SEEDS_THREE := 654
NETNS_SEEDS := 4,5,16/1
TAGS := $(if $(PLANT),-tags plant_$(subst -,_,$(PLANT)))
BIN := bin$(if $(PLANT),/$(PLANT))
export CGO_ENABLED ?= 0

.PHONY: test-faults lab-planted help build demo demo-pgbench bench-fence bench-switch bench-overload bench-hold check-oracle lab-short lab-short-three lab-long lab-netns lab-replay check test test-matrix explore fuzz clean tools

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

tools: ## install PostgreSQL and a C compiler where they are missing
	@bash scripts/install-tools

build: ## build the binaries: bin/atoll, bin/tickets
	go build $(TAGS) -trimpath -o $(BIN)/ ./cmd/atoll ./examples/tickets

demo: tools build ## two sites and a witness on this machine: load, switches, a cut, a failover; report in out/demo.json (SITES=3, POOLER=pgbouncer, PART=failover)
	$(BIN)/atoll lab demo --atoll $(BIN)/atoll --tickets $(BIN)/tickets --out out $(if $(SITES),--sites $(SITES)) $(if $(POOLER),--pooler $(POOLER)) $(if $(PART),--part $(PART))

demo-pgbench: tools build ## pgbench's bank, adopted under its clients, moved and failed over while they work; report in out/pgbench.json
	$(BIN)/atoll lab pgbench --atoll $(BIN)/atoll --tickets $(BIN)/tickets --out out $(if $(POOLER),--pooler $(POOLER))

bench-fence: tools build ## what the fence costs, with and without it in turns; report in out/bench-fence.json
	$(BIN)/atoll lab bench-fence --out out

bench-switch: tools build ## what handovers cost: SWITCHES (default 200) and, with each lease, FAILOVERS (15) of SEED (1); PART=switches|failovers-3|failovers-10 plays one; report in out/bench-switch.json
	$(BIN)/atoll lab bench-switch --atoll $(BIN)/atoll --tickets $(BIN)/tickets --out out --commit "$$(git describe --always --dirty --abbrev=12 2>/dev/null)" $(if $(SITES),--sites $(SITES)) \
		$(if $(SWITCHES),--switches $(SWITCHES)) $(if $(FAILOVERS),--failovers $(FAILOVERS)) $(if $(SEED),--seed $(SEED)) $(if $(PART),--part $(PART))

bench-overload: build ## what a gateway does where five times as much comes as a service can do, and where a neighbour is slow (LENGTH, default 60s); report in out/bench-overload.json
	$(BIN)/atoll lab bench-overload --atoll $(BIN)/atoll --out out $(if $(LENGTH),--length $(LENGTH))

bench-hold: build ## what it costs to hold 10000 requests (REQUESTS), and how they are let go; report in out/bench-hold.json
	$(BIN)/atoll lab bench-hold --atoll $(BIN)/atoll --out out $(if $(REQUESTS),--requests $(REQUESTS))

lab-short: tools build ## a few random schedules of faults and switches at two sites, always the same; report in out/lab-random.json
	@echo "seeds at two sites: $(SHORT_SEEDS)"
	$(LAB) --seed $(SHORT_SEEDS)

lab-short-three: tools build ## the same at three sites without a witness; report in out/three
	$(LAB) --sites 3 --no-witness --gateways 1 --out out/three --seed $(SHORT_SEEDS_THREE)

lab-long: tools build ## random schedules for MINUTES (default 60), episode after episode of SEED (default 1), at SITES (default 2)
	$(LAB) --minutes $(or $(MINUTES),60) --seed $(or $(SEED),1)

lab-netns: tools build ## random schedules with the sites in network namespaces and packets cut between them, as root: SEED=4,5
	$(LAB) --netns --out out/netns --seed $(or $(SEED),$(NETNS_SEEDS))

lab-replay: tools build ## one seed or episode again, RUNS times (default 5), with the rate of failures: SEED=7/12
	$(LAB) --seed $(or $(SEED),$(error SEED is missing: write SEED=7 or SEED=7/12)) --runs $(or $(RUNS),5)

check: ## format, vet, lint, import rules
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "not formatted (run gofmt -w):"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go tool staticcheck ./...
	go test -count=1 -run 'TestImportDirection|TestPackageNames' .

check-oracle: ## the exact engine against SCRAM: shipped estates and random fault trees (TREES=300, SEED=n; Debian's package scram)
	bash scripts/check-oracle

test: ## all tests, with the race detector; pictures of the assessment's page in out/screenshots
	@bash scripts/install-tools browser haproxy dns
	go test -count=1 -run 'TestOverload|UnderMixedLoad|TestWebSocketsLeaveWithTheirBucket' ./internal/gateway # too much for two cores with the detector
	go test -count=1 -run 'TestEnginesAgree|TestLivingAgrees' ./internal/assess # numbers of one goroutine, in which the detector finds nothing, slowly
	ATOLL_SCREENSHOTS=$(CURDIR)/out/screenshots CGO_ENABLED=1 go test -race -timeout 20m ./...
	go test -count=1 -tags plant_wait_out_removed -run TestFenceRace ./internal/postgres # must find violations

test-faults: ## the named faults on real sites, alone on the machine (RUN=TestStoreLeaderKilled plays one)
	@bash scripts/install-tools faults
	ATOLL_FAULTS=1 go test -count=1 -v -timeout 60m -run '$(or $(RUN),TestControllerKilled|TestStoreLeader|TestStoreGone|TestAgentPaused|TestDatabase|TestSite|TestSessions|TestOldSnapshot)' ./internal/lab

explore: ## every interleaving of a small world, to a stated depth, against the invariants (WORLD=failover searches one; takes a while)
	ATOLL_EXPLORE=1 ATOLL_WORLD='$(WORLD)' go test -count=1 -v -timeout 6h -run 'TestExplore|TestPlantsAreSeen' ./internal/model

lab-planted: tools ## each planted bug, and the check that finds it; fails if one is missed (PLANT=frozen-now plants one)
	@bash scripts/lab-planted $(PLANT)

test-matrix: tools ## the adapter's tests on PostgreSQL 16, 17 and 18 too (needs npm for the binaries; kept in bin/postgresql)
	bash scripts/postgres-matrix bin/postgresql $(RUN)

fuzz: ## every fuzz test for FUZZTIME (default 20s) each
	@bash scripts/fuzz $(or $(FUZZTIME),20s)

clean: ## remove what the build and the demo made
	rm -rf bin out
