#!/bin/bash
# Builds the program as in the package, without paths of the build machine. `make build` and packaging/deb.sh both use it, so that the package
# needs no second build. Arguments go to cargo build.
set -euo pipefail
cd "$(dirname "$0")/.."

# Replaces the builder's directories in panic messages and debug information, for SQLite as well. If the crates are behind a symbolic
# link, rustc and the C compiler see different paths.
crates=${CARGO_HOME:-$HOME/.cargo}
rustflags=()
cflags=()
for map in "$crates=/usr/src/cargo" "$(realpath -m "$crates/registry")=/usr/src/cargo/registry" "$(pwd -P)=/usr/src/portsentry"; do
    rustflags+=("--remap-path-prefix=$map")
    cflags+=("-ffile-prefix-map=$map")
done
read -r -a own_rustflags <<<"${RUSTFLAGS:-}"
CARGO_ENCODED_RUSTFLAGS=$(IFS=$'\x1f' && printf '%s' "${own_rustflags[*]}${own_rustflags:+$IFS}${rustflags[*]}")
CFLAGS="${CFLAGS:-} $(printf '%q ' "${cflags[@]}")"
export CARGO_ENCODED_RUSTFLAGS CFLAGS CC_SHELL_ESCAPED_FLAGS=1
# No compiled file contains this time, but with another one cc compiles SQLite and ring again, and with them the program.
unset SOURCE_DATE_EPOCH
exec cargo build --release --locked "$@"
