# Wrenn: build, run, test. `make` alone lists the targets.
#
# Every target may be run again at any time: what is there already is not made again.
# Only git, make, Go and Node are taken as given; scripts/setup brings the rest on Debian.

.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

# The programs are static; only the race detector switches cgo on again.
export CGO_ENABLED := 0
# Real images and programs for the tests that run the real thing.
export WRENN_TEST_IMAGES := $(CURDIR)/.cache/images
export WRENN_TEST_BIN := $(CURDIR)/bin

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
# Version control is stamped by VERSION; Go's own stamping would relink at every commit.
GO_BUILD := go build -trimpath -buildvcs=false
LDFLAGS := -s -w

# For `make up`: where sandboxes and the database live, and where to listen. Empty: what
# `wrenn up --help` says.
DATA ?=
LISTEN ?=
# More arguments for `wrenn up`, and for the benchmarks `make bench-…`.
UP_ARGS ?=
BENCH_ARGS ?=

# Packages whose tests make namespaces, mounts and sandboxes on this machine. They run one
# package at a time and are never cached: what they show depends on the machine.
SYSTEM_TESTS = $(shell go list ./... | grep -E '/internal/host(/|$$)|/cmd/|/test/|/bench(/|$$)')
UNIT_TESTS = $(shell go list ./... | grep -vE '/internal/host(/|$$)|/cmd/|/test/|/bench(/|$$)')
TEST_TIMEOUT := 10m
# Under the race detector, tests run with -short: the ones that need minutes skip themselves.
RACE_TIMEOUT := 5m
# How long each target of `make fuzz` runs, and how long the fuzzer may make one input smaller.
FUZZ_TIME ?= 20s
FUZZ_MINIMIZE := 2s

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what this machine lacks (root, Debian 12)
	@scripts/setup run

.PHONY: up
up: setup build ## Build what is stale and start Wrenn here (DATA=dir LISTEN=addr)
	@exec bin/wrenn up $(if $(DATA),--data-dir '$(DATA)') $(if $(LISTEN),--listen '$(LISTEN)') $(UP_ARGS)

.PHONY: build
build: bin/wrenn bin/envd bin/runsc ## Build bin/wrenn, bin/envd and bin/runsc

# Go itself knows best whether these are stale.
.PHONY: bin/wrenn bin/envd
bin/wrenn bin/envd:
	@$(GO_BUILD) -ldflags '$(LDFLAGS) -X main.version=$(VERSION)' -o $@ ./cmd/$(@F)

