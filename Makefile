# make run [ARGS=…]   build what is needed and run the program, as root: make run ARGS="--log-only"
# make test           every test; the last line says how many ran (ARGS goes to cargo test)
# make demo           two hosts, one scans the other, before and after: under a minute, leaves nothing behind
# make bench          the benchmarks
# make fuzz          each fuzz target for 30 s (SECONDS=…)
# make lint fmt setup

SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin
PROGRAM := $(or $(CARGO_TARGET_DIR),target)/release/portsentry
AS_ROOT := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)

SECONDS ?= 30

.PHONY: run build test demo bench fuzz lint fmt setup setup-build setup-test setup-lint

run: build
	$(AS_ROOT) $(PROGRAM) $(or $(ARGS),--expire 24h)

build: setup-build
	cargo build --release --locked

test: setup-test
	@tests/run.sh --locked $(ARGS)

demo: setup-test build
	@tests/demo.sh $(PROGRAM)

bench: setup-build
	cargo bench --locked $(ARGS)

fuzz: setup-build
	@tests/fuzz.sh $(SECONDS)

lint: setup-lint
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	shellcheck .ci/run tests/*.sh

fmt:
	cargo fmt

setup:
	@tests/packages.sh all

setup-build setup-test setup-lint: setup-%:
	@tests/packages.sh $*
