#!/bin/bash
# Builds the program as it is in the package, so that the package after it builds nothing a second time: no path of the
# builder is in it. `make build` and packaging/deb.sh use it. Arguments go to cargo build.
set -euo pipefail
cd "$(dirname "$0")/.."

# The builder's folders under names of their own, in messages of a panic and in what a debugger reads; for SQLite, too.
# Where a link leads to the crates, rustc has the one path and the C compiler the other.
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
exec cargo build --release --locked "$@"
