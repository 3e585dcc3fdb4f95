#!/bin/bash
# Runs each fuzz target for some seconds, on the stored corpus and what the fuzzer makes of it; nothing is written into
# the tree. Coverage needs flags that the stable compiler keeps to itself, hence RUSTC_BOOTSTRAP.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:$HOME/.cargo/bin"
seconds=${1:-30}

command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
for target in fuzz/fuzz_targets/*.rs; do
    name=$(basename "$target" .rs)
    mkdir "$found/$name"
    echo "fuzzing $name for $seconds s"
    if ! RUSTC_BOOTSTRAP=1 cargo fuzz run --sanitizer none "$name" "$found/$name" "fuzz/corpus/$name" -- \
        -max_total_time="$seconds" -verbosity=0 -print_final_stats=1 -max_len=2048 >"$found/log" 2>&1; then
        cat "$found/log"
        exit 1
    fi
    grep executed_units "$found/log"
done
