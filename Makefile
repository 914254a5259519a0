# make up      build and start a one-machine cluster with the samples     (PROFILE=dev builds faster)
# make env     prints what a shell needs to use it; type: eval "$(make env)"
# make down    stop it and its workloads and remove what they made on the machine; the data stays
# make test    everything that a change must pass
#
# DATA_DIR=FOLDER is another cluster than the one in /var/lib/tandem; LISTEN and UP_FLAGS are explained in scripts/up.
# BINARY=FILE is a tandem that was built before: `make up` then builds the samples only.
.PHONY: up env down test test-long conformance bench fmt lint setup-test

SHELL := /bin/bash
DATA_DIR ?= /var/lib/tandem
PROFILE ?= release
CLIENTS := target/clients/1.37
TARGET := $(or $(CARGO_TARGET_DIR),target)
BINARY ?= $(TARGET)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))/tandem

up:
	@DATA_DIR=$(DATA_DIR) PROFILE=$(PROFILE) scripts/up

env:
	@echo "export KUBECONFIG='$(abspath $(DATA_DIR))/admin.kubeconfig' TANDEM_DATA_DIR='$(abspath $(DATA_DIR))'"
	@echo "export PATH='$(patsubst %/,%,$(dir $(abspath $(BINARY)))):$(CURDIR)/$(CLIENTS)':\"\$$PATH\""

down:
	@$(BINARY) down --data-dir $(DATA_DIR)

setup-test:
	@scripts/setup test
	@KUBECTL_MINOR=37 scripts/get-clients $(CLIENTS)
	@KUBECTL_MINOR=32 scripts/get-clients target/clients/1.32
	@samples/build.sh

# Everything but the benchmarks. The binary is built first: the end-to-end tests run it.
TARGETS := --workspace --lib --bins --tests

test: setup-test
	cargo fmt --all --check
	cargo build --workspace --all-targets
	cargo test $(TARGETS) --no-fail-fast

# The same faults again and again: what fails once in many runs is found here. The machine should do nothing else: bounds
# of time are those that the documentation names.
ROUNDS ?= 5
SEEDS ?= 10000
FAULTS ?= 100
test-long: test
	@scripts/setup long
	cargo build --release --workspace --bins
	TANDEM_MATRIX_ROUNDS=$(FAULTS) cargo test --release --workspace --test matrix -- --nocapture --test-threads 1
	TANDEM_SIMULATION_SEEDS=$(SEEDS) cargo test --workspace --test seeds -- --nocapture
	TANDEM_QUIET_MACHINE=1 cargo test --workspace --test members --test membership -- --test-threads 1
	TANDEM_POWER_CUTS=100 TANDEM_CRASH_ALL_ENDS=1 cargo test --workspace --test power --test crash
	for round in $$(seq $(ROUNDS)); do cargo test --workspace --test e2e --test raft --test members --test host || exit 1; done

# The conformance suite of Kubernetes itself. FOCUS='sig-apps' names a part of it.
conformance:
	@TANDEM_CONFORMANCE_FOCUS='$(or $(FOCUS),\[Conformance\])' scripts/conformance

bench:
	@scripts/setup bench
	@scripts/bench

fmt:
	cargo fmt --all

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; else echo "cargo-deny is not installed: skipped"; fi