bin/runsc: $(wildcard third_party/runsc/*.go) third_party/runsc/go.mod third_party/runsc/go.sum
	@echo 'building bin/runsc (about a minute the first time)'
	@cd third_party/runsc && $(GO_BUILD) -ldflags '$(LDFLAGS)' -o ../../$@ .
	@touch $@

.PHONY: image
image: setup build ## Build the base image into .cache/images, unless it is there
	@bin/wrenn image build --image-dir .cache/images

.PHONY: test
test: image test/sdk/node_modules bin/tools/pebble ## Run all tests, the ones on real sandboxes too (root)
	@scripts/setup test
	go test -timeout $(TEST_TIMEOUT) $(UNIT_TESTS)
	go test -timeout $(TEST_TIMEOUT) -count=1 -p 1 $(SYSTEM_TESTS)

.PHONY: test-jupyter
test-jupyter: image ## Open a notebook of Jupyter in a sandbox in Chromium and run it (installs it: minutes)
	@scripts/setup run test
	WRENN_TEST_JUPYTER=1 go test -timeout $(TEST_TIMEOUT) -count=1 -v -run TestJupyter ./test/web

.PHONY: test-dev
test-dev: image test/web/dev/vite/node_modules test/web/dev/next/node_modules ## Open dev servers (Vite, Next.js) in a sandbox in Chromium and change a file (minutes)
	@scripts/setup run test
	WRENN_TEST_DEV=1 go test -timeout $(TEST_TIMEOUT) -count=1 -v -run 'TestVite|TestNext' ./test/web

# Packages of npm: the SDK that test/sdk drives the guest daemon with, and dev servers.
%/node_modules: %/package.json %/package-lock.json
	@cd $* && npm ci
	@touch $@

# How many operations `make model` has.
OPS ?= 3000

.PHONY: model
model: image ## Try thousands of random operations on real sandboxes (OPS=number)
	WRENN_TEST_OPS=$(OPS) go test -timeout 2h -count=1 -run TestModelForReal -v ./internal/host/sandbox

.PHONY: check
check: setup-check fmt-check tidy-check vet lint generate-check race ## Format, modules, vet, lint, generated code, race detector

.PHONY: setup-check
setup-check:
	@scripts/setup run test check

.PHONY: fmt-check
fmt-check:
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs -r ls -d 2>/dev/null | xargs -r gofmt -l); \
	if [ -n "$$unformatted" ]; then printf 'not formatted; run `make fmt`:\n%s\n' "$$unformatted" >&2; exit 1; fi

.PHONY: fmt
fmt: ## Format the Go code
	@git ls-files -co --exclude-standard '*.go' | xargs -r ls -d 2>/dev/null | xargs -r gofmt -w

.PHONY: tidy-check
tidy-check:
	@for dir in . third_party/runsc; do (cd $$dir && go mod tidy -diff) || { echo "run 'go mod tidy' in $$dir" >&2; exit 1; }; done

.PHONY: vet
vet:
	go vet ./...
	cd third_party/runsc && go vet ./...

.PHONY: lint
lint: bin/golangci-lint ## Run the linters of .golangci.yml
	bin/golangci-lint run --allow-parallel-runners ./...

.PHONY: race
race: image
	CGO_ENABLED=1 go test -race -short -timeout $(RACE_TIMEOUT) ./internal/... ./api/...

# Each target by itself: the fuzzer takes one at a time. What it finds it puts under
# testdata, and `make test` runs that ever after.
.PHONY: fuzz
fuzz: ## Fuzz every target for a while each (FUZZ_TIME=20s)
	@for dir in $$(git grep -l '^func Fuzz' -- '*_test.go' | xargs -n 1 dirname | sort -u); do \
		for target in $$(grep -ho '^func Fuzz[A-Za-z0-9]*' $$dir/*_test.go | cut -d ' ' -f 2); do \
			echo "fuzzing $$target in $$dir"; \
			go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZ_TIME) -fuzzminimizetime $(FUZZ_MINIMIZE) ./$$dir || exit 1; \
		done; \
	done

.PHONY: bench
bench: image ## Measure this machine and print the numbers as a table
	go run ./bench

.PHONY: bench-lifecycle
bench-lifecycle: image ## Measure pauses, resumes, forks and crowds beside bare runsc (ten minutes)
	go run ./bench/lifecycle $(BENCH_ARGS)

.PHONY: bench-runtime
bench-runtime: image ## Measure checkpoints and restores of the driver alone beside bare runsc
	go run ./bench/runtime $(BENCH_ARGS)

.PHONY: bench-guest
bench-guest: bin/envd ## Measure the guest daemon beside sshd and E2B's envd (PEER_ENVD=path)
	@scripts/setup bench
	go run ./bench/guest $(BENCH_ARGS)

.PHONY: bench-proxy
bench-proxy: image ## Measure ports on the web beside nginx, and terminals meanwhile (five minutes)
	@scripts/setup proxy
	go run ./bench/proxy $(BENCH_ARGS)

.PHONY: generate
generate: generators ## Generate the code of proto/ and api/ again
	@scripts/setup check
	@scripts/generate .

.PHONY: generate-check
generate-check: generators
	@scripts/generate-check

# The generators and the linter are modules of their own, so that their dependencies stay
# out of ours.
.PHONY: generators
generators: bin/tools/protoc-gen-go bin/tools/protoc-gen-connect-go bin/tools/oapi-codegen

bin/tools/protoc-gen-go: PKG := google.golang.org/protobuf/cmd/protoc-gen-go
bin/tools/protoc-gen-connect-go: PKG := connectrpc.com/connect/cmd/protoc-gen-connect-go
bin/tools/oapi-codegen: PKG := github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen
bin/tools/%: tools/go.mod tools/go.sum
	@echo 'building $@'
	@cd tools && $(GO_BUILD) -o ../$@ $(PKG)
	@touch $@

# The certificate authority that test/acme lets issue certificates.
bin/tools/pebble: tools/acme/go.mod tools/acme/go.sum
	@echo 'building $@'
	@cd tools/acme && $(GO_BUILD) -o ../../$@ github.com/letsencrypt/pebble/v2/cmd/pebble
	@touch $@

bin/golangci-lint: tools/lint/go.mod tools/lint/go.sum
	@echo 'building $@ (some minutes the first time)'
	@cd tools/lint && $(GO_BUILD) -o ../../$@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	@touch $@

.PHONY: clean
clean: ## Remove what was built or fetched (not the data of `make up`)
	rm -rf bin .cache test/sdk/node_modules test/web/dev/*/node_modules
