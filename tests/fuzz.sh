#!/bin/bash
# Runs each fuzz target for some seconds, one per processor at a time, on the stored corpus and the inputs that the
# fuzzer derives from it; nothing is written into the tree. Names after the seconds select targets. With 0 seconds they
# are only built. Coverage needs unstable compiler flags, hence RUSTC_BOOTSTRAP.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin"
seconds=${1:-30}
shift $(($# > 0))

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
host=$(rustc -vV | awk '/^host: / { print $2 }')
RUSTC_BOOTSTRAP=1 cargo fuzz build --sanitizer none --codegen-units 16
[ "$seconds" -gt 0 ] || exit 0
if [ $# -eq 0 ]; then
    set -- fuzz/fuzz_targets/*.rs
    set -- "${@##*/}"
    set -- "${@%.rs}"
fi

# The ledger's target writes a file per input: in memory, if possible.
export found=/dev/shm programs="$PWD/fuzz/target/$host/release" seconds
[ -w "$found" ] || found=/tmp
found=$(mktemp -d -p "$found")
trap 'rm -rf "$found"' EXIT

one() {
    mkdir -p "$found/$1/new" "$found/$1/tmp"
    # An input that caused a crash is shown in hexadecimal and as base64.
    if ! TMPDIR="$found/$1/tmp" "$programs/$1" "$found/$1/new" "fuzz/corpus/$1" -artifact_prefix="$found/$1/" \
        -max_total_time="$seconds" -timeout=10 -verbosity=0 -print_final_stats=1 >"$found/$1/log" 2>&1; then
        echo "$1 failed:"
        cat "$found/$1/log"
        return 1
    fi
    awk -v name="$1" '/executed_units/ { runs = $2 } END { print name ": " runs " runs" }' "$found/$1/log"
}
export -f one
echo "fuzzing $# targets for $seconds s each"
printf '%s\n' "$@" | xargs -P "$(nproc)" -I {} bash -euc 'one {}'
