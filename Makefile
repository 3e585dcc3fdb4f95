# make run [ARGS=…]   builds the program and runs it as root: make run ARGS="--log-only"
# make test           runs every test; the last line counts them (ARGS goes to cargo test)
# make test-fast      runs the tests that need neither root nor namespaces and not the longest ones: under a minute
# make demo           shows one host scanning another, without and with portsentry; under a minute, leaves nothing behind
# make bench          runs the benchmarks (RUNS=1: those of the whole program once; ARGS="--bench ports_learned": one of them)
# make compare        measures it, classic PortSentry, fail2ban and CrowdSec under the same scans; needs root, 15 minutes (RUNS=1: fewer scans)
# make simulate       simulates YEARS=… host-years with SEED=… on a virtual clock; see docs/simulation.md
# make test-kernels   runs the tests that talk to the kernel on Debian's 5.10, 6.1 and 6.12 in QEMU (ARGS="6.1": one of them)
# make fuzz           runs each fuzz target for 10 s (SECONDS=…)
# make deb            builds the Debian package; the last line is its path
# make reproducible   builds the package twice at different paths and compares; 10 to 30 minutes
# make audit          checks licences, advisories, sources and duplicates of the crates
# make msrv           checks that the oldest Rust version in Cargo.toml compiles it
# make interop        tests the package beside firewalld, ufw, iptables, Docker, fail2ban and Prometheus, in a Debian container (SUITE=trixie: 13)
# make crowdsec       tests the example files for CrowdSec with Debian's package of it
# make quick-start    types every command of the quick start and of the migration page in a Debian container with systemd (SUITE=trixie: 13)
# make man            makes the manual pages from docs/man/portsentry.8.md and docs/configuration.md
# make lint fmt setup

SHELL := /bin/bash
export PATH := $(PATH):$(HOME)/.cargo/bin
PROGRAM := $(or $(CARGO_TARGET_DIR),target)/release/portsentry
AS_ROOT := $(shell [ "$$(id -u)" -eq 0 ] || echo sudo)

SECONDS ?= 10

.PHONY: run build test test-fast simulate test-kernels demo bench compare fuzz deb reproducible audit msrv interop quick-start crowdsec man lint fmt setup setup-build \
    setup-test setup-demo setup-lint setup-deb setup-audit setup-interop setup-kernels

run: build
	$(AS_ROOT) $(PROGRAM) $(or $(ARGS),--expire 24h)

build: setup-build
	@packaging/build.sh

test: setup-test
	@tests/run.sh $(ARGS)

test-fast: setup-test
	@tests/run.sh --fast $(ARGS)

simulate: setup-build
	@cargo run --quiet --locked --profile $(or $(PROFILE),release) --package simulation -- \
	    $(foreach word,YEARS SEED PACE JSON PICTURE REPLAY,$(if $($(word)),--$(shell echo $(word) | tr A-Z a-z) $($(word))))

test-kernels: setup-kernels
	@tests/kernels.sh $(ARGS)

demo: setup-demo build
	@tests/demo.sh $(PROGRAM)

bench: setup-build
	cargo bench --locked $(ARGS)

compare: build
	$(AS_ROOT) benches/compare.sh $(PROGRAM) $(ARGS)

fuzz: setup-build
	@tests/fuzz.sh $(SECONDS)

deb: setup-deb
	@packaging/deb.sh

reproducible: setup-deb
	@tests/reproducible.sh

audit: setup-audit
	@tests/audit.sh

msrv: setup-build
	@tests/msrv.sh

crowdsec:
	@tests/crowdsec.sh

quick-start: setup-interop setup-deb
	@tests/quick-start.sh
	@tests/migrate.sh
	@tests/unit.sh

interop: setup-interop setup-deb
	@tests/interop.sh

man:
	docs/man/make.sh

lint: setup-lint
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D rustdoc::broken_intra_doc_links -A rustdoc::private_intra_doc_links" cargo doc --locked --no-deps --document-private-items --quiet
	shellcheck .ci/run benches/*.sh tests/*.sh tests/kernels/* docs/man/make.sh packaging/*.sh packaging/debian/postinst packaging/debian/postrm packaging/examples/notify/*

fmt:
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml

setup:
	@tests/packages.sh all

setup-build setup-test setup-demo setup-lint setup-deb setup-audit setup-interop setup-kernels: setup-%:
	@tests/packages.sh $*
