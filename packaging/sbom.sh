#!/bin/bash
# Prints the parts of the program as CycloneDX 1.5: every crate with version, licence and the checksum of Cargo.lock, the compiled-in SQLite,
# and Rust's standard library. The only source is cargo. Crates that only run during the build have the scope "excluded". The same commit and tool
# chain give the same bytes: the time is SOURCE_DATE_EPOCH, and there is no serial number, which would be random.
# https://cyclonedx.org/docs/1.5/json/ and https://github.com/package-url/purl-spec
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
: "${SOURCE_DATE_EPOCH:=$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# `0portsentry v0.1.0`, `1clap v4.6.7`, …: depth and crate. A crate that was listed before ends in (*) and is not expanded again.
cargo tree --locked --edges normal,build --prefix depth --format ' {p}' >"$work/tree"
cargo tree --locked --edges normal,no-proc-macro --prefix none --format '{p}' >"$work/linked"
rustc --version --verbose >"$work/rustc"
host=$(sed -n 's/^host: //p' "$work/rustc")
cargo metadata --locked --format-version 1 --filter-platform "$host" >"$work/metadata"
header=$(jq -r '.packages[] | select(.name == "libsqlite3-sys") | .manifest_path' "$work/metadata")
header=$(dirname "$header")/sqlite3/sqlite3.h
sqlite=$(sed -n 's/^#define SQLITE_VERSION  *"\([0-9.]*\)"$/\1/p' "$header")
[ -n "$sqlite" ] || { echo "No version of SQLite in $header" >&2; exit 1; }

jq -n -f packaging/sbom.jq --argjson time "$SOURCE_DATE_EPOCH" --arg sqlite "$sqlite" --slurpfile metadata "$work/metadata" \
    --rawfile tree "$work/tree" --rawfile linked "$work/linked" --rawfile rustc "$work/rustc" --rawfile lock Cargo.lock
